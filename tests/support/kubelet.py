"""What a kubelet does to the volumes of a pod.

`podman kube play` needs control groups, which a container in a container does not have: a pod is `podman run` in the
tests, with the flags that a kubelet means.
"""

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml


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


class Pod:
    """A pod of a manifest, whose volumes are in `folder`. `secrets` are the files of each Secret."""

    def __init__(
        self, text: str, name: str, folder: Path, secrets: Mapping[str, Mapping[str, str]]
    ) -> None:
        items = [*yaml.safe_load_all(text)]
        made = {one["metadata"]["name"]: one["spec"] for one in items if "spec" in one}
        spec = made[re.sub(r"-\d$", "", name)]
        self.spec: dict[str, Any] = spec["template"]["spec"]
        self._claims = [one["metadata"] for one in spec.get("volumeClaimTemplates", ())]
        self._maps = {one["metadata"]["name"]: one["data"] for one in items if "data" in one}
        self._name, self._folder, self._secrets = name, folder, secrets

    def mount(self) -> None:
        """Make its volumes, or those of the pod before it ready for this one."""
        group = self.spec["securityContext"]["fsGroup"]
        for volume in (*self.spec["volumes"], *self._claims):
            place = self._folder / volume["name"]
            if of := volume.get("configMap"):
                project(place, self._maps[of["name"]])
            elif of := volume.get("secret"):
                project(place, self._secrets[of["secretName"]], mode=of["defaultMode"], group=group)
            else:
                if "emptyDir" in volume:
                    shutil.rmtree(place, ignore_errors=True)
                give(place, group)

    def options(self, container: Mapping[str, Any]) -> list[str]:
        """Return the options of `run` for a container."""
        who = self.spec["securityContext"] | container["securityContext"]
        options = [f"--cap-drop={name}" for name in who["capabilities"]["drop"]]
        options += ["--read-only"] * who["readOnlyRootFilesystem"]
        options += ["--security-opt=no-new-privileges"] * (not who["allowPrivilegeEscalation"])
        user = f"--user={who['runAsUser']}:{who['runAsGroup']}"
        options += [user, f"--group-add={who['fsGroup']}"]
        for one in container.get("env", ()):
            of = one.get("valueFrom", {}).get("secretKeyRef")
            text = self._secrets[of["name"]][of["key"]] if of else one.get("value", self._name)
            options.append(f"--env={one['name']}={text}")
        for one in container["volumeMounts"]:
            end = ":ro" if one.get("readOnly") else ""
            options.append(f"--volume={self._folder / one['name']}:{one['mountPath']}{end}")
        return options
