"""Commands of a service whose queue is in PostgreSQL: what they leave to its tools, and what they say
of a server that does not answer. No output has the password.
"""

import shutil
import subprocess

import pytest

from tests.support import relay_starts
from tests.support.postgres import PASSWORD, database_of
from tests.support.spools import new_message, spool_on
from tests.unit.operation.cli.test_unusable_state import CONFIG as SERVICE

CONFIG = f"""\
{SERVICE}[spool]
url = "postgresql://relay:${{file:pw}}@127.0.0.1:PORT/DATABASE"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "accounts.toml").touch(0o600)
    (tmp_path / "rules").mkdir()
    (tmp_path / "pw").write_text(f"{PASSWORD}\n")
    (tmp_path / "pw").chmod(0o600)
    return tmp_path


def run(folder, *words, port=1, database="relay") -> subprocess.CompletedProcess[str]:
    config = CONFIG.replace("PORT", str(port)).replace("DATABASE", database)
    (folder / "relay.toml").write_text(config)
    command = [*relay_starts.RELAY, *words, "--config", "relay.toml"]
    done = relay_starts.run(command, cwd=folder, env=relay_starts.environment(folder))
    assert "secret" not in done.stdout + done.stderr
    return done


def test_what_is_left_to_the_database(folder):
    done = run(folder, "storage", "backup", "copy")
    assert done.returncode == 69
    assert "whose own tools check and repair it; relay backup copies it" in done.stderr
    assert not (folder / "copy").exists()


async def test_a_backup_of_a_file_is_not_restored_into_a_server(
    folder, postgres_server, postgres_url
):
    for name in ("mail/.submissions", "state"):
        (folder / name).mkdir(parents=True)
    async with spool_on(folder / "state/spool.sqlite") as spool:
        await spool.accept(new_message([("mx:a.test", "x@a.test")]), claim=False)
    sqlite = folder / "sqlite.toml"
    sqlite.write_text(CONFIG.partition("[spool]")[0])
    command = [*relay_starts.RELAY, "backup", "copy", "--config", "sqlite.toml"]
    done = relay_starts.run(command, cwd=folder, env=relay_starts.environment(folder))
    assert done.returncode == 0, done.stderr
    for name in ("mail", "state"):
        shutil.rmtree(folder / name)
    place = {"port": postgres_server.port, "database": database_of(postgres_url)}
    shown = f"postgresql://127.0.0.1:{place['port']}/{place['database']}"
    done = run(folder, "restore", "copy", **place)
    expected = f"copy/spool: found the copy of another kind of spool, expected one for {shown}"
    assert (done.returncode, expected in done.stderr) == (65, True), done
    assert not (folder / "state").exists()


def test_a_file_with_the_password_that_others_can_read(folder):
    (folder / "pw").chmod(0o644)
    assert "spool.url: found mode 0644 of" in run(folder, "check").stderr
