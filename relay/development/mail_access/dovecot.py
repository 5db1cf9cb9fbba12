"""Where Dovecot's programs are, why they cannot be used, and the configuration of a session.

The versions 2.3 and 2.4 have two languages. A mailbox is its user's home, so that neither the
configuration nor a command line names it, and a colon in its path separates nothing.
https://doc.dovecot.org/2.3/ and https://doc.dovecot.org/2.4.1/, "Settings".
"""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from msgspec import Struct

_PLACES = (
    "/usr/lib/dovecot",
    "/usr/libexec/dovecot",
    "/usr/local/libexec/dovecot",
    "/opt/homebrew/opt/dovecot/libexec/dovecot",
    "/usr/local/opt/dovecot/libexec/dovecot",
)
_VERSION_S = 10.0
_VERSIONS = ("2.3", "2.4")
_SPECIAL_USE = {
    "Drafts": "\\Drafts",
    "Sent": "\\Sent",
    "Trash": "\\Trash",
    "Junk": "\\Junk",
    "Archive": "\\Archive",
}
# 2.4 passes on no variable of the environment that is not named
_OF_VERSION = {
    "2.3": "mail_location = maildir:~/",
    "2.4": """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
mail_driver = maildir
mail_path = ~/
import_environment {
  USER = owner
}""",
}
# Without mailbox_list_index = no, an open session never sees a folder that Relay makes.
_CONFIGURATION = """\
base_dir = {run}
log_path = /dev/stderr
stats_writer_socket_path =
ssl = no
first_valid_uid = 1
first_valid_gid = 0
mail_full_filesystem_access = no
mailbox_list_index = no
namespace inbox {{
  type = private
  inbox = yes
  separator = .
{folders}
}}
"""


class Dovecot(Struct, frozen=True):
    """The programs that were found; a path is "" if there is none. `fault`: why none is used."""

    imap: str = ""
    pop3: str = ""
    version: str = ""
    fault: str = ""

    def why_not(self, protocol: str) -> str:
        """Return why "imap" or "pop3" cannot be served, "" if it can."""
        if not getattr(self, protocol):
            return f"Dovecot's {protocol} program is not installed: package dovecot-{protocol}d"
        return self.fault


@cache
def find_dovecot() -> Dovecot:
    """Return Dovecot's programs, as this process found them at first.

    Blocks for a process that says its version.
    """
    places = [Path(place) for place in _PLACES]
    place = next((place for place in places if (place / "imap").exists()), None)
    place = place or next((place for place in places if (place / "pop3").exists()), None)
    if place is None:
        return Dovecot()
    paths = {name: str(place / name) for name in ("imap", "pop3") if (place / name).exists()}
    beside = place.parents[1] / "sbin" / "dovecot"
    version = _version_of(str(beside) if beside.exists() else shutil.which("dovecot"))
    fault = ""
    if version not in _VERSIONS:
        found = f"version {version}" if version else "no version"
        fault = f"expected Dovecot {' or '.join(_VERSIONS)} in {place}, found {found}"
    elif os.geteuid() == 0:
        fault = "the relay runs as root, whom Dovecot's programs refuse: run it as another user"
    return Dovecot(**paths, version=version, fault=fault)


def _version_of(program: str | None) -> str:
    """Return the first two numbers of a version, "" if it is unknown."""
    if program is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - Dovecot
            [program, "--version"], capture_output=True, text=True, timeout=_VERSION_S, check=False
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return ".".join(done.stdout.partition(" ")[0].strip().split(".")[:2])


def session_configuration(version: str, run: Path) -> str:
    """Return the configuration of all sessions; `run` is the run directory."""
    folders = "\n".join(
        f"  mailbox {name} {{\n    special_use = {use}\n  }}" for name, use in _SPECIAL_USE.items()
    )
    return f"{_OF_VERSION[version]}\n{_CONFIGURATION.format(run=run, folders=folders)}"
