"""What a kubelet does to the volumes of a pod.

`podman kube play` needs control groups, which a container in a container does not have: a pod is `podman run` in the
tests, with the flags that a kubelet means.
"""

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest


def project(place: Path, files: Mapping[str, str], *, mode: int = 0o644, group: int = 0) -> None:
    """Write the files of a ConfigMap or Secret, or replace all at once: each is a link through ..data."""
    if os.geteuid():
        pytest.skip("a kubelet is root")
    made, data, new = place / f"..{secrets.token_hex(4)}", place / "..data", place / "..data_tmp"
    made.mkdir(parents=True)
    for name, text in files.items():
        (made / name).write_text(text)
        (made / name).chmod(mode)
        os.chown(made / name, 0, group)
        if not (place / name).is_symlink():
            (place / name).unlink(missing_ok=True)
            (place / name).symlink_to(f"..data/{name}")
    old = data.resolve()
    new.symlink_to(made.name)
    new.replace(data)
    if old != data:
        shutil.rmtree(old)


def give(volume: Path, group: int) -> None:
    """Let the group of fsGroup write a volume, as before each start (fsGroupChangePolicy Always)."""
    volume.mkdir(parents=True, exist_ok=True)
    for path in (volume, *volume.rglob("*")):
        if not path.is_symlink():
            os.chown(path, -1, group)
            path.chmod(path.stat().st_mode | (0o2770 if path.is_dir() else 0o660))
