"""`relay reload` says what came of it: as exit code, in the answer, in the metrics, to systemd."""

import json
import socket
import time

import pytest

from tests.integration.test_reload import FAILING, FAULTY, NO_SPAM, hang_up
from tests.support.relay_config import to_toml
from tests.support.relay_process import RelayProcess, until
from tests.support.service_manager import ServiceManager

CONFIGURATION, UNAVAILABLE = 78, 69
SUCCESSFUL = "relay_config_last_reload_successful"
READ_AT = "relay_config_last_reload_success_timestamp_seconds"


@pytest.fixture
def manager():
    with ServiceManager() as manager:
        yield manager


@pytest.fixture
def relay(manager):
    with RelayProcess(environment=manager.environment) as relay:
        yield relay


def test_the_next_message_meets_what_was_reloaded(relay):
    (relay.folder / "policies" / "10-spam.toml").write_text(NO_SPAM)
    done = relay.cli("reload")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "reloaded: 1 rule, 0 new certificates\n"
    identity = relay.send_mail(to=["bob@example.test"], subject="spam")
    assert relay.until_final(identity)["state"] == "failed"


def test_what_needs_a_restart_is_printed_with_both_values(relay):
    relay.write_config(relay.config | {"hostname": "other.example.test"})
    done = relay.cli("reload")
    assert done.returncode == 0
    needed = 'needs a restart: hostname: "relay.example.test" -> "other.example.test"'
    assert done.stdout.splitlines()[1:] == [needed]
    assert relay.cli_json("reload") == {
        "reloaded": True, "faults": [], "rules": 0, "new_certificates": 0,
        "needs_restart": [
            {"key": "hostname", "old": '"relay.example.test"', "new": '"other.example.test"'}
        ],
    }  # fmt: skip


@pytest.mark.parametrize("text", [FAULTY, FAILING, "[[rule"], ids=["fault", "test", "no TOML"])
def test_a_reload_that_changes_nothing_fails_with_the_faults(relay, manager, text):
    manager.until("READY=1")
    assert relay.metric(SUCCESSFUL) == 1
    read_at = relay.metric(READ_AT)
    file = relay.folder / "policies" / "10-spam.toml"
    file.write_text(text)
    done = relay.cli("reload")
    assert done.returncode == CONFIGURATION
    assert f"{file}:" in done.stderr
    assert "the previous configuration stays active" in done.stderr
    assert done.stdout == ""
    assert (relay.metric(SUCCESSFUL), relay.metric(READ_AT)) == (0, read_at)
    manager.until("RELOADING=1")
    (status,) = [one for one in manager.until("READY=1") if one.startswith("STATUS=")]
    assert status.startswith("STATUS=not reloaded, ")
    assert f"{file}:" in status
    file.write_text(NO_SPAM)
    assert relay.cli("reload").returncode == 0
    assert relay.metric(SUCCESSFUL) == 1
    assert read_at < relay.metric(READ_AT) <= time.time() + 1


@pytest.mark.parametrize("end", ["unknown = 1\n", "[http\n"], ids=["unknown key", "no TOML"])
def test_the_relay_hears_of_a_faulty_relay_toml_too(relay, end):
    """It reports the fault itself, so that its metric says so."""
    relay.config_file.write_text(to_toml(relay.config) + "\n[observe]\n" + end)
    done = relay.cli("reload")
    assert done.returncode == CONFIGURATION
    assert f"{relay.config_file}:" in done.stderr
    assert relay.metric(SUCCESSFUL) == 0
    assert "not reloaded" in relay.log


def test_the_service_manager_sees_each_reload(relay, manager):
    manager.until("READY=1")
    assert relay.cli("reload").returncode == 0
    began = manager.listen()
    assert began[0] == "RELOADING=1"
    monotonic_us = int(began[1].removeprefix("MONOTONIC_USEC="))
    assert 0 <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) / 1000 - monotonic_us < 60_000_000
    ended = manager.listen()
    assert ended[0] == "READY=1"
    assert ended[1].startswith("STATUS=reloaded at ")
    hang_up(relay, '"event":"reloaded"')
    assert (manager.listen()[0], manager.listen()[0]) == ("RELOADING=1", "READY=1")


def test_without_a_relay_it_is_unavailable(relay):
    assert relay.stop() == 0
    done = relay.cli("reload")
    assert done.returncode == UNAVAILABLE
    assert "no relay is running" in done.stderr


def test_a_relay_that_does_not_answer_is_not_waited_for_without_end(relay, monkeypatch):
    from relay.operation.cli import control as command

    monkeypatch.setattr(command, "_RELOAD_S_MAX", 0.2)
    assert relay.stop() == 0
    with socket.socket(socket.AF_UNIX) as silent:
        path = relay.folder / "state/run/control.sock"
        path.unlink(missing_ok=True)
        silent.bind(str(path))
        silent.listen()
        from click.testing import CliRunner

        from relay.base.running_relay import ControlUnavailableError

        done = CliRunner().invoke(command.reload, ["--config", str(relay.config_file)])
    assert isinstance(done.exception, ControlUnavailableError)
    assert "did not answer" in str(done.exception)


@pytest.fixture
def smarthost():
    with RelayProcess() as smarthost:
        yield smarthost


def test_a_changed_password_of_a_next_hop_counts(relay, smarthost):
    """Also for mail that waits."""
    host, port = smarthost.smtp_address()
    password = relay.folder / "password"
    password.write_text("wrong\n")
    route = {
        "domain": "*", "next_hop": f"smtp://{host}:{port}",
        "auth": {"user": "alice@example.test", "password_file": "password"},
    }  # fmt: skip
    relay.stop()
    relay.write_config(relay.config | {"route": [route]})
    relay.start()
    identity = relay.send_mail(to=["x@a.test"], subject="through the provider")
    found = relay.until_state(identity, "deferred")
    assert "535" in json.dumps(found)
    password.unlink()
    done = relay.cli("reload")
    assert done.returncode == CONFIGURATION
    assert "password" in done.stderr
    password.write_text("alice\n")
    assert relay.cli("reload").returncode == 0
    until("retried", lambda: relay.cli("queue", "retry", "--all").returncode == 0)
    relay.until_state(identity, "relayed")
