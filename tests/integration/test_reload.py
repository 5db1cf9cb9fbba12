"""SIGHUP reloads rules and accounts; a faulty file changes nothing."""

import contextlib
import json
import os
import signal
import smtplib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.relay_config import account, to_toml
from tests.support.relay_process import RelayProcess, until
from tests.support.reports import report_about

NO_SPAM = """
[[rule]]
name = "no spam"
when = { subject = "*spam*" }
then = [ { reject = "5.7.1 We have a word for that" } ]
"""
FAULTY = NO_SPAM.replace("subject", "subjekt")
FAILING = (
    NO_SPAM
    + """
[[test]]
name = "nothing is refused"
from = "a@example.test"
to = ["b@example.test"]
subject = "spam"
expect = { verdict = "accept" }
"""
)


def hang_up(relay: RelayProcess, word: str) -> None:
    """Send SIGHUP and wait until the log says how it went."""
    before = relay.log.count(word)
    assert relay.process is not None
    os.kill(relay.process.pid, signal.SIGHUP)
    until(f"{word} in the log", lambda: relay.log.count(word) > before)


def state_of(relay: RelayProcess, subject: str) -> str:
    identity = relay.send_mail(to=["bob@example.test"], subject=subject)
    return str(relay.until_final(identity)["state"])


@pytest.fixture
def relay():
    with RelayProcess() as relay:
        yield relay


def test_new_rules_apply_to_the_next_message(relay):
    assert state_of(relay, "spam") == "delivered"
    (relay.folder / "policies" / "10-spam.toml").write_text(NO_SPAM)
    hang_up(relay, "reloaded")
    assert state_of(relay, "spam") == "failed"
    assert state_of(relay, "ham") == "delivered"


@pytest.mark.parametrize("text", [FAULTY, FAILING, "[[rule"], ids=["fault", "test", "no TOML"])
def test_a_faulty_rule_file_is_named_and_the_active_rules_stay(relay, text):
    file = relay.folder / "policies" / "10-spam.toml"
    file.write_text(NO_SPAM)
    hang_up(relay, "reloaded")
    file.write_text(text)
    hang_up(relay, "the previous configuration stays active")
    assert "10-spam.toml:" in relay.log
    assert state_of(relay, "spam") == "failed"


def test_accounts_are_added_and_removed(relay):
    file = relay.folder / "accounts.toml"
    assert relay.graph("GET", "/me", token="erin").status == 401
    file.write_text(to_toml({"account": [account(name) for name in ("erin", "bob")]}))
    hang_up(relay, "reloaded")
    assert relay.graph("GET", "/me", token="erin").status == 200
    assert relay.graph("GET", "/me", token="alice").status == 401
    assert relay.stop() == 0


@contextmanager
def logged_in(relay: RelayProcess, name: str = "alice") -> Iterator[smtplib.SMTP]:
    with contextlib.closing(relay.smtp()) as smtp:
        smtp.ehlo("client.test")
        smtp.login(f"{name}@example.test", name)
        yield smtp


def codes(smtp: smtplib.SMTP, *commands: str) -> list[int]:
    return [smtp.docmd(command)[0] for command in commands]


def has_ended(smtp: smtplib.SMTP) -> bool:
    code, text = smtp.docmd(MAIL[0])
    assert (code, text[:53]) == (421, b"4.7.0 The account or its password was changed; log in")
    return smtp.sock.recv(1) == b""


MAIL = ("MAIL FROM:<alice@example.test>", "RCPT TO:<bob@example.test>", "DATA")


