"""With whose rights `relay storage verify` works."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.app.storage import as_owner

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


def test_root_acts_as_the_owner_and_is_root_again(root):
    with as_owner(root):
        (root / "made").mkdir()
        with pytest.raises(PermissionError):
            (root.parent / "made").mkdir()
    status = (root / "made").stat()
    assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY)
    assert (os.geteuid(), os.getegid()) == (0, 0)
    (root.parent / "made").mkdir()


@pytest.mark.parametrize("name", ["own", "missing"])
def test_nothing_changes_where_the_mailboxes_are_ones_own(tmp_path, name):
    (tmp_path / "own").mkdir()
    with as_owner(tmp_path / name):
        (tmp_path / "made").touch()
    assert (tmp_path / "made").stat().st_uid == os.geteuid()
