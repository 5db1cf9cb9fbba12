"""File systems that lack what Relay needs: `relay check` and a start say the same words. A disk that is full is none."""

import shutil
from pathlib import Path

import pytest

from relay.base.settings.reader import load
from relay.operation.app.probes import PREFIX, missing_capabilities
from tests.support.disks import filled, mounted, read_only, small_disk
from tests.support.relay_process import RelayProcess


@pytest.mark.parametrize(
    ("mount", "need"),
    [
        ("mergerfs -o cache.files=off", "mmap and locks, for SQLite: mergerfs has `cache"),
        ("bindfs -o perms=a+rwX", "file modes: NTFS has the mount option `umask=077`"),
        ("bindfs -o rename-deny", "renames over a file"),
    ],
)
def test_a_start_and_a_check_name_what_a_file_system_lacks(
    serve, tmp_path: Path, mount: str, need: str
) -> None:
    relay: RelayProcess = serve()
    relay.stop()
    below, at = tmp_path / "below", relay.folder / "state"
    below.mkdir()
    shutil.rmtree(at)
    at.mkdir()
    with mounted(below, at, by=f"-t fuse.{mount}"):
        relay.start(wait=False)
        assert relay.wait_end() == 78
        done = relay.cli("check")
        fault = relay.log.splitlines()[-1]
        assert fault.startswith(f"{at}: state_dir: needs {need}")
        assert done.returncode == 78
        assert fault in done.stderr.splitlines()
    assert list(below.iterdir()) == []


def test_a_disk_that_fails_lacks_nothing(serve, tmp_path: Path) -> None:
    relay: RelayProcess = serve()
    settings = load(relay.folder / "relay.toml", {})
    relay.stop()
    with small_disk(relay.folder / "state", size_bytes=1 << 20), filled(relay.folder / "state"):
        assert missing_capabilities(settings, with_root=True) == {}
    with read_only(relay.folder / "mail"):
        assert missing_capabilities(settings, with_root=True) == {}


def test_a_killed_check_leaves_a_folder_for_the_next_start_alone(serve, tmp_path: Path) -> None:
    relay: RelayProcess = serve()
    relay.stop()
    left = [relay.folder / part / f"{PREFIX}killed" for part in ("state", "state/run", "mail")]
    for folder in left:
        shutil.copytree(relay.folder / "state", folder, ignore=lambda *_: ["run", PREFIX])
    assert relay.cli("backup", str(tmp_path / "backup")).returncode == 0
    assert list((tmp_path / "backup").rglob(f"{PREFIX}*")) == []
    assert relay.cli("storage", "verify").returncode == 0
    relay.start()
    assert [folder for folder in left if folder.exists()] == []
