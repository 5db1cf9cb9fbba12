"""`relay explain`: exit codes with and without a running relay, and what a person reads."""

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.operation.cli.errors import report_error
from relay.operation.cli.root import cli
from tests.support.relay_config import written_settings
from tests.support.tables import each_row

RULES = """
[[rule]]
name = "no spam"
when = { subject = "*spam*" }
then = [ { reject = "5.7.1 No spam" } ]
[[rule]]
name = "a look"
when = { any = [ { recipient = "held@*" }, { source = "graph" } ] }
then = [ { hold = "first mail" } ]
"""
ROUTES = [
    {"domain": "closed.test", "next_hop": "reject:5.7.9 Not there"},
    {"domain": "kept.test", "next_hop": "capture", "name": "keep"},
    {
        "domain": "host.test",
        "next_hop": "smtp://localhost:2525",
        "name": "smart",
        "tls": "verify",
        "max_rate": "100/1m",
    },
]


@pytest.fixture
def settings(tmp_path: Path):
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "10.toml").write_text(RULES)
    return written_settings(tmp_path, {"route": ROUTES, "delivery": {"retry": ["1m", "5m"]}})


@pytest.fixture
def explained(settings, tmp_path: Path):
    def run(*arguments: str) -> tuple[int, str, str]:
        """The exit code, stdout, and stderr as a process has them."""
        command = ["explain", "--config", str(tmp_path / "relay.toml"), *arguments]
        done = CliRunner().invoke(cli, command, standalone_mode=False)
        code = report_error(done.exception) if done.exception else 0
        return code, done.stdout, f"{done.stderr}{done.exception or ''}"

    return run


@each_row(
    "arguments, code, state",
    [
        (["alice@example.test"], 0, "local"),
        (["x@kept.test"], 0, "captured"),
        (["x@host.test", "--from", "alice@example.test"], 0, "remote"),
        (["nobody@example.test"], 65, "invalid"),
        (["x@closed.test"], 65, "rejected"),
        (["held@kept.test"], 0, "captured"),
        (["held@kept.test", "--from", "alice@example.test"], 0, "held"),
        (["x@host.test", "--ip", "192.0.2.1"], 65, "rejected"),
    ],
)
def test_without_a_relay_the_configuration_answers(explained, arguments, code, state) -> None:
    exited, out, _ = explained("--json", *arguments)
    document = json.loads(out)
    assert (exited, document["state"]) == (code, state)
    assert (document["running"], document["site"]) == (False, None)
    exited, out, _ = explained(*arguments)
    assert exited == code
    assert "no relay is running: there is no " in out
    assert "this is from the configuration" in out


def test_a_person_reads_the_answer_first(explained, tmp_path: Path) -> None:
    (tmp_path / "one.eml").write_bytes(b"Subject: spam again\n\nx\n")
    _, out, _ = explained("x@host.test", "--from", "alice@example.test")
    first, _relay, *others = out.splitlines()
    addresses = {info[4][0] for info in socket.getaddrinfo("localhost", 25)}  # ::1 may be one
    at = next(n for n, line in enumerate(others) if line.startswith("  host"))
    host, _, shown = others[at].rstrip("]").partition("[")
    assert (host, set(shown.split(", "))) == ("  host    0 localhost ", addresses)
    del others[at]
    assert first == "x@host.test goes to smtp://localhost:2525"
    line = (tmp_path / "relay.toml").read_text().splitlines().index('domain = "host.test"')
    assert others == [
        "  from    alice@example.test",
        '  rule    "no spam" depends on the message (subject); --message names one',
        (
            '  rule    "a look" does not match: any "0 of 2", any[0].recipient "x@host.test", '
            'any[1].source "smtp"'
        ),
        f'  route   "smart" ({tmp_path / "relay.toml"}:{line})',
        "  tls     verify, demanded by the route smart",
        "  limits  20 connections, 100 messages in 60 s",
        "  retry   after 1 min, 5 min, and so on",
    ]
    code, out, _ = explained("x@host.test", "--message", str(tmp_path / "one.eml"))
    assert (code, out.splitlines()[0]) == (65, "x@host.test is rejected: 550 5.7.1 No spam")
    assert '"no spam" matches and does reject: subject "spam again"' in out
    _, out, _ = explained("held@kept.test", "--from", "alice@example.test")
    assert out.splitlines()[0] == (
        'held@kept.test is queued for capture, and held: first mail (rule "a look")'
    )
    assert (
        '"a look" matches and does hold: any "1 of 2", any[0].recipient "held@kept.test"\n' in out
    )
