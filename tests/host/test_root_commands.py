"""Commands that root starts leave no file of root in a service's state_dir and mail root."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.relay_process import RelayProcess, until
from tests.support.tables import each_row

SERVICE = 65534  # the user of the service
OK, UNAVAILABLE, NO_PERMISSION, CONFIGURATION = 0, 69, 77, 78
CONFIG = {
    "route": [{"domain": "*", "next_hop": "smtp://127.0.0.1:1"}],
    "delivery": {"retry": ["1h"]},
}


@pytest.fixture(scope="module")
def stopped() -> Iterator[tuple[RelayProcess, str]]:
    """A service of another user, which does not run, and a message in its queue."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    with RelayProcess(config=CONFIG) as relay:
        queue_id = relay.submit("alice@example.test", ["bob@elsewhere.test"])
        relay.until_state(queue_id, "deferred")
        relay.send_mail(to=["alice@example.test"])
        until("it is delivered", lambda: relay.messages("inbox"))
        assert relay.stop() == OK
        relay.folder.chmod(0o755)
        relay.config_file.chmod(0o644)
        (relay.folder / "state/run/lock").unlink()
        for name in ("state", "mail", "accounts.toml"):
            give_away(relay.folder / name)
        yield relay, queue_id


def give_away(path: Path) -> None:
    for one in (path, *path.rglob("*")):
        os.chown(one, SERVICE, SERVICE, follow_symlinks=False)


def files_of_root(relay: RelayProcess) -> list[str]:
    places = [relay.folder / name for name in ("state", "mail", "accounts.toml")]
    every = [one for place in places for one in (place, *place.rglob("*"))]
    return [str(one) for one in every if not (one.lstat().st_uid and one.lstat().st_gid)]


@each_row(
    "words, code",
    [
        ("queue list", OK),
        ("queue show ID", OK),
        ("queue stats", OK),
        ("queue hold --all", UNAVAILABLE),
        ("queue release --all", UNAVAILABLE),
        ("queue reroute --all --to smtp://127.0.0.1:2", UNAVAILABLE),
        ("queue retry --all", UNAVAILABLE),
        ("queue cancel --all --dry-run", UNAVAILABLE),
        ("trace ID", OK),
        ("trace last", OK),
        ("wait ID --timeout 1", UNAVAILABLE),
        ("show ID", UNAVAILABLE),
        ("send --to alice@example.test --body x", CONFIGURATION),
        ("check", None),
        ("storage verify", OK),
        ("storage verify --full --recount", OK),
        ("storage prune", UNAVAILABLE),
        ("storage prune --older-than 0s", UNAVAILABLE),
        ("storage adopt new --yes", None),
        ("account list", OK),
        ("account add eve@example.test", OK),
        ("account token carol@example.test", OK),
        ("account remove dave@example.test", OK),
        ("account unlock alice@example.test", UNAVAILABLE),
        ("policy check", OK),
        ("dkim keygen example.test s1", OK),
        ("dkim show", OK),
        ("reset", UNAVAILABLE),
        ("clock show", UNAVAILABLE),
        ("serve", CONFIGURATION),
    ],
)
def test_no_file_of_root_is_left(
    stopped: tuple[RelayProcess, str], tmp_path: Path, words: str, code: int | None
) -> None:
    relay, queue_id = stopped
    (tmp_path / "one.eml").write_text("Subject: x\n\nhi\n")
    names = {"ID": queue_id, "ONE.eml": tmp_path / "one.eml"}
    done = relay.cli(*(str(names.get(word, word)) for word in words.split()))
    assert code in (None, done.returncode), done
    assert "internal error" not in done.stderr, done.stderr
    assert files_of_root(relay) == []


@each_row("mode", [0o600, 0o640, 0o440])
def test_the_accounts_keep_owner_and_mode(stopped: tuple[RelayProcess, str], mode: int) -> None:
    relay, _ = stopped
    file = relay.folder / "accounts.toml"
    os.chown(file, 0, SERVICE)
    file.chmod(mode)
    assert relay.cli("account", "token", "alice@example.test").returncode == OK
    found = file.stat()
    os.chown(file, SERVICE, SERVICE)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, SERVICE, mode)


def test_new_accounts_belong_to_the_owner_of_the_directory(
    stopped: tuple[RelayProcess, str],
) -> None:
    relay, _ = stopped
    file = relay.folder / "accounts.toml"
    kept = file.rename(file.with_suffix(".kept"))
    try:
        os.chown(relay.folder, SERVICE, SERVICE)
        assert relay.cli("account", "add", "eve@example.test").returncode == OK
        assert (file.stat().st_uid, stat.S_IMODE(file.stat().st_mode)) == (SERVICE, 0o640)
    finally:
        os.chown(relay.folder, 0, 0)
        kept.rename(file)
