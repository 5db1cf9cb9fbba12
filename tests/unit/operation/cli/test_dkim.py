"""`relay dkim`: the files and records of new keys, and what it says of the keys in use."""

import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relay.base.settings.reader import load
from relay.operation.cli.errors import report_error
from relay.operation.cli.root import cli
from relay.transport.signing.key_files import load_keys, read_key
from relay.transport.signing.record import compare_record
from tests.support.dns_server import DnsThread
from tests.support.tables import each_row

CONFIG = """\
hostname = "relay.example.test"
state_dir = "state"
[mailboxes]
domains = ["corp.test"]
"""
USAGE, DATA, UNAVAILABLE, CONFIGURATION = 64, 65, 69, 78
FAST = ("--type", "ed25519")
SERVICE = 65534


class Files:
    """A configuration, and the command on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "relay.toml"
        self.config.write_text(CONFIG)
        (folder / "state").mkdir()

    def __call__(self, *words: str) -> Result:
        arguments = ["dkim", "--config", str(self.config), *words]
        return CliRunner().invoke(cli, arguments, standalone_mode=False)

    def shown(self, *words: str) -> Any:
        done = self(*words, "--json")
        assert done.exit_code == 0, done.exception
        return json.loads(done.stdout)

    def fails(self, *words: str) -> tuple[int, str]:
        """Return the exit code and the text of a command that changes nothing."""
        before = self.content
        done = self(*words)
        assert (self.content, done.stdout) == (before, "")
        assert done.exception is not None
        return report_error(done.exception), str(done.exception)

    @property
    def content(self) -> dict[str, bytes]:
        files = (one for one in self.folder.rglob("*") if one.is_file())
        return {str(one.relative_to(self.folder)): one.read_bytes() for one in files}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("words", "algorithm", "bits"),
    [((), "rsa-sha256", 2048), (("--type", "ed25519"), "ed25519-sha256", 256)],
)
def test_a_new_key_is_in_a_file_of_its_owner(
    files: Files, words: tuple[str, ...], algorithm: str, bits: int
) -> None:
    made = files.shown("keygen", "Corp.test", "S1", *words)
    path = files.folder / "dkim/s1.pem"
    key = read_key(path)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert (key.algorithm, key.bits) == (algorithm, bits)
    assert made == {
        "domain": "corp.test",
        "selector": "s1",
        "algorithm": algorithm,
        "bits": bits,
        "file": str(path),
        "name": "s1._domainkey.corp.test",
        "record": made["record"],
        "strings": made["strings"],
        "config": '[[dkim]]\ndomain = "corp.test"\nselector = "s1"\nkey = "dkim/s1.pem"\n',
    }
    assert compare_record([made["record"]], key).verdict == "ok"
    assert "".join(made["strings"]) == made["record"]
    assert max(map(len, made["strings"])) <= 255
    assert files.config.read_text() == CONFIG


def test_the_lines_that_are_printed_sign_with_the_key(files: Files) -> None:
    printed = files("keygen", "corp.test", "s1").stdout
    files.config.write_text(CONFIG + printed[printed.index("[[dkim]]") :])
    [key] = load_keys(load(files.config, {}).dkim, files.config).keys
    assert (key.name, key.file) == ("s1._domainkey.corp.test", files.folder / "dkim/s1.pem")
    [line] = [one for one in printed.splitlines() if " IN TXT " in one]
    name, _, strings = line.partition(" IN TXT ")
    assert name == f"{key.name}."
    record = "".join(strings.strip('"').split('" "'))
    assert compare_record([record], key.private).verdict == "ok"


def test_no_file_is_replaced(files: Files) -> None:
    first = files.shown("keygen", "corp.test", "s1", *FAST)["file"]
    kept = Path(first).read_bytes()
    second = files.shown("keygen", "corp.test", "s1")
    assert second["file"] == str(files.folder / "dkim/corp.test-s1.pem")
    assert 'key = "dkim/corp.test-s1.pem"' in second["config"]
    code, text = files.fails("keygen", "corp.test", "s1")
    assert (code, "corp.test-s1.pem exists already" in text) == (DATA, True)
    assert Path(first).read_bytes() == kept


@pytest.mark.parametrize("there", ["a file", "a link", "a link to nothing", "a directory"])
def test_out_names_a_new_file(files: Files, there: str) -> None:
    out = files.folder / "s2.pem"
    match there:
        case "a file":
            out.write_text("")
        case "a link":
            out.symlink_to(files.config)
        case "a link to nothing":
            out.symlink_to(files.folder / "nothing")
        case _:
            out.mkdir()
    code, text = files.fails("keygen", "corp.test", "s2", "--out", str(out))
    assert (code, f"{out} exists already" in text) == (DATA, True)
    assert not (files.folder / "nothing").exists()


@each_row(
    "words, text",
    [
        (("corp_test.", "s1"), 'found "corp_test.", expected a domain such as "example.org"'),
        (("b ü.test", "s1"), 'found "b ü.test", expected '),
        (("corp.test", "s_1"), 'found "s_1", expected a selector such as "s1"'),
        (("corp.test", ""), 'found "", expected a selector'),
        (("corp.test", "s1", "--bits", "1023"), "1023 is not in the range 1024<=x<=4096"),
        (("corp.test", "s1", "--bits", "4097"), "4097 is not in the range"),
        (("corp.test", "s1", "--bits", "2048", "--type", "ed25519"), "--bits is for --type rsa"),
        (("corp.test", "s1", "--type", "dsa"), "'dsa' is not one of 'rsa', 'ed25519'"),
        (("corp.test", ".".join(["a" * 60] * 4)), "found 264 octets, expected at most 253"),
    ],
)
def test_bad_names_and_sizes_are_usage(files: Files, words: tuple[str, ...], text: str) -> None:
    code, found = files.fails("keygen", *words)
    assert (code, text in found) == (USAGE, True), found


@each_row("out", ["no/such/s1.pem", "relay.toml/s1.pem", "k" * 300])
def test_a_place_that_cannot_be_written_is_unavailable(files: Files, out: str) -> None:
    code, _ = files.fails("keygen", "corp.test", "s1", "--out", str(files.folder / out))
    assert code == UNAVAILABLE


def test_a_selector_in_use_needs_another_one(files: Files) -> None:
    made = files.shown("keygen", "corp.test", "s1")
    files.config.write_text(CONFIG + made["config"])
    code, text = files.fails("keygen", "corp.test", "s1")
    assert (code, "corp.test has the selector s1 already" in text) == (DATA, True), text
    files.shown("keygen", "corp.test", "s2")
    files.shown("keygen", "sub.corp.test", "s1")


@contextmanager
def largest_file(octets: int) -> Iterator[None]:
    """Let every write fail beyond some octets of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_half_a_key_does_not_stay(files: Files) -> None:
    with largest_file(100):
        code, _ = files.fails("keygen", "corp.test", "s1")
    assert code == UNAVAILABLE
    read_key(Path(files.shown("keygen", "corp.test", "s1", *FAST)["file"]))


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_key_is_synced_before_it_is_printed(files: Files) -> None:
    trace = files.folder / "trace"
    watched = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=fsync,write"]
    command = [sys.executable, "-m", "relay", "dkim", "--config", str(files.config)]
    subprocess.run(
        [*watched, *command, "keygen", "corp.test", "s1"], check=True, capture_output=True
    )
    calls = re.findall(r" (fsync|write)\((\d+)<([^>]*)>", trace.read_text())
    done = [
        (call, Path(path).name if call == "fsync" else "stdout")
        for call, number, path in calls
        if call == "fsync" or number == "1"
    ]
    folder = files.folder.name
    assert done[:4] == [
        ("fsync", folder),
        ("fsync", "s1.pem"),
        ("fsync", "dkim"),
        ("write", "stdout"),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_key_that_root_makes_belongs_to_the_service(files: Files) -> None:
    os.chown(files.folder / "state", SERVICE, SERVICE)
    done = files("keygen", "corp.test", "s1")
    for one in (files.folder / "dkim", files.folder / "dkim/s1.pem"):
        assert (one.stat().st_uid, one.stat().st_gid) == (SERVICE, SERVICE)
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.fixture
def dns() -> Iterator[DnsThread]:
    with DnsThread() as server:
        yield server


class Keys:
    """Two keys of corp.test, one of sub.corp.test, and a name server."""

    def __init__(self, files: Files, dns: DnsThread) -> None:
        self._dns = dns
        pairs = [("corp.test", "s1", "rsa"), ("corp.test", "s2", "ed25519")]
        pairs.append(("sub.corp.test", "s3", "ed25519"))
        self.made = [
            files.shown("keygen", domain, selector, "--type", kind)
            for domain, selector, kind in pairs
        ]
        entries = "".join(one["config"] for one in self.made)
        text = f'{CONFIG}[dns]\nnameservers = ["{dns.address}"]\n{entries}'
        files.config.write_text(text)

    def publish(self, number: int, *strings: str) -> None:
        """Publish these strings, or the record, of a key."""
        one = self.made[number]
        text = " ".join(f'"{part}"' for part in strings or one["strings"])
        self._dns.zone[one["name"]] = {"TXT": [text]}


@pytest.fixture
def keys(files: Files, dns: DnsThread) -> Keys:
    return Keys(files, dns)


def test_show_says_what_the_dns_has(files: Files, dns: DnsThread, keys: Keys) -> None:
    keys.publish(0)
    keys.publish(1, keys.made[2]["record"])
    dns.zone["s3._domainkey.sub.corp.test"] = "SERVFAIL"
    shown = files.shown("show")
    names = ("domain", "selector", "algorithm", "bits", "file", "name", "record")
    assert [{name: one[name] for name in names} for one in shown] == [
        {name: one[name] for name in names} for one in keys.made
    ]
    assert [(one["published"], one["until"]) for one in shown] == [
        ("yes", None),
        ("differs", None),
        ("unknown", None),
    ]
    assert shown[0]["reasons"] == []
    assert shown[1]["reasons"] == ["found p= of another key, expected p= of this key"]
    assert "answered SERVFAIL" in shown[2]["reasons"][0]
    dns.zone[keys.made[1]["name"]] = {"TXT": ['"v=spf1 -all"']}
    dns.zone[keys.made[2]["name"]] = {"A": ["192.0.2.1"]}
    assert [one["published"] for one in files.shown("show")] == ["yes", "no", "no"]


def test_a_key_that_cannot_be_read_has_file_and_line(files: Files, keys: Keys) -> None:
    Path(keys.made[1]["file"]).unlink()
    code, text = files.fails("show")
    assert (code, f"{files.config}:14: dkim[1].key" in text) == (CONFIGURATION, True), text


def test_a_short_key_is_a_warning(files: Files) -> None:
    assert "warning: 1024 bits" in files("keygen", "corp.test", "s1", "--bits", "1024").stderr
    assert files("keygen", "corp.test", "s2").stderr == ""
