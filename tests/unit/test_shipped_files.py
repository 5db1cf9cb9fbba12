"""conf/, systemd/ and the Makefile hold what they promise."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from relay.base.settings.reader import load
from relay.base.settings.removed_keys import REMOVED_KEYS
from relay.development.option_fields import PORTS
from relay.operation.cli.root import _VERBS
from tests.support.commands import run_command
from tests.support.relay_config import keys_of
from tests.support.tls import self_signed
from tests.support.webhooks import KEY

TOP = Path(__file__).parents[2]
CONF = TOP / "conf/relay.toml"
EXPOSURE_TENTHS_MAX = 16


def uncommented(file: Path = CONF) -> str:
    return re.sub(r"^#(?! |$)", "", file.read_text(), flags=re.MULTILINE)


def keys_in(value: Any, prefix: str = "") -> set[str]:
    if isinstance(value, dict):
        return set().union(*(keys_in(each, f"{prefix}.{name}") for name, each in value.items()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(keys_in(each, prefix) for each in value))
    return {prefix.removeprefix(".")}


def test_every_key_of_the_tree_is_in_the_shipped_file_and_no_other():
    assert keys_in(tomllib.loads(uncommented())) == set(keys_of())


def test_manual_pages_have_each_command_and_each_key(tmp_path):
    made = [sys.executable, "packaging/manual.py", str(tmp_path)]
    subprocess.run(made, cwd=TOP, check=True, env={"PATH": os.environ["PATH"]})
    pages = {page.name: page.read_text().replace("\\-", "-") for page in tmp_path.glob("man/*/*")}
    assert set(pages) == {"relay.1", "relay.toml.5", *(f"relay-{verb}.1" for verb in _VERBS)}
    for verb in _VERBS:
        assert f".BR relay-{verb} (1)" in pages["relay.1"]
    for words in ("relay queue hold", "relay config show"):
        assert f".SS {words}\n" in pages[f"relay-{words.split()[1]}.1"]
    for key in keys_of():
        assert re.search(rf"(\\fB|\b){key.split('.')[-1]} = ", pages["relay.toml.5"]), key
    for page in tmp_path.glob("man/*/*") if shutil.which("groff") else ():
        command = ["groff", "-K", "utf8", "-man", "-ww", "-z", str(page)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert [line for line in done.stderr.splitlines() if "adjust line" not in line] == []
    assert (tmp_path / "fish/vendor_completions.d/relay.fish").exists()


def test_the_shipped_file_loads_and_lists_only_loopback():
    settings = load(CONF, {})
    assert settings.state_dir == Path("/var/lib/relay")
    assert {each for smtp in settings.smtp for each in smtp.trusted_networks} == {
        "127.0.0.0/8",
        "::1/128",
    }
    assert all(each.listen.host == "127.0.0.1" for each in settings.smtp)
    assert [each.host for each in settings.http.listen] == ["127.0.0.1"]


def test_the_relay_of_a_test_in_another_language_takes_no_known_port():
    page, java = (TOP / "docs" / one for one in ("snippets.md", "examples/EndToEnd.java"))
    command = re.search(r"`(relay dev --no-demo .*)`", page.read_text())[1]
    for name in PORTS:
        assert f" --{name} 0 " in command
        assert f'"--{name}"' in java.read_text()


OLDER = sorted((TOP / "tests/configurations").glob("?.?.?.toml"))


@pytest.mark.parametrize("file", [CONF, *OLDER], ids=lambda file: file.stem)
def test_every_example_in_the_shipped_file_of_each_release_is_valid(tmp_path, file):
    (tmp_path / "relay.toml").write_text(uncommented(file))
    (tmp_path / "smarthost.password").write_text("secret\n")
    (tmp_path / "webhook.key").write_text(f"{KEY}\n")
    for name in ("m365.secret", "m365.pem", "google.json", "identity-token", "proxy.password"):
        (tmp_path / name).write_text("secret\n")
    (tmp_path / "tls").mkdir()
    made = self_signed(tmp_path / "tls", "DNS:localhost")
    made.certificate.rename(tmp_path / "tls/relay.crt")
    made.key.rename(tmp_path / "tls/relay.key")
    settings = load(tmp_path / "relay.toml", {})
    assert settings.route[0].auth.user == "relay"
    assert [each.role for each in settings.smtp] == ["relay", "submission"]


def test_a_key_that_is_commented_out_shows_its_default(tmp_path):
    """Left out or put in, such a line makes no difference; those without a default are examples."""
    sections = uncommented().split("\n\n")
    kept = [
        text
        for text in sections
        if not re.search(
            r"\[\[(domain|route|oauth|dkim|tenant|webhook|milter)\]\]|\[suppression\]|For mail clients",
            text,
        )
    ]
    text = re.sub(
        r"^(tls = \{|metrics = |bare_newline = |auth = true|dnsbl = ).*$",
        "",
        "\n\n".join(kept),
        flags=re.MULTILINE,
    )
    (tmp_path / "all.toml").write_text(text)
    shutil.copy(CONF, tmp_path / "shipped.toml")
    assert load(tmp_path / "all.toml", {}) == load(tmp_path / "shipped.toml", {})


def test_the_short_file_of_the_package_differs_in_its_rules_and_checks_alone(tmp_path):
    short, rules = tmp_path / "short.toml", 'shipped = "/usr/share/graph-relay/policies"\n'
    text = (TOP / "packaging/debian/relay.toml").read_text()
    keys = (rules, "reject_unknown_sender_domain = true\n", 'sender_checks = "record"\n')
    for key in keys:
        assert key in text
        text = text.replace(key, "")
    short.write_text(text)
    shutil.copy(CONF, tmp_path)
    assert load(short, {}) == load(tmp_path / "relay.toml", {})


def test_news_of_the_package_have_each_key_that_was_removed():
    news = (TOP / "packaging/debian/NEWS").read_text()
    assert [key for keys in REMOVED_KEYS.values() for key in keys if key not in news] == []


@pytest.fixture
def unit(tmp_path):
    """The unit with a program that is there, for systemd-analyze."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    text = (TOP / "systemd/relay.service").read_text()
    path = tmp_path / "relay.service"
    there = re.sub(r"^(ExecStart|ExecReload)=.*$", r"\1=/bin/true", text, flags=re.MULTILINE)
    path.write_text(there)
    return path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    ours = [line for line in done.stderr.splitlines() if not line.startswith("/lib/systemd/")]
    return subprocess.CompletedProcess(command, done.returncode, done.stdout, "\n".join(ours))


