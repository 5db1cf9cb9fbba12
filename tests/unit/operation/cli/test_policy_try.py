"""`relay policy try`: the options are the words of the rules."""

import json
import os

import pytest
from click.testing import CliRunner

from relay.operation.cli.errors import CommandError, ExitCode, report_error
from relay.operation.cli.root import cli
from tests.support.tables import each_row


@pytest.fixture
def written(tmp_path):
    (tmp_path / "relay.toml").write_text(
        'hostname = "relay.example.test"\nstate_dir = "state"\n[policy]\ndirectory = "rules"\n'
    )
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/10.toml").write_text(
        '[[rule]]\nname = "by the api"\nwhen = { source = "graph" }\nthen = [ { discard = true } ]\n'
    )
    (tmp_path / "one.eml").write_bytes(b"Subject: x\n\nhi\n")
    return tmp_path


@each_row(
    "sender, recipient, found",
    [
        ("ab.c", "c@d.test", '"ab.c"'),
        ("a@b.test", "d.test", '"d.test"'),
        ("a@b.test", "<>", '"<>"'),
    ],
)
def test_an_invalid_address_is_rejected(written, sender, recipient, found):
    arguments = ["policy", "try", str(written / "one.eml"), "--from", sender, "--to", recipient]
    reported = CliRunner().invoke(cli, [*arguments, "--config", str(written / "relay.toml")])
    assert reported.exit_code == 2
    assert f"found {found}, expected an address" in reported.stderr


@pytest.mark.parametrize(
    ("options", "direction"),
    [
        ([], "internal"),
        (["--client", "127.0.0.1"], "internal"),  # of trusted_networks
        (["--client", "192.0.2.1"], "inbound"),
        (["--client", "192.0.2.1", "--login", "a@b.test"], "internal"),
    ],
)
def test_a_client_without_a_login_is_a_stranger_unless_its_network_is_trusted(
    written, options, direction
):
    with (written / "relay.toml").open("a") as file:
        file.write('[mailboxes]\ndomains = ["b.test", "d.test"]\n')
        file.write('[[smtp]]\nlisten = "127.0.0.1:2525"\nrole = "relay"\n')
    (written / "rules/10.toml").write_text(
        '[[rule]]\nname = "in"\nwhen = { direction = "inbound" }\nthen = [ { hold = "wait" } ]\n'
    )
    code, output = tried(written, written / "one.eml", "--json", *options)
    document = json.loads(output)
    [rule] = document["rules"]
    holds = direction == "inbound"
    assert rule["conditions"] == [{"condition": "direction", "value": direction, "holds": holds}]
    assert (code, document["verdict"]) == (0, "hold" if holds else "accept")
    hold = {"reason": "wait", "rule": "in", "expires_s": None, "silent": False, "notice": ""}
    assert document["recipients"][0]["hold"] == (hold if holds else None)


MESSAGE = b"Subject: x\n\nhi\n"
HOSTILE = [b"\xff\xfe.eml", b"two\nlines.eml", b"\x1b[31mred.eml", b"-rf.eml", b"x" * 255]


def tried(written, file, *options):
    """The exit code and all that was printed, as a process has them."""
    arguments = ["policy", "try", "--from", "a@b.test", "--to", "c@d.test", *options]
    arguments += ["--config", str(written / "relay.toml"), "--", str(file)]
    done = CliRunner().invoke(cli, arguments)
    code = report_error(done.exception) if done.exception else 0
    text = str(done.exception) if isinstance(done.exception, CommandError) else ""
    return code, done.output + text


def path_of(written, name):
    return written / os.fsdecode(name)


@each_row("name", HOSTILE)
def test_a_file_of_any_name_is_tried(written, name, monkeypatch):
    monkeypatch.chdir(written)  # a dash leads
    path_of(written, name).write_bytes(MESSAGE)
    code, output = tried(written, os.fsdecode(name))
    assert (code, "verdict: accept" in output) == (0, True)


@each_row("name", HOSTILE)
def test_what_is_said_of_a_file_of_any_name_is_one_printable_line(written, name):
    file = path_of(written, name)
    missing, text = tried(written, file)
    assert (missing, text.isprintable()) == (ExitCode.NO_INPUT, True)
    file.write_bytes(b"no header\n")
    bad, text = tried(written, file)
    assert (bad, text.isprintable()) == (ExitCode.DATA, True)


def test_nobody_gets_a_copy_of_a_message_whose_client_hears_that_all_are_rejected(written):
    (written / "rules/20.toml").write_text(
        '[[rule]]\nname = "x"\nthen = [ { bcc = "a@b.test" }, { reject = "5.7.1 no" } ]\n'
    )
    _, text = tried(written, written / "one.eml")
    assert "a@b.test: gets a copy, unless a client hears the reject (x)\nverdict: reject" in text


def test_a_message_may_come_through_a_pipe(written):
    reader, writer = os.pipe()
    os.write(writer, MESSAGE)
    os.close(writer)
    code, output = tried(written, f"/dev/fd/{reader}")
    os.close(reader)
    assert (code, "verdict: accept" in output) == (0, True)


def test_a_file_without_an_end_is_no_message(written, monkeypatch):
    monkeypatch.setattr("relay.operation.cli.options.INPUT_BYTES_MAX", 1 << 20)
    assert tried(written, "/dev/zero")[0] == ExitCode.DATA


@each_row("field", ["name=" + 9000 * "x", 101 * "a=b;" + "name=x"])
def test_a_message_that_the_rules_cannot_be_applied_to_has_no_verdict(written, field):
    (written / "rules/20.toml").write_text(
        '[[rule]]\nname = "no exe"\nwhen = { attachment_name = "*.exe" }\n'
        "then = [ { discard = true } ]\n"
    )
    (written / "one.eml").write_text(f"Content-Type: a/b; {field}\n\nhi\n")
    code, text = tried(written, written / "one.eml")
    assert (code, "the rules cannot be applied" in text) == (ExitCode.DATA, True)
