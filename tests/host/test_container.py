"""The container image: what can be checked without a builder, and the image itself."""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
from tests.support.containers import PODMAN, container_program
from tests.support.long_tests import long
from tests.support.ports import free_port
from tests.support.relay_process import ROOT, until
from tests.support.tables import each_row

FILE = ROOT / "Containerfile"
COMPOSE = ROOT / "docs/examples/compose.yaml"
COMPOSE_KEYS = """
build cap_drop command depends_on environment healthcheck image ports read_only security_opt tmpfs volumes
"""
IMAGE = "relay-dev-test"
COMMIT = "0123456789ab"
TOKEN = "a-token-of-a-good-length"
SERVICE = {
    "RELAY_HOSTNAME": "relay.contoso.example",
    "RELAY_TRUSTED": "127.0.0.1",
    "M365_TENANT": "contoso.example",
    "M365_CLIENT_ID": "relay",
    "M365_CLIENT_SECRET": "s3cret",
    "M365_MAILBOX": "printer@contoso.example",
}
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


def test_it_runs_as_a_user_and_is_checked() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", of("USER")[-1])
    mail = [port for name, port in MAIL.items() if name not in IN_CLEAR]
    assert [int(port) for port in of("EXPOSE")[0].split()] == [*PORTS.values(), *mail, 2525]
    assert of("VOLUME") == ["/var/lib/relay"]


def test_it_has_all_of_the_wheel() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = tool["targets"]["wheel"]
    let_through = set((ROOT / ".dockerignore").read_text().replace("!", "").split())
    needed = {*wheel["packages"], *wheel["force-include"], "hatch_build.py", "README.md", "LICENSE"}
    assert needed <= {word for text in of("COPY") for word in text.split()} & let_through


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


def test_the_compose_example_is_what_the_image_runs_and_its_test_finds_the_mail(dev) -> None:
    text = COMPOSE.read_text()
    names = re.findall(r"^(?:  )?(\S+):$", text, re.MULTILINE)
    assert names == ["services", "relay", "app", "test", "volumes", "relay-ca"]
    assert set(re.findall(r"^    (\S+):", text, re.MULTILINE)) == set(COMPOSE_KEYS.split())
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

CHECK = json.loads(of("HEALTHCHECK")[0].partition(" CMD ")[2])
SEND = shlex.split("relay send --from printer@contoso.example --to ann@partner.example --body x")
SHIPPED = """
from relay.base.settings.environment import shipped

print(*map(shipped, ("policies", "scenarios", "conf", "docs/snippets.md")))
"""
READ = """
import imaplib, os, ssl
from urllib.request import Request, urlopen

token = os.environ["RELAY_DEV_TOKEN"]
page = urlopen(Request("http://127.0.0.1:8025/", headers={"Authorization": "Bearer " + token}))
imap = imaplib.IMAP4_SSL("127.0.0.1", 1993, ssl_context=ssl._create_unverified_context())
imap.login("zoe@example.test", token)
print(page.status, int(imap.select()[1][0]))
"""
PROBE = "import sys, urllib.request as r; print(r.urlopen('http://127.0.0.1:8025' + sys.argv[1]).status)"


class Container:
    """A container of this tree's image, without a network, and its volume. Both are removed at the end."""

    def __init__(self, program: str):
        self.program = program
        self.name = f"relay-test-{secrets.token_hex(4)}"
        self.options = ["--detach", "--name", self.name, "--network", "none"]

    def do(self, *words: str | Path, code: int = 0) -> str:
        """Return what a command of the program prints; of one that fails, as it should, its errors."""
        return output([self.program, *map(str, words)], code)

    def printed(self, text: str, code: int = 0) -> str:
        """Do the same for commands of a page, on this container and its volume."""
        options = " ".join(["docker run", *self.options])
        text = re.sub(r"docker run\b( --rm| -d --name relay)?", options, text)
        text = re.sub(r" -p \S+", "", text).replace("RELAY_DEV_TOKEN=…", f"RELAY_DEV_TOKEN={TOKEN}")
        text = re.sub(r"ghcr\.io/\S+", IMAGE, text).replace("-v queue:", f"-v {self.name}:")
        text = re.sub(r"\b(exec|stop|rm) relay\b", rf"\1 {self.name}", text)
        return output(["bash", "-ec", text.replace("docker", self.program)], code)

    def serve(
        self, *options: str, names: Mapping[str, str] = SERVICE, image: str = IMAGE, code: int = 0
    ) -> str:
        """Start the service with options of `run`; return its errors, if it ends with a code."""
        how = self.options if code == 0 else ["--rm"]
        volume = [] if "-v" in options else ["-v", f"{self.name}:/var/lib/relay"]
        values = [f"--env={name}={value}" for name, value in names.items()]
        words = [*how, "--read-only", *volume, *values, *options, image, "serve"]
        return self.do("run", *words, code=code)

    def inside(self, *words: str, code: int = 0) -> str:
        return self.do("exec", self.name, *words, code=code)

    def answer(self, *words: str) -> str:
        """Return what a command inside prints, and nothing if it fails."""
        with suppress(AssertionError):
            return self.inside(*words)
        return ""

    def recipients(self) -> int:
        """Return how many recipients the queue has."""
        return int(re.search(r"recipients +(\d+)", self.inside("relay", "queue", "stats"))[1])

    def until_ready(self) -> None:
        until("it is ready", lambda: self.answer(*CHECK).startswith("ready"), timeout_s=60)

    def stop(self) -> None:
        """Stop it in order: it ends with 0, before it is killed."""
        self.do("stop", self.name)
        assert self.do("inspect", "--format", "{{.State.ExitCode}}", self.name) == "0\n"


