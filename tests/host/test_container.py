"""The container image of `relay dev`: what can be checked without a builder, and the image itself."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import click
import pytest
import yaml

from relay import __version__
from relay.development.option_fields import IN_CLEAR, MAIL, PORTS, PREFIX
from relay.development.verbs.dev import dev as command
from relay.development.verbs.dev_options import check_together
from relay.operation.cli.root import cli
from tests.support import relay_starts
from tests.support.ports import free_port
from tests.support.relay_process import ROOT, until
from tests.support.tables import each_row

FILE = ROOT / "Containerfile"
COMPOSE = ROOT / "docs/examples/compose.yaml"
COMPOSE_KEYS = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "environment",
    "healthcheck",
    "image",
    "ports",
    "read_only",
    "security_opt",
    "tmpfs",
    "volumes",
}
IMAGE = "relay-dev-test"
BASE = "python:3.13-slim"
COMMIT = "0123456789ab"
TOKEN = "a-token-of-a-good-length"
VARIABLES = {one.envvar for one in command.params if one.envvar}


def instructions() -> list[tuple[str, str]]:
    """The instructions of the file, without comments, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines) if name
    ]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def environment() -> dict[str, str]:
    return dict(one.split("=", 1) for text in of("ENV") for one in shlex.split(text))


def build_context(folder: Path) -> None:
    """Copy what .dockerignore lets through to the builder."""
    lines = (ROOT / ".dockerignore").read_text().split()
    ignored = [one.removeprefix("**/") for one in lines if one.startswith("**/")]
    for name in (one[1:] for one in lines if one[0] == "!"):
        copy(ROOT / name, folder / name, ignored)