def test_systemd_finds_nothing_wrong_with_the_unit_and_its_sockets(unit):
    alone = analyze("verify", "--man=no", str(unit))
    assert (alone.returncode, alone.stderr) == (0, "")
    drop_in = unit.parent / "relay.service.d/sockets.conf"
    drop_in.parent.mkdir()
    shutil.copy(TOP / "systemd/relay-sockets.conf", drop_in)
    shutil.copy(TOP / "systemd/relay@.socket", unit.parent / "relay@25.socket")
    verified = analyze("verify", "--man=no", str(unit.parent / "relay@25.socket"), str(unit))
    assert (verified.returncode, verified.stderr) == (0, "")
    drop_in.write_text("[Service]\nUnknown=1\n")  # it is read
    assert "Unknown" in analyze("verify", "--man=no", str(unit)).stderr


def test_child_processes_may_limit_their_memory(unit):
    """libc does that with prlimit64, which every filter allows that does not deny it."""
    filters = re.findall("^SystemCallFilter=(~?)(.*)$", unit.read_text(), re.MULTILINE)
    denied = [name for no, names in filters if no for name in names.split()]
    assert denied
    listed = analyze("syscall-filter", *denied).stdout.split()
    assert "setpriority" in listed
    assert "prlimit64" not in listed
    assert "prlimit64" in analyze("syscall-filter", "@default").stdout.split()


def test_the_sandbox_of_the_unit_is_tight(unit):
    rated = analyze(
        "security", "--offline=true", f"--threshold={EXPOSURE_TENTHS_MAX}", "--no-pager", str(unit)
    )
    if "unrecognized option" in rated.stderr:
        pytest.skip("this systemd-analyze cannot rate units that are not loaded")
    assert rated.returncode == 0, rated.stdout


