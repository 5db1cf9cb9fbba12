"""relay check finds everything that a start would refuse, and starts nothing."""

from contextlib import closing

import pytest

from relay.app.commands import checking
from relay.app.commands.checking import Verdict, check_file
from relay.app.lock import OwnerLock
from relay.clock import SystemClock
from relay.spool.sqlite.engine.database import open_database

CONFIG = """\
hostname = "relay.example.test"
state_dir = "state"
[mailboxes]
domains = ["example.test"]
root = "mail"
accounts = "accounts.toml"
[policy]
directory = "policies"
[dns]
nameservers = ["127.0.0.1:1"]
"""
ACCOUNTS = '[[account]]\naddress = "alice@example.test"\n'
RULE = """\
[[rule]]
name = "no exe"
when = { attachment_name = ["*.exe"] }
then = [ { reject = "5.7.1 no" } ]
[[test]]
name = "t"
from = "a@b.test"
to = ["c@d.test"]
attachments = ["a.exe"]
expect = { verdict = "reject" }
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(checking, "_DNS_TIMEOUT_S", 0.05)  # no name server listens on port 1


@pytest.fixture
def files(tmp_path):
    """Write files over a good set and return what check finds, by what it looked at."""

    def found(**changed):
        written = {"relay": CONFIG, "accounts": ACCOUNTS, "policies/10": RULE, **changed}
        (tmp_path / "policies").mkdir(exist_ok=True)
        for name, text in written.items():
            file = tmp_path / f"{name}.toml"
            file.write_text(text)
            file.chmod(0o600)
        before = sorted(tmp_path.rglob("*"))
        findings = list(check_file(tmp_path / "relay.toml", {}, SystemClock()))
        assert sorted(tmp_path.rglob("*")) == before, "check made something"
        return findings

    found.folder = tmp_path
    return found


def of(findings, verdict):
    return [(one.what, one.text) for one in findings if one.verdict is verdict]


def test_a_good_set_has_no_fault(files):
    findings = files()
    assert of(findings, Verdict.FAULT) == []
    assert [one.what for one in findings] == [
        "configuration", "accounts", "policy", "state_dir", "mailboxes.root", "spool", "dns",
    ]  # fmt: skip


def test_name_servers_that_do_not_answer_are_no_fault_of_the_files(files):
    ((what, text),) = of(files(), Verdict.FAILED)
    assert (what, "127.0.0.1:1" in text) == ("dns", True)


@pytest.mark.parametrize(
    ("changed", "what", "told"),
    [
        ({"relay": CONFIG + "bogus = 1\n"}, "configuration", "relay.toml:11: dns.bogus: "),
        ({"relay": "x = ["}, "configuration", "relay.toml:1: "),
        ({"accounts": ACCOUNTS + "pasword = 1\n"}, "accounts", "accounts.toml:3: account[0].pasword"),
        ({"policies/10": RULE.replace("when", "wen")}, "policy", "10.toml:3: "),
        ({"policies/10": RULE.replace('verdict = "reject"', 'verdict = "accept"')}, "policy",
         "10.toml:5: "),
    ],
    ids=["unknown key", "no TOML", "account", "rule", "failing test"],
)  # fmt: skip
def test_a_fault_has_its_file_and_line(files, changed, what, told):
    faults = of(files(**changed), Verdict.FAULT)
    assert [name for name, _ in faults] == [what]
    assert f"{files.folder}/" in faults[0][1]
    assert told in faults[0][1]


def test_faults_of_accounts_and_rules_are_told_together(files):
    faults = of(files(accounts="x = 1\n", **{"policies/10": "y = 1\n"}), Verdict.FAULT)
    assert [what for what, _ in faults] == ["accounts", "policy"]


def test_plain_secrets_are_warned_of(files):
    warnings = of(files(accounts=ACCOUNTS + 'token = "plain:alice"\n'), Verdict.WARNING)
    assert [what for what, _ in warnings] == ["accounts"]
    assert "accounts.toml:3: account[0].token: found a plain secret" in warnings[0][1]
    assert "alice" not in warnings[0][1].partition("account[0]")[2]


def test_a_folder_that_is_a_file_is_a_fault(files):
    (files.folder / "state").touch()
    assert of(files(), Verdict.FAULT) == [
        ("state_dir", f"state_dir: {files.folder}/state is no folder that this user can write")
    ]


def a_spool(folder, name="spool.sqlite", octets=b""):
    (folder / "state").mkdir(exist_ok=True)
    (folder / "state" / name).write_bytes(octets)


HEADER = b"SQLite format 3\0".ljust(60, b"\1")


def test_a_directory_in_place_of_the_spool_is_said(files):
    spool = files.folder / "state" / "spool.sqlite"
    spool.mkdir(parents=True)
    [found] = [one for one in files() if one.what == "spool"]
    expected = f"spool.url: {spool}: found a directory, expected the spool's file"
    assert (found.verdict, found.text) == (Verdict.FAULT, expected)


def test_a_log_is_looked_at_where_nobody_writes_it(files):
    folder = files.folder / "state"
    folder.mkdir()
    with closing(open_database(folder / "spool.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 3")
        kept = {
            one: one.read_bytes() for one in folder.glob("spool.sqlite*") if "shm" not in one.name
        }
    log = folder / "spool.sqlite-wal"
    kept[log] = b"\xff" * 32 + kept[log][32:]
    for file, octets in kept.items():
        file.write_bytes(octets)
    [found] = [one for one in files() if one.what == "spool"]
    assert found.verdict is Verdict.FAULT
    assert f"spool.url: {log} is damaged: SQLite reads 0 of its" in found.text
    lock = OwnerLock(folder / "run")
    lock.take()
    try:
        [found] = [one for one in files() if one.what == "spool"]
    finally:
        lock.give_back()
    assert found.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("name", "octets", "verdict", "told"),
    [
        ("spool.sqlite", b"", Verdict.OK, "spool.sqlite"),
        ("spool.sqlite", HEADER + b"\0\0\0\3", Verdict.OK, "spool.sqlite"),
        ("spool.sqlite", HEADER + b"\0\0\0\1", Verdict.OK, "spool.sqlite"),
        ("spool.sqlite", HEADER + b"\0\0\1\0", Verdict.FAULT, "newer Relay (schema 256"),
        ("spool.sqlite", b"nothing of ours", Verdict.FAULT, "see relay storage salvage"),
        ("spool.sqlite.salvage", b"", Verdict.FAULT, "salvage was cut off"),
        ("spool.sqlite.damage", b"a page", Verdict.FAILED, "no new mail is taken on"),
    ],
)
def test_the_spool_is_looked_at(files, name, octets, verdict, told):
    a_spool(files.folder, name, octets)
    [found] = [one for one in files() if one.what == "spool"]
    assert found.verdict is verdict
    assert told in found.text