def output(command: Sequence[str], code: int) -> str:
    done = subprocess.run(
        command, input="s3cret\n", capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == code, f"{command}: {done.returncode} {done.stdout}{done.stderr}"
    return done.stderr if code else done.stdout


def built(*programs: str) -> str:
    """Return the program that can run the image, which it has just built."""
    program = container_program(*programs)
    commit = f"--build-arg=RELAY_COMMIT={COMMIT}"
    output([program, "build", "--tag", IMAGE, commit, "--file", str(FILE), str(ROOT)], 0)
    return program


@pytest.fixture(scope="module", params=["installed", pytest.param("podman.sh", marks=long)])
def program(request) -> str:
    """A program that runs containers here, with the image of this tree."""
    return built(*([PODMAN] if request.param == "podman.sh" else ["docker", "podman"]))


@pytest.fixture
def container(program: str) -> Iterator[Container]:
    made = Container(program)
    yield made
    for words in (("rm", "--volumes", made.name), ("volume", "rm", made.name)):
        with suppress(AssertionError):  # there is none
            made.do(*words, "--force")


@pytest.mark.parametrize("place", ["docs/development.md", "Containerfile"])
def test_the_development_relay_runs_as_printed(container: Container, place: str) -> None:
    """With its pages, and with Dovecot for IMAP, also on a read-only root."""
    text = re.sub("^# *", "", (ROOT / place).read_text(), flags=re.MULTILINE)
    command = r"^(export RELAY_DEV_TOKEN.*\n)?docker run .*RELAY_DEV_TOKEN(.*\\\n)*.*"
    container.printed(re.search(command, text, re.MULTILINE)[0])
    container.until_ready()
    assert container.inside("relay", "--version") == f"relay {__version__} ({COMMIT})\n"
    places = container.inside("python", "-c", SHIPPED).split()
    assert all(place.startswith("/opt/relay/lib/") for place in places)
    assert container.inside("id", "-u").strip() == of("USER")[-1].partition(":")[0]
    container.inside("relay", "send", "--to", "zoe@example.test", "--body", "x")
    until("it is delivered", lambda: "delivered" in container.inside("relay", "trace", "last"))
    assert container.inside("python", "-c", READ) == "200 1\n"
    lock = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    there = container.inside("sh", "-c", "cd /opt/relay/lib/*/site-packages && echo *.dist-info")
    names = {one.partition("-")[0].replace("_", "-") for one in there.split()}
    assert names == {*lock, "graph-relay"}


def test_the_first_message_in_ten_minutes(container: Container) -> None:
    """Each printed command: without a network the message waits, and the next container has it."""
    page = (ROOT / "docs/cloud.md").read_text()
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    start, commands = (textwrap.dedent(one) for one in blocks if "docker " in one)
    test, send, trace = commands.splitlines()
    container.printed(start)
    container.until_ready()
    errors = container.printed(test, code=75)
    assert "login.microsoftonline.com: temporary failure in name resolution" in errors
    sent = container.printed(send).strip()
    waits = ("DEFERRED", "graph.microsoft.com")
    until("it waits", lambda: all(word in container.printed(trace) for word in waits))
    assert container.printed("docker exec relay relay list --state failed") == ""
    container.stop()
    container.printed(re.search(r"`(docker stop relay && docker rm relay)`", page)[1])
    container.printed(start)
    container.until_ready()
    assert sent in container.inside("relay", "queue", "list")


def test_the_service_runs_as_another_user_of_group_0_without_capabilities(
    container: Container,
) -> None:
    container.serve("--user=12345:0", "--cap-drop=ALL", "--security-opt=no-new-privileges")
    container.until_ready()
    container.inside(*SEND)
    assert container.recipients() == 1


def test_a_start_names_what_it_cannot_use(container: Container, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    errors = container.serve("-v", f"{tmp_path}:/var/lib/relay", code=77)
    assert "/var/lib/relay is not a directory that this user can write" in errors
    names = {name: value for name, value in SERVICE.items() if name != "M365_CLIENT_SECRET"}
    names["M365_CLIENT_SECRET_FILE"] = "/etc/shadow"
    errors = container.serve(names=names, code=78)
    assert "/etc/shadow" in errors


@pytest.mark.parametrize("version", ["0.5.0", "0.6.0"])
def test_an_older_image_and_this_one_use_the_same_volume(
    container: Container, tmp_path: Path, version: str
) -> None:
    """From the older one to this one, and back."""
    find = ["git", "log", "-1", "--format=%H", "--fixed-strings", f"--grep=release: {version}"]
    commit = subprocess.run(find, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not commit:
        pytest.skip(f"the history of Git has no release {version}")
    output(["sh", "-c", f"git -C {ROOT} archive {commit.strip()} | tar -x -C {tmp_path}"], 0)
    older = f"{IMAGE}:{version}"
    container.do("build", "--tag", older, "--file", tmp_path / FILE.name, tmp_path)
    sent = []
    for image in (older, IMAGE, older):
        container.serve(image=image)
        send = partial(container.answer, *SEND)
        sent.append(until("it takes a message", send, timeout_s=60).strip())
        assert container.recipients() == len(sent)
        assert all(one in container.inside("relay", "trace", one) for one in sent)
        container.stop()
        container.do("rm", container.name)


def test_the_compose_file_of_the_service_runs(tmp_path: Path) -> None:
    compose = [container_program("docker", "podman"), "compose"]
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
        ready = [*compose, "exec", "-T", "relay", *CHECK]
        until("it is ready", lambda: run(ready, check=False).returncode == 0, timeout_s=60)
        words = [*compose, "exec", "-T", "relay", "relay", "queue", "stats"]
        assert b"0 queued" in run(words, check=True).stdout
    finally:
        run([*compose, "down", "--volumes"], check=True, timeout=120)
