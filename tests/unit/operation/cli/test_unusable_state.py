"""A state_dir that cannot be used: the service and its check say the same, and exit with 78."""

import os
from contextlib import closing

import apsw
import pytest

from relay.base.settings.reader import load
from relay.operation.app import state_dir
from relay.store.spool.sqlite.database import open_database
from tests.support import relay_starts

CONFIG = """\
hostname = "relay.example.test"
state_dir = "state"
[http]
listen = ["127.0.0.1:0"]
[mailboxes]
domains = ["example.test"]
accounts = "accounts.toml"
[policy]
directory = "rules"
[dns]
nameservers = ["127.0.0.1:1"]
timeout = "0.1s"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "relay.toml").write_text(CONFIG)
    (tmp_path / "accounts.toml").touch(0o600)
    (tmp_path / "rules").mkdir()
    return tmp_path


def run(folder, *verb):
    command = [*relay_starts.RELAY, *verb, "--config", "relay.toml"]
    return relay_starts.run(command, cwd=folder, env=relay_starts.environment(folder))


def test_a_state_dir_that_is_a_file(folder):
    (folder / "state").touch()
    reported = f"state_dir: {folder}/state is not a directory that this user can write"
    for verb in ("serve", "check"):
        done = run(folder, verb)
        assert done.returncode == 78, done.stderr
        assert done.stderr.splitlines()[0] == reported
    assert done.stdout.count("spool") == 0, "a spool that cannot be opened is not in order"
    assert "spool: " in done.stderr


@pytest.mark.parametrize("schema", [1, 10])
def test_a_spool_from_before_the_first_release(folder, schema):
    (folder / "state").mkdir()
    spool = folder / "state/spool.sqlite"
    open_database(spool).close()
    with closing(apsw.Connection(str(spool))) as connection:
        connection.execute(f"PRAGMA application_id = 0; PRAGMA user_version = {schema}")
    kept = spool.read_bytes()
    for verb in (["serve"], ["check"], ["storage", "verify"]):
        done = run(folder, *verb)
        assert done.returncode == 78, done.stderr
        assert "made by a Relay before 0.2.0" in done.stderr
        assert "empty the queue with the version that made it" in done.stderr
        assert spool.read_bytes() == kept


def test_a_spool_that_is_another_users(folder, monkeypatch):
    (folder / "state/run").mkdir(parents=True)
    spool = folder / "state/spool.sqlite"
    spool.touch()
    allowed = os.access
    monkeypatch.setattr(
        state_dir.os, "access", lambda path, mode, **_: path != spool and allowed(path, mode)
    )
    reported = state_dir.unusable_state(load(folder / "relay.toml", {}))
    assert reported == f"state_dir: {spool} cannot be written by this user"
