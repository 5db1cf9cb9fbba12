"""SIGHUP and `relay reload`: what changes, that a faulty file changes nothing, and who hears what came of it."""

import contextlib
import json
import os
import signal
import smtplib
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.relay_config import account, to_toml
from tests.support.relay_process import RelayProcess, until
from tests.support.reports import report_about
from tests.support.service_manager import ServiceManager

CONFIGURATION, UNAVAILABLE = 78, 69
SUCCESSFUL = "relay_config_last_reload_successful"
READ_AT = "relay_config_last_reload_success_timestamp_seconds"
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
def manager():
    with ServiceManager() as manager:
        yield manager


@pytest.fixture
def relay(manager, serve):
    return serve(environment=manager.environment)


def test_rules_and_accounts_are_those_of_the_last_good_reload(relay, manager):
    rules = relay.folder / "policies" / "10-spam.toml"
    manager.until("READY=1")
    assert (state_of(relay, "spam"), relay.metric(SUCCESSFUL)) == ("delivered", 1)
    rules.write_text(NO_SPAM)
    done = relay.cli("reload")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "reloaded: 1 rule, 0 new certificates\n"
    began = manager.listen()
    assert began[0] == "RELOADING=1"
    monotonic_us = int(began[1].removeprefix("MONOTONIC_USEC="))
    assert 0 <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) / 1000 - monotonic_us < 60_000_000
    ended = manager.listen()
    assert (ended[0], ended[1][:19]) == ("READY=1", "STATUS=reloaded at ")
    assert (state_of(relay, "spam"), state_of(relay, "ham")) == ("failed", "delivered")
    read_at = relay.metric(READ_AT)
    for text in (FAULTY, FAILING, "[[rule"):
        rules.write_text(text)
        done = relay.cli("reload")
        assert (done.returncode, done.stdout) == (CONFIGURATION, "")
        assert f"{rules}:" in done.stderr
        assert "the previous configuration stays active" in done.stderr
        assert (relay.metric(SUCCESSFUL), relay.metric(READ_AT)) == (0, read_at)
        manager.until("RELOADING=1")
        (status,) = [one for one in manager.until("READY=1") if one.startswith("STATUS=")]
        assert status.startswith("STATUS=not reloaded, ")
        assert f"{rules}:" in status
    hang_up(relay, "the previous configuration stays active")
    assert state_of(relay, "spam") == "failed"
    rules.write_text(NO_SPAM)
    assert relay.graph("GET", "/me", token="erin").status == 401
    accounts = [account(name) for name in ("erin", "bob")]
    (relay.folder / "accounts.toml").write_text(to_toml({"account": accounts}))
    hang_up(relay, '"event":"reloaded"')
    assert relay.metric(SUCCESSFUL) == 1
    assert read_at < relay.metric(READ_AT) <= time.time() + 1
    assert relay.graph("GET", "/me", token="erin").status == 200
    assert relay.graph("GET", "/me", token="alice").status == 401
    for end in ("unknown = 1\n", "[http\n"):  # the relay reports the fault itself
        relay.config_file.write_text(to_toml(relay.config) + "\n[observe]\n" + end)
        done = relay.cli("reload")
        assert done.returncode == CONFIGURATION
        assert f"{relay.config_file}:" in done.stderr
        assert relay.metric(SUCCESSFUL) == 0
    relay.write_config(relay.config)
    assert relay.stop() == 0
    done = relay.cli("reload")
    assert (done.returncode, "no relay is running" in done.stderr) == (UNAVAILABLE, True)


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
    with logged_in(relay) as idle, logged_in(relay) as in_content, logged_in(relay, "bob") as other:
        assert codes(in_content, *MAIL) == [250, 250, 354]
        in_content.send(b"Subject: too late\r\n\r\nx\r\n")
        hang_up(relay, "reloaded")  # which leaves accounts and their sessions as they are
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


def test_a_changed_key_that_needs_a_restart_is_told(relay):
    folder = relay.folder / "more-policies"
    folder.mkdir()
    (folder / "10-spam.toml").write_text(FAULTY)
    changes = {"hostname": "other.example.test", "policy": {"directory": "more-policies"}}
    relay.write_config(relay.config | changes)
    hang_up(relay, "the previous configuration stays active")  # for the fault in another file
    (line,) = [json.loads(one) for one in relay.log.splitlines() if "restart is needed" in one]
    assert line["key"] == "hostname"
    (folder / "10-spam.toml").write_text(NO_SPAM)
    done = relay.cli("reload")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == ["needs a restart: hostname"]
    assert relay.cli_json("reload") == {
        "reloaded": True,
        "faults": [],
        "rules": 1,
        "new_certificates": 0,
        "needs_restart": [{"key": "hostname"}],
        "lost": [],
    }
    with relay.smtp() as client:
        assert client.ehlo()[1].startswith(b"relay.example.test")  # the old value is in force
    assert state_of(relay, "spam") == "failed"  # the new directory is


def test_a_changed_password_of_a_next_hop_counts(relay, serve):
    """Also for mail that waits."""
    password = relay.folder / "password"
    password.write_text("wrong\n")
    auth = {"user": "alice@example.test", "password_file": "password"}
    relay.stop()
    smarthost = serve()
    host, port = smarthost.smtp_address()
    route = {"domain": "*", "next_hop": f"smtp://{host}:{port}", "auth": auth}
    relay.write_config(relay.config | {"route": [route]})
    relay.start()
    identity = relay.send_mail(to=["x@a.test"], subject="through the provider")
    assert "535" in json.dumps(relay.until_state(identity, "deferred"))
    password.unlink()
    done = relay.cli("reload")
    assert done.returncode == CONFIGURATION
    assert "password" in done.stderr
    password.write_text("alice\n")
    assert relay.cli("reload").returncode == 0
    assert relay.cli("queue", "retry", "--all").returncode == 0
    relay.until_state(identity, "relayed")