def copy(one: Path, to: Path, ignored: Sequence[str] = ()) -> None:
    if one.is_dir():
        shutil.copytree(one, to, ignore=shutil.ignore_patterns(*ignored))
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(one, to)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do what the first stage says, in other folders; return that of the installed relay."""
    folder = tmp_path_factory.mktemp("image")
    context, source, place = (folder / name for name in ("context", "source", "relay"))
    source.mkdir()
    build_context(context)
    steps = instructions()
    first, second = (number for number, (name, _) in enumerate(steps) if name == "FROM")
    assert [name for name, _ in steps[first:second]].count("RUN") >= 1
    for name, rest in steps[first:second]:
        if name == "COPY":
            *every, to = shlex.split(rest)
            for one in every:
                copy(context / one, source / to / (Path(one).name if to.endswith("/") else ""))
        elif name == "RUN":
            command = rest.replace("/opt/relay", str(place)).replace(" --no-cache-dir", "")
            command = re.sub("^python ", f"{sys.executable} ", command)
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=source,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
                env=os.environ | {"RELAY_COMMIT": COMMIT},
            )
            if done.returncode and "(from versions: none)" in done.stderr:
                pytest.skip("no package index answers")
            assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    return place


def test_it_runs_as_a_user_and_is_checked() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", of("USER")[-1])
    assert len(of("HEALTHCHECK")) == 1
    mail = [port for name, port in MAIL.items() if name not in IN_CLEAR]
    assert [int(port) for port in of("EXPOSE")[0].split()] == [*PORTS.values(), *mail, 2525]
    assert " dovecot-imapd dovecot-pop3d " in of("RUN")[-3]
    assert "conf/cloud.toml /etc/relay/relay.toml" in of("COPY")
    assert of("VOLUME") == ["/var/lib/relay"]
    assert " -m 0770 /var/lib/relay " in of("RUN")[-1]


@each_row("name", ["compose.yaml", "compose-graph.yaml"])
def test_compose_checks_as_the_image_does(name: str) -> None:
    """The images that podman builds have no check, unless --format docker is asked for."""
    text = (COMPOSE.parent / name).read_text()
    [test] = re.findall(r"^    healthcheck:.*\n      test: (.*)$", text, re.MULTILINE)
    [options] = of("HEALTHCHECK")
    assert ["CMD", *json.loads(options.partition(" CMD ")[2])] == json.loads(test)
    for option, value in re.findall(r"--([\w-]+)=(\w+)", options):
        assert f"\n      {option.replace('-', '_')}: {value}\n" in text


def test_its_command_line_and_variables_are_understood() -> None:
    words = [*json.loads(of("ENTRYPOINT")[0]), *json.loads(of("CMD")[0])]
    assert words == ["relay", "dev"]
    assert cli.get_command(click.Context(cli), "dev") is command
    own = {name for name in environment() if name.startswith(PREFIX)}
    assert own
    assert own <= VARIABLES
    values = {name: environment()[name] for name in own} | {"RELAY_DEV_TOKEN": TOKEN}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        options = command.make_context("dev", []).params
    check_together(options)
    assert options["listen_all"]


def test_the_health_check_sees_whether_it_runs(dev, serve) -> None:
    """On whatever ports, the service too, whose file the image has."""
    name, *words = json.loads(of("HEALTHCHECK")[0].partition(" CMD ")[2])
    assert name == "relay"
    service = serve()
    for running, default in ((dev("--no-demo"), {"RELAY_IMAGE": "1"}), (service, {})):
        file = {"RELAY_CONFIG": str(service.config_file)} if running is service else {}
        env = running.environment | default | file
        checked = [*relay_starts.RELAY, *words]
        done = relay_starts.run(checked, cwd=running.folder, env=env)
        assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr
        running.stop()
        assert relay_starts.run(checked, cwd=running.folder, env=env).returncode == 69


def test_what_the_image_installs_runs_without_the_source(installed: Path, short_path: Path) -> None:
    """Rules, scenarios and what the pages print are among it."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(short_path), "TMPDIR": str(short_path)}
    where = (
        "import relay; from relay.base.settings.environment import shipped as s;"
        "print(relay.__file__, s('policies'), s('scenarios'), s('conf'), s('docs/snippets.md'))"
    )
    for words in (["-c", where], ["-m", "relay", "--version"], ["-m", "relay", "dev", "--once"]):
        done = subprocess.run(
            [installed / "bin/python", *words],
            cwd=short_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        if words[0] == "-c":
            assert all(one.startswith(str(installed)) for one in done.stdout.split())
        if words[-1] == "--version":
            assert done.stdout == f"relay {__version__} ({COMMIT})\n"
    assert "Undeliverable: " in done.stdout


def test_the_compose_example_is_what_the_image_runs_and_its_test_finds_the_mail(dev) -> None:
    text = COMPOSE.read_text()
    assert re.findall(r"^(?:  )?(\S+):$", text, re.MULTILINE) == [
        "services",
        "relay",
        "app",
        "test",
        "volumes",
        "relay-ca",
    ]
    assert set(re.findall(r"^    (\S+):", text, re.MULTILINE)) == COMPOSE_KEYS
    assert (COMPOSE.parent / re.findall(r"context: (\S+)", text)[0] / FILE.name).samefile(FILE)
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+", text))
    assert {"RELAY_DEV_TOKEN", "RELAY_DEV_HOST"} <= named <= VARIABLES
    published = re.findall(r'"127\.0\.0\.1:\d+:(\d+)"', text)
    assert set(published) <= set(of("EXPOSE")[0].split())
    verb, *words = json.loads(re.findall(r"command: (\[.*)", text)[0])
    command.make_context(verb, [*words, "--token", TOKEN])
    running = dev(*words, "--token", TOKEN, "--host", "relay")
    app, test = map(textwrap.dedent, re.findall(r"- \|\n((?: {8}.*\n|\n)+)", text))
    host, port = running.smtp_address()
    variables = {"SMTP_HOST": host, "SMTP_PORT": str(port), "RELAY_TOKEN": TOKEN}
    variables["RELAY"] = f"http://localhost:{running.http[1]}"
    for code, expected in ((app, ""), (test, "ann@customer.example has it: captured\n")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_the_workflow_example_finds_the_mail(dev) -> None:
    job = yaml.safe_load((COMPOSE.parent / "github-actions.yaml").read_text())["jobs"]["test"]
    running = dev("--no-demo", "--token", job["services"]["relay"]["env"]["RELAY_DEV_TOKEN"])
    host, port = running.smtp_address()
    there = {"RELAY_SMTP": f"{host}:{port}", "RELAY_URL": f"http://localhost:{running.http[1]}"}
    [step] = [one["run"] for one in job["steps"] if "run" in one]
    command = ["bash", "-e", "-c", step]
    subprocess.run(command, env=os.environ | job["env"] | there, check=True, timeout=60)


# -- the image


def builder() -> str:
    """A program that builds images here; skips the test if there is none, or if it does not run."""
    reasons = []
    for name in ("podman", "docker"):
        if shutil.which(name) is None:
            reasons.append(f"{name} is not installed")
            continue
        done = subprocess.run([name, "info"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return name
        reasons.append(f"{name}: {(done.stderr.splitlines() or ['it does not run'])[-1]}")
    pytest.skip("; ".join(reasons))


@pytest.fixture
def container() -> Iterator[tuple[str, str]]:
    program = builder()
    start = [program, "run", "--rm", BASE, "true"]  # pulls what is not there
    started = subprocess.run(start, capture_output=True, text=True, check=False)
    if started.returncode:
        pytest.skip(f"{program} cannot run {BASE}: {started.stderr.strip().splitlines()[-1]}")
    build = [program, "build", "--tag", IMAGE, "--file", str(FILE), str(ROOT)]
    subprocess.run(build, check=True, timeout=900)
    run = [
        program,
        "run",
        "--detach",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/tmp:size=512m,mode=1777",
        "--env",
        f"RELAY_DEV_TOKEN={TOKEN}",
        IMAGE,
    ]
    done = subprocess.run(run, check=True, capture_output=True, text=True, timeout=60)
    name = done.stdout.strip()
    yield program, name
    subprocess.run([program, "stop", name], check=True, capture_output=True, timeout=60)


def test_the_image_runs_read_only_as_a_user(container: tuple[str, str]) -> None:
    program, name = container

    def inside(*words: str) -> str:
        done = subprocess.run(
            [program, "exec", name, *words], capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    check = json.loads(of("HEALTHCHECK")[0].partition(" CMD ")[2])
    until("it is healthy", lambda: inside(*check) == "ready", timeout_s=60)
    assert inside("id", "-u") == of("USER")[-1].partition(":")[0]
    assert inside("relay", "send", "--to", "bob@example.test", "--body", "x")
    until("it is delivered", lambda: "delivered" in inside("relay", "trace", "last"))


def test_the_compose_file_of_the_service_runs(tmp_path: Path) -> None:
    compose = [builder(), "compose"]
    if subprocess.run([*compose, "version"], capture_output=True, check=False).returncode:
        pytest.skip(f"{compose[0]} has no compose")
    file, names = tmp_path / "compose.yaml", ("M365_TENANT", "M365_CLIENT_ID", "RELAY_HOSTNAME")
    file.write_text((COMPOSE.parent / "compose-cloud.yaml").read_text().replace("../..", str(ROOT)))
    (tmp_path / "m365.secret").write_text("s3cret")
    values = dict.fromkeys(names, "relay.example.test") | {"M365_MAILBOX": "a@example.test"}
    values |= {"RELAY_TRUSTED": "192.0.2.0/24", "RELAY_LISTEN": f"127.0.0.1:{free_port()}"}
    run = partial(subprocess.run, cwd=tmp_path, env=os.environ | values, capture_output=True)
    compose += ["--file", str(file)]
    try:
        run([*compose, "up", "--build", "--detach"], check=True, timeout=900)
        ready = [
            *compose,
            "exec",
            "-T",
            "relay",
            *json.loads(of("HEALTHCHECK")[0].split(" CMD ")[1]),
        ]
        until("it is ready", lambda: run(ready, check=False).returncode == 0, timeout_s=60)
        words = [*compose, "exec", "-T", "relay", "relay", "queue", "stats"]
        assert b"0 queued" in run(words, check=True).stdout
    finally:
        run([*compose, "down", "--volumes"], check=True, timeout=120)