def test_a_changed_password_ends_open_smtp_sessions(relay):
    with (
        logged_in(relay) as idle,
        logged_in(relay) as in_content,
        logged_in(relay, "bob") as other,
    ):
        assert codes(in_content, *MAIL) == [250, 250, 354]
        in_content.send(b"Subject: too late\r\n\r\nx\r\n")
        done = relay.cli("account", "password", "alice@example.test", stdin="another\n")
        assert done.returncode == 0, done.stderr
        assert codes(idle, "NOOP") == [250]  # until the relay reads the file
        hang_up(relay, "reloaded")
        assert has_ended(idle)
        assert codes(in_content, ".") == [421]
        assert codes(other, "NOOP") == [250]
    with contextlib.closing(relay.smtp()) as smtp:
        smtp.ehlo("client.test")
        with pytest.raises(smtplib.SMTPAuthenticationError):
            smtp.login("alice@example.test", "alice")
        smtp.login("alice@example.test", "another")
        smtp.sendmail("alice@example.test", "bob@example.test", "Subject: in time\r\n\r\nx\r\n")
    until("it is delivered", lambda: relay.subjects("bob"))
    assert relay.subjects("bob") == ["in time"]


def test_a_removed_account_ends_its_smtp_sessions(relay):
    with logged_in(relay) as smtp:
        assert relay.cli("account", "remove", "alice@example.test").returncode == 0
        hang_up(relay, "reloaded")
        assert has_ended(smtp)


def test_a_reload_that_leaves_an_account_as_it_is_leaves_its_sessions(relay):
    with logged_in(relay) as smtp:
        hang_up(relay, "reloaded")
        assert codes(smtp, *MAIL) == [250, 250, 354]


def test_milters_are_replaced(relay):
    def replies() -> tuple[int, int]:
        with contextlib.closing(relay.smtp()) as smtp:
            return smtp.ehlo("client.test")[0], smtp.mail("alice@example.test")[0]

    down = {"name": "down", "address": f"unix:{relay.folder}/no.sock"}
    for milters, found in (([down], 451), ([down | {"role": ["local"]}], 250), ([], 250)):
        relay.write_config(relay.config | {"milter": milters})
        hang_up(relay, "reloaded")
        assert replies() == (found, found)


def test_texts_of_reports_are_replaced_and_faulty_ones_keep_those_in_force(relay):
    file = relay.folder / "texts" / "de" / "failure.txt"
    file.parent.mkdir(parents=True)
    file.write_text("Nicht zugestellt: {{ recipients[0].address }}\n")
    reports = {"language": "de", "templates": "texts"}
    relay.write_config(relay.config | {"reports": reports})
    hang_up(relay, "reloaded")
    file.write_text("{{ recipent }}")
    hang_up(relay, "the previous configuration stays active")
    assert "de/failure.txt:1: found an unknown field" in relay.log
    relay.send_mail(to=["nobody@example.test"], subject="to nobody")
    body = report_about(relay, "nobody@example.test").message.get_body(("plain",))
    assert body is not None
    assert body["content-language"] == "de"
    assert body.get_content().strip() == "Nicht zugestellt: nobody@example.test"


def test_a_changed_key_that_needs_a_restart_is_logged_with_both_values(relay):
    folder = relay.folder / "more-policies"
    folder.mkdir()
    (folder / "10-spam.toml").write_text(NO_SPAM)
    changes = {"hostname": "other.example.test", "policy": {"directory": "more-policies"}}
    relay.write_config(relay.config | changes)
    hang_up(relay, "reloaded")
    (line,) = [json.loads(one) for one in relay.log.splitlines() if "restart is needed" in one]
    assert line["key"] == "hostname"
    assert (line["old"], line["new"]) == ('"relay.example.test"', '"other.example.test"')
    with relay.smtp() as client:
        assert client.ehlo()[1].startswith(b"relay.example.test")  # the old value is in force
    assert state_of(relay, "spam") == "failed"  # the new directory is


def test_what_needs_a_restart_is_logged_although_another_file_has_a_fault(relay):
    relay.write_config(relay.config | {"hostname": "other.example.test"})
    (relay.folder / "policies" / "10-spam.toml").write_text(FAULTY)
    hang_up(relay, "the previous configuration stays active")
    assert "a restart is needed" in relay.log
