"""`relay policy diff`: which results of two directories of rules differ, for real files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.operation.cli.errors import ExitCode, report_error
from relay.operation.cli.root import cli
from tests.support.tables import each_row

HEADER = b"From: a@own.test\nTo: b@other.test, c@third.test\nSubject: Hello\n"
MIB = 1 << 20


def rule(name, then, when='subject = "Hello"', more=""):
    return f'[[rule]]\nname = "{name}"\n{more}\nwhen = {{ {when} }}\nthen = [ {then} ]\n'


class Folders:
    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("old", "new", "mail"):
            (root / name).mkdir()

    def rules(self, old: str, new: str) -> None:
        (self.root / "old/10.toml").write_text(old)
        (self.root / "new/10.toml").write_text(new)

    def put(self, name: str, content: bytes = HEADER + b"\nhi\n") -> None:
        file = self.root / "mail" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def run(self, *options: str, mail: str = "mail"):
        """The exit code, what is printed, and what is said on stderr."""
        words = ["policy", "diff", *(str(self.root / each) for each in ("old", "new"))]
        done = CliRunner().invoke(
            cli, [*words, "--mail", str(self.root / mail), *options], standalone_mode=False
        )
        code = report_error(done.exception) if done.exception else 0
        text = str(done.exception or "")
        return code, done.stdout, done.stderr + text

    def json(self, *options: str):
        """The lines of files by their names in the directory, and the sums."""
        code, text, said = self.run("--json", *options)
        assert code == 0, said
        *files, sums = map(json.loads, text.splitlines())
        prefix = f"{self.root}/mail/"
        return {one["file"].removeprefix(prefix): one for one in files}, sums


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.delenv("RELAY_CONFIG", raising=False)
    monkeypatch.setattr(
        "relay.operation.cli.options.running_config", lambda: None
    )  # of another test
    return Folders(tmp_path)


REJECT, HOLD = '{ reject = "5.7.1 No" }', '{ hold = "wait" }'
TAG = '{ set_header = { name = "X-Tag", value = "1" } }'
# What is in OLD, what in NEW, and the lines that say it.
CHANGES = [
    (
        TAG,
        REJECT,
        [
            "- b@other.test: delivered",
            "+ b@other.test: rejected: 5.7.1 No (r)",
            "- verdict: accept",
            "+ verdict: reject",
        ],
    ),
    (
        HOLD,
        "{ discard = true }",
        ["- b@other.test: held: wait (r)", "+ b@other.test: discarded (r)"],
    ),
    (
        HOLD,
        '{ redirect = "x@own.test" }',
        ["+ b@other.test: redirected to x@own.test (r)", "+ x@own.test: gets a copy (r)"],
    ),
    (TAG, f'{TAG}, {{ bcc = "x@own.test" }}', ["+ x@own.test: gets a copy (r)"]),
    (
        TAG,
        f'{TAG}, {{ journal = "x@own.test" }}',
        ["+ journal to x@own.test about b@other.test, c@third.test (r)"],
    ),
    (
        TAG,
        f'{TAG}, {{ notify = {{ to = "x@own.test", text = "Look" }} }}',
        ["+ notice to x@own.test about b@other.test, c@third.test (r)"],
    ),
    (TAG, "{ quarantine = true }", ["+ b@other.test: held: quarantine (r)", "+ verdict: hold"]),
    (TAG, TAG.replace('"1"', '"2"'), ["~ b@other.test: x-tag"]),
    (TAG, '{ disclaimer = { text = "Bye" } }', ["~ b@other.test: x-tag, body"]),
    (TAG, '{ subject_prefix = "[X]" }', ["~ b@other.test: subject, x-tag"]),
    (
        TAG,
        f'{TAG}, {{ next_hop = "smtp://192.0.2.1:26" }}',
        ["+ b@other.test: delivered by smtp://192.0.2.1:26"],
    ),
    (REJECT, '{ defer = "4.7.1 Later" }', ["+ deferred: 4.7.1 Later (r)", "+ verdict: defer"]),
    (
        HOLD,
        HOLD + ' ]\nexpires = "2d"\nunless = { size_over = "1 MiB" }\n#',
        ["~ what only --json shows"],
    ),
]


@each_row("old, new, lines", CHANGES)
def test_a_change_is_shown_with_its_rule(folders, old, new, lines):
    other = rule("same", TAG.replace("X-Tag", "X-Same"))
    folders.rules(other + rule("r", old), other + rule("r", new))
    folders.put("one.eml")
    folders.put("other.eml", b"To: d@other.test\n\nhi\n")
    code, text, _ = folders.run()
    shown = text.splitlines()
    assert (code, shown[0]) == (0, f"{folders.root}/mail/one.eml: r")
    assert set(lines) <= set(shown), text
    assert "       1        1  r" in shown
    assert "2 files compared: 1 changed, 1 unchanged; skipped: none" in shown


SAME = [
    (rule("r", REJECT), rule("renamed", REJECT)),
    (rule("r", REJECT), rule("x", HOLD, 'subject = "else"') + rule("r", REJECT)),
    (rule("r", TAG), rule("r", TAG) + rule("watch", REJECT, more='mode = "audit"')),
    *[
        (
            rule("r", TAG),
            rule(
                "r",
                f'{TAG}, {{ rate_limit = {{ rate = "{rate}/1h", per = "sender", text = "4.7.1 x" }} }}',
            ),
        )
        for rate in (1, 2)
    ],
]


@each_row("old, new", SAME)
def test_what_has_the_same_result_is_no_change(folders, old, new):
    folders.rules(old, new)
    folders.put("one.eml")
    files, sums = folders.json()
    assert (files, sums["unchanged"]) == ({}, 1)


def test_the_sums_count_what_each_rule_matches(folders):
    folders.rules(rule("gone", TAG), rule("r", REJECT) + rule("never", HOLD, 'subject = "else"'))
    for number in range(1000):
        text = "Hello" if number % 4 == 0 else "Bye"
        folders.put(
            f"{number % 7}/{number:04}.eml", b"To: b@own.test\nSubject: %b\n\n" % text.encode()
        )
    files, sums = folders.json()
    assert {name: one["rules"] for name, one in files.items()} == {
        f"{number % 7}/{number:04}.eml": ["r", "gone"] for number in range(0, 1000, 4)
    }
    assert list(files) == sorted(files)
    assert (sums["compared"], sums["changed"], sums["unchanged"]) == (1000, 250, 750)
    assert sums["rules"] == [
        {"rule": "r", "old": None, "new": 250},
        {"rule": "never", "old": None, "new": 0},
        {"rule": "gone", "old": 250, "new": None},
    ]


ENVELOPES = [
    (
        b"Return-Path: <x@own.test>\nFrom: a@own.test\nTo: b@other.test\n",
        "x@own.test",
        ["b@other.test"],
    ),
    (b"Return-Path: <>\nFrom: a@own.test\nTo: b@other.test\n", "", ["b@other.test"]),
    (
        b"From: A <a@own.test>\nTo: B <b@other.test>, b@other.test\nCc: g: c@own.test;\nBcc: d@own.test\n",
        "a@own.test",
        ["b@other.test", "c@own.test", "d@own.test"],
    ),
    (
        b"Return-Path: <x@own.test>\nDelivered-To: d@own.test\nTo: list@other.test\n",
        "x@own.test",
        ["d@own.test"],
    ),
    (b"Return-Path: MAILER-DAEMON\nTo: not an address, b@other.test\n", "", ["b@other.test"]),
]


@each_row("header, sender, recipients", ENVELOPES)
def test_the_envelope_is_that_of_the_header(folders, header, sender, recipients):
    folders.rules("", rule("r", REJECT, "size_over = 1"))
    folders.put("one.eml", header + b"\nhi\n")
    files, sums = folders.json()
    [found] = files.values()
    assert (found["envelope"], found["from"], sums["envelopes"]) == (
        "header",
        sender,
        {"header": 1},
    )
    assert [one["address"] for one in found["new"]["recipients"]] == recipients


def test_a_message_that_rules_cannot_be_applied_to_is_rejected_by_them(folders):
    folders.rules("", rule("r", HOLD, 'attachment_name = "*.exe"'))
    folders.put("one.eml", b"To: b@own.test\nContent-Type: a/b; name=" + 9000 * b"x" + b"\n\nhi\n")
    files, _ = folders.json()
    old, new = (files["one.eml"][name] for name in ("old", "new"))
    assert (old["verdict"], new["verdict"]) == ("accept", "reject")
    _, text, _ = folders.run()
    assert text.startswith(f"{folders.root}/mail/one.eml: no rule\n- b@own.test: delivered\n")
    assert "+ the rules cannot be applied: " in text


@pytest.mark.parametrize(
    ("name", "code"), [("nothing", ExitCode.NO_INPUT), ("old/10.toml", ExitCode.USAGE)]
)
def test_what_is_no_directory_is_said(folders, name, code):
    folders.rules("", "")
    assert folders.run(mail=name)[0] == code


def test_hostile_files_are_skipped_with_the_reason(folders):
    folders.rules(rule("r", TAG), rule("r", REJECT))
    mail = folders.root / "mail"
    folders.put("good.eml")
    folders.put("empty.eml", b"")
    folders.put("noise.eml", bytes(range(128, 256)) * 20_000)
    folders.put("long.eml", b"To: b@own.test\nX: " + 2 * MIB * b"x")
    folders.put("alone.eml", b"Subject: Hello\n\nhi\n")
    folders.put("unread.eml")
    with (mail / "huge.eml").open("wb") as file:
        file.truncate(300 * MIB)
    os.mkfifo(mail / "pipe.eml")
    (mail / "loop.eml").symlink_to("loop.eml")
    (mail / "round").symlink_to(".")
    (mail / "device.eml").symlink_to("/dev/zero")
    folders.put(os.fsdecode(b"\xff\x1b.eml"), b"")
    _, sums = folders.json()
    assert sums["skipped"] == {
        "no message": 3,
        "not a regular file": 3,
        "a header of more than 1 MiB": 1,
        "no recipient": 1,
        "more than 256 MiB": 1,
    }
    assert (sums["compared"], sums["changed"]) == (2, 2)
    assert "Traceback" not in folders.run()[1]


def test_a_large_message_is_not_held_in_memory(folders):
    body = '{ body = { words = "unlikely" } }'[2:-2]
    folders.rules(
        rule("d", '{ disclaimer = { text = "Bye" } }', f"{body}, size_over = 1")
        + rule("a", HOLD, 'attachment_name = "*.exe"'),
        rule("a", HOLD, 'attachment_name = "*.exe"') + rule("r", TAG, "size_over = 31457280"),
    )
    folders.put("small.eml")
    base = peak_kib(folders)
    line = 76 * b"A" + b"\n"
    with (folders.root / "mail/large.eml").open("wb") as file:
        file.write(HEADER + b"\n")
        for _ in range(30):
            file.write((MIB // len(line) + 1) * line)
    files, _ = folders.json()
    assert files["large.eml"]["contents"] == {
        each: ["x-tag"] for each in ("b@other.test", "c@third.test")
    }
    assert peak_kib(folders) - base < 12 * 1024


def peak_kib(folders) -> int:
    """The memory that a process of its own takes."""
    words = ["policy", "diff", "old", "new", "--mail", "mail"]
    code = (
        "import resource, runpy, sys; sys.argv = ['relay', *sys.argv[1:]]\n"
        "try: runpy.run_module('relay', run_name='__main__')\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folders.root, capture_output=True, check=True
    )
    return int(done.stdout.split()[-1])


def test_rules_see_what_acceptance_would_give_them(folders):
    fields = ["Bcc", "Return-Path", "X-Relay-Id", "Delivered-To"]
    some = ", ".join(f'{{ name = "{name}", matches = "*" }}' for name in fields)
    folders.rules(
        "", rule("hidden", REJECT, f"header = [{some}]") + rule("crlf", HOLD, "size_over = 40")
    )
    folders.put(
        "one.eml",
        b"Return-Path: <a@own.test>\nX-Relay-Id: 0123456789abcdef\n"
        b"Delivered-To: b@own.test\nBcc: c@own.test\nTo: b@own.test\n\n1\n2\n3\n",
    )
    folders.put("two.eml", b"To: b@own.test\n\n" + 9 * b"1\n")  # 45 octets with CRLF
    files, _ = folders.json()
    assert [*files] == ["two.eml"]


def test_a_twin_domain_stands_for_the_own_one_and_reports_are_skipped(folders):
    folders.rules("", rule("r", REJECT, 'recipient = "b@own.test"'))
    config = folders.root / "relay.toml"
    config.write_text(
        'hostname = "r.own.test"\nstate_dir = "s"\n[mailboxes]\ndomains = ["own.test"]\n'
        '[[domain]]\nname = "twin.test"\nalias_of = "own.test"\n'
    )
    folders.put("one.eml", b"From: a@x.test\nTo: b@TWIN.test, b@own.test\nSubject: Hello\n\nhi\n")
    daemon = b"From: Mail <MAILER-DAEMON@%b>\nTo: b@own.test\nAuto-Submitted: auto-replied\n\nhi\n"
    folders.put("other.eml", daemon % b"x.own.test")
    folders.put("report.eml", daemon % b"R.own.test")
    files, sums = folders.json("--config", str(config))
    assert [one["address"] for one in files["one.eml"]["new"]["recipients"]] == ["b@own.test"]
    assert files["report.eml"]["skipped"].startswith("a report or notice of this relay")
    assert (sums["compared"], sums["changed"]) == (2, 2)
