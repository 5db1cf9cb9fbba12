"""The environment is read once; what comes with Relay is found."""

from pathlib import Path

from relay.base.settings.environment import read_environment


def test_the_file_is_that_of_the_environment_else_the_system_s(monkeypatch):
    monkeypatch.setenv("RELAY_CONFIG", "/a/relay.toml")
    environment = read_environment()
    assert environment.config == Path("/a/relay.toml")
    monkeypatch.delenv("RELAY_CONFIG")
    assert environment.config == Path("/a/relay.toml")  # read once
    assert read_environment().config == Path("/etc/relay/relay.toml")


def test_what_is_set_is_there_and_what_is_not_is_empty(monkeypatch):
    monkeypatch.setenv("RELAY_CRASH_AT", "submission-ready")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    environment = read_environment()
    assert environment.crash_at == environment.variables["RELAY_CRASH_AT"] == "submission-ready"
    assert environment.no_color
    assert environment.notify_socket == ""
