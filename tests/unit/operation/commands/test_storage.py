"""The user and the locks of `relay storage verify`."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

import relay.operation.cli.policy
import relay.operation.cli.send
import relay.operation.cli.storage
import relay.store.spool.sqlite.storage  # noqa: F401 - the other user may not be able to read them
from relay.base.clock import SystemClock
from relay.base.settings.tree import Settings
from relay.operation.app.configuration import srs_of
from relay.operation.app.state_dir import AlreadyRunningError, OwnerLock
from relay.operation.commands.storage import back_up, verify
from tests.support.relay_config import written_settings
from tests.support.spools import new_message, spool_on

NOBODY = 65534


@pytest.fixture
def root() -> Iterator[Path]:
    """Mailboxes of another user, in a place that every user may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root has rights to give up")
    folder = Path(tempfile.mkdtemp(prefix="relay-test-"))
    folder.chmod(0o755)
    (folder / "mail").mkdir(mode=0o700)
    os.chown(folder / "mail", NOBODY, NOBODY)
    yield folder / "mail"
    shutil.rmtree(folder)


def could_start(settings: Settings, state: str) -> bool:
    """Whether a relay with this state_dir would get its locks."""
    lock = OwnerLock(
        settings.state_dir.with_name(state) / "run",
        submissions=settings.mailboxes.root / ".submissions",
    )
    with suppress(AlreadyRunningError):
        lock.take()
        lock.give_back()
        return True
    return False


@pytest.fixture
def stored(tmp_path: Path) -> Settings:
    """A store with one mailbox."""
    settings = written_settings(tmp_path, {})
    for name in ("cur", "new", "tmp"):
        (settings.mailboxes.root / "example.test" / "alice" / name).mkdir(parents=True)
    return settings


LETTERS = ("new/one", "cur/two:2,S", ".Archive/new/three", ".Archive/maildirfolder")


@pytest.fixture
def with_letters(stored: Settings) -> Settings:
    """A store with a large message in its spool, and with dead letters."""

    async def fill() -> None:
        async with spool_on(stored.spool_file) as spool:
            content = b"Subject: x\r\n\r\n" + bytes(200_000)
            large = new_message([("mx:a.test", "x@a.test")], contents=(content,))
            await spool.accept(large, claim=False)

    uvloop.run(fill())
    for name in (*LETTERS, "relay-index"):
        file = stored.state_dir / "dead-letter" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
        os.utime(file, (1000, 1000))
    return stored


def test_a_backup_of_the_spool_has_the_dead_letters(with_letters: Settings, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    manifest = back_up(with_letters, copy, clock=SystemClock())
    assert manifest == json.loads((copy / "manifest.json").read_text())
    (content,) = (copy / "spool.sqlite-content").iterdir()
    assert manifest["contents"] == {"files": 1, "bytes": content.stat().st_size, "missing": []}
    assert manifest["dead_letters"] == len(LETTERS)
    letters = [copy / "dead-letter" / name for name in LETTERS]
    assert [one.stat().st_mtime for one in letters] == [1000] * len(LETTERS)
    summed = {*letters, content, copy / "spool.sqlite"}
    files = {one for one in copy.rglob("*") if one.is_file()}
    assert files == {*summed, copy / "manifest.json", copy / "SHA256SUMS"}
    assert {one.stat().st_mode & 0o777 for one in files} == {0o600}
    command = ["sha256sum", "--check", "SHA256SUMS"]
    done = subprocess.run(command, cwd=copy, check=True, capture_output=True, text=True)
    assert {copy / one.removesuffix(": OK") for one in done.stdout.splitlines()} == summed


def test_a_damaged_key_of_srs_addresses_is_found(stored: Settings) -> None:
    def verified() -> list[tuple[str, ...]]:
        result = verify(stored, clock=SystemClock())
        findings = result["findings"]
        assert result["remaining"] == len(findings)
        return [(one["kind"], one["where"], one["found"]) for one in findings]

    stored.state_dir.mkdir(exist_ok=True)
    assert verified() == []
    assert not (stored.state_dir / "srs.key").exists()
    srs_of(stored)
    assert verified() == []
    file = stored.state_dir / "srs.key"
    file.write_text("")
    assert verified() == [("srs-key", str(file), "nothing")]


@pytest.mark.parametrize("state", ["state", "other"])
def test_verify_works_while_a_relay_runs_and_else_none_can_start(stored, state):
    starts: list[bool] = []

    def verified() -> None:
        stored.state_dir.mkdir(exist_ok=True)
        (stored.state_dir / "srs.key").write_text("")  # a finding
        verify(
            stored,
            clock=SystemClock(),
            on_finding=lambda _: starts.append(could_start(stored, state)),
        )

    verified()
    assert (starts, could_start(stored, state)) == ([False], True)
    relay = OwnerLock(
        stored.state_dir.with_name(state) / "run",
        submissions=stored.mailboxes.root / ".submissions",
    )
    relay.take()
    verified()
    relay.give_back()
    assert (len(starts), could_start(stored, state)) == (2, True)


def test_verify_creates_nothing_without_mail(tmp_path):
    settings = written_settings(tmp_path, {})
    before = sorted(tmp_path.rglob("*"))
    assert verify(settings, clock=SystemClock())["findings"] == []
    assert sorted(tmp_path.rglob("*")) == before