def test_needrestart_leaves_an_old_relay_that_runs_on(tmp_path):
    if not shutil.which("perl"):
        pytest.skip("perl is not installed")
    conf, mark = (TOP / "packaging/debian/needrestart.conf").read_text(), tmp_path / "mark"
    conf = conf.replace("/run/graph-relay-old", str(mark))
    matching = "print grep { 'relay.service' =~ $_ } @{$nrconf{blacklist_rc}}"
    command = ["perl", "-we", f"our %nrconf;\n{conf}\n{matching}"]
    assert subprocess.check_output(command) == b""
    mark.touch()
    assert b"relay" in subprocess.check_output(command)


def test_a_reload_of_the_unit_waits_for_its_outcome():
    unit = (TOP / "systemd/relay.service").read_text()
    start, reload = (
        re.search(rf"^{name}=(.*)$", unit, re.MULTILINE)[1] for name in ("ExecStart", "ExecReload")
    )
    assert reload == start.replace(" serve ", " reload ")


def test_the_unit_fits_the_settings():
    settings = load(CONF, {})
    unit = (TOP / "systemd/relay.service").read_text()
    assert f"StateDirectory={settings.state_dir.name}\n" in unit
    assert "\nRequiresMountsFor=/var/lib/relay /var/lib/relay/mail\n" in unit
    assert "RestartPreventExitStatus=65 77 78\n" in unit  # else it would start again for ever
    assert "TimeoutStartSec=infinity" in unit  # a migration that is killed begins anew
    stop_s = float(re.search(r"TimeoutStopSec=(\d+)s", unit)[1])
    assert stop_s > settings.delivery.shutdown_grace + 5


def test_pinned_requirements_are_those_of_the_project():
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    text = "".join([file.read_text() for file in TOP.glob("requirements*.txt")])
    pinned = re.findall(r"^([\w.-]+)==(\S+).*\\\n +--hash", text, re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)), "each has its hashes"
    assert len(set(pinned)) == len(pinned := dict(pinned)), "files agree"
    extras = project["project"]["optional-dependencies"]
    needed_by_all = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    release = project["dependency-groups"]["release"]
    for one in [*needed_by_all, *extras["postgres"], *extras["checks"], *release]:
        needed = Requirement(one)
        assert pinned[canonicalize_name(needed.name)] in needed.specifier, "make requirements"


def test_the_tests_run_with_the_versions_that_an_installation_gets():
    lock = re.findall(r"^(\w.*) \\$", (TOP / "requirements.txt").read_text(), re.MULTILINE)
    needed = [one for one in map(Requirement, lock) if one.marker is None or one.marker.evaluate()]
    assert len(needed) > 30
    found = {one.name: version(one.name) for one in needed}
    assert [one for one in needed if found[one.name] not in one.specifier] == [], found


def test_each_test_that_the_makefile_names_exists():
    for file, name in re.findall(r"(tests/\S+\.py)::(\w+)", (TOP / "Makefile").read_text()):
        assert f"def {name}(" in (TOP / file).read_text(), (file, name)


def wanted_packages(folder: Path, *words: str) -> set[str]:
    """What system-packages.sh would install on a machine that has none of the programs."""
    identity = folder / "id"
    identity.write_text("#!/bin/sh\necho 1000\n")
    identity.chmod(0o755)
    script = (TOP / "tests/system-packages.sh").read_text()
    script = script.replace('PATH="$PATH:/usr/sbin:/sbin"\n', "")  # those of this machine
    done = run_command(
        ["/bin/bash", "-c", script, "system-packages.sh", *words],
        env={"PATH": str(folder)},
        check=True,
    )
    [names] = re.findall(
        r"^tests that need (.*) are skipped: this system has no apt-get$", done.stderr
    )
    return set(names.split())


def test_make_test_installs_neither_a_browser_nor_servers(tmp_path):
    """It leaves out the suites that need them."""
    own = {"curl", "iproute2", "jq", "msmtp", "openssl", "strace", "systemd"}
    assert wanted_packages(tmp_path, "own") == own
    assert wanted_packages(tmp_path) > own | {"chromium", "dovecot-imapd", "postfix"}
    shown = ["make", "--dry-run", "--no-print-directory", "-C", str(TOP)]
    # Without the variables of a make that runs this test, as TESTS=tests.
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    for target, words in (("test", "own"), ("test-suites", "")):
        done = subprocess.run(
            [*shown, target], env=environment, capture_output=True, text=True, check=True
        )
        found = re.findall(r"tests/system-packages\.sh *(.*)$", done.stdout, re.MULTILINE)
        assert set(found) == {words}
