"""OpenDKIM as a receiver: which messages hold, by the public keys in a file (TestPublicKeys of opendkim.conf(5)).

`make test` unpacks Debian's package into .system, because an installed one starts a service. Raises
NoOpenDkimError, with the reason to skip, where it is missing.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.unpacked import UNPACKED, unpacked_libraries


class NoOpenDkimError(Exception):
    """OpenDKIM is not there; the text says what to do."""


def held_by_opendkim(
    folder: Path, messages: Sequence[bytes], records: Mapping[str, bytes]
) -> list[bool]:
    """Whether the first signature of each message holds. It stops at the first message whose header it refuses."""
    program = shutil.which("opendkim", path="/usr/sbin:/usr/bin") or UNPACKED / "sbin/opendkim"
    if not Path(program).exists():
        raise NoOpenDkimError("opendkim is not installed: tests/system-packages.sh")
    configuration, keys = folder / "opendkim.conf", folder / "keys"
    configuration.write_text(f"TestPublicKeys {keys}\nMode v\n")
    keys.write_bytes(
        b"".join(name.encode() + b" " + text + b"\n" for name, text in records.items())
    )
    files = [folder / f"{number}.eml" for number in range(len(messages))]
    for file, octets in zip(files, messages, strict=True):
        file.write_bytes(octets)
    done = subprocess.run(
        [program, "-x", configuration, "-t", ",".join(map(str, files))],
        env=os.environ | unpacked_libraries(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=False,
    )
    lines = done.stdout.decode(errors="replace").splitlines()
    held = {one.partition(": ")[2].partition(": ")[0] for one in lines if one.endswith("succeeded")}
    return [str(file) in held for file in files]
