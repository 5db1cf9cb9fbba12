"""A state_dir that cannot be used: the service and its check say the same, and exit with 78."""

import json
import os
import subprocess
from contextlib import closing

import apsw
import pytest

from relay.base.settings.reader import load
from relay.operation.app import state_dir
from relay.store.spool.sqlite.database import open_database
from tests.support import relay_starts
from tests.unit.operation.commands.test_check import CONFIG

NOBODY = 65534


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "relay.toml").write_text(CONFIG)
    (tmp_path / "accounts.toml").touch(0o600)
    (tmp_path / "policies").mkdir()
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


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ("MYHOST=mx.example.test", ""),
        ("MYHOST_FILE=secret", "the file secret to be readable (Permission denied)"),
        ("", "the environment variable MYHOST to be set"),
    ],
)
def test_check_sees_what_a_process_sees(short_path, variables, expected):
    """The process may have changed its variables: root reads no files for it."""
    if os.getuid():
        pytest.skip("only root can be another user")
    (short_path / "relay.toml").write_text(CONFIG.replace("relay.example.test", "${env:MYHOST}"))
    for name in ("policies", "state"):
        (short_path / name).mkdir()
    (short_path / "accounts.toml").touch(0o600)
    for place in (short_path, *short_path.iterdir()):
        os.chown(place, NOBODY, NOBODY)
    (short_path / "secret").touch(0o600)
    (short_path / "secret").write_text("of root")
    given = dict([variables.split("=")] if variables else [])
    with subprocess.Popen(["sleep", "600"], env=given, user=NOBODY, group=NOBODY) as process:
        words = ("--json", "--as-process", str(process.pid), "--config", "relay.toml")
        own = relay_starts.environment(short_path) | {"MYHOST": "own.example.test"}
        command = [*relay_starts.RELAY, "check", *words]
        done = relay_starts.run(command, cwd=short_path, env=own)
        process.kill()
    refusals = "".join(one["text"] for one in json.loads(done.stdout) if one["refuses_start"])
    assert bool(refusals) == bool(expected), refusals
    assert expected in refusals
    assert "of root" not in done.stdout + done.stderr
