"""The environment is read once; what comes with Relay is found."""

from pathlib import Path

import pytest

from relay.base.settings.environment import read_environment, shipped


def test_the_file_is_that_of_the_environment_else_the_system_s(monkeypatch):
    monkeypatch.setenv("RELAY_CONFIG", "/a/relay.toml")
    environment = read_environment()
    assert environment.config == Path("/a/relay.toml")
    monkeypatch.delenv("RELAY_CONFIG")
    assert environment.config == Path("/a/relay.toml")  # read once
    assert read_environment().config == Path("/etc/relay/relay.toml")


def test_an_empty_relay_config_is_as_one_that_is_not_set(monkeypatch):
    monkeypatch.setenv("RELAY_CONFIG", "")
    environment = read_environment()
    assert environment.config == Path("/etc/relay/relay.toml")
    assert not environment.names_config


def test_what_is_set_is_there_and_what_is_not_is_empty(monkeypatch):
    monkeypatch.setenv("RELAY_CRASH_AT", "submission-ready")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    environment = read_environment()
    assert environment.crash_at == environment.variables["RELAY_CRASH_AT"] == "submission-ready"
    assert environment.no_color
    assert environment.notify_socket == ""


def test_shipped_files_are_found():
    assert (shipped("conf") / "relay.toml").is_file()
    assert (shipped("scenarios") / "gmail.toml").is_file()
    with pytest.raises(FileNotFoundError, match="incomplete"):
        shipped("nonsense")
