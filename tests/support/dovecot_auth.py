"""A private Dovecot that serves its auth clients alone, at a Unix socket with its own users.

    with DovecotAuth({"bob@dove.test": "{SHA512-CRYPT}$6$..."}) as dovecot:
        ... dovecot.path is asked whether a password is right ...

It touches no other Dovecot of the machine, and is ended by its pid. Raises NoDovecotError, with the
reason to skip, where it is not installed or there are no rights.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.support.dovecot import NoDovecotError, dovecot_program, dovecot_version
from tests.support.relay_process import WAIT_S, until

_CONFIGURATION = """\
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
protocols =
ssl = no
auth_mechanisms = {mechanisms}
auth_failure_delay = 0
default_internal_group = nogroup
"""
_BY_VERSION = {
    "2.3": """\
passdb {{
  driver = passwd-file
  args = username_format=%u {folder}/users
}}
""",
    "2.4": """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
passdb passwd-file {{
  passwd_file_path = {folder}/users
}}
""",
}


class DovecotAuth:
    """`users` have these passwords, in Dovecot's forms. `service` is a part of dovecot.conf."""

    def __init__(
        self, users: Mapping[str, str], *, service: str = "", mechanisms: str = "plain"
    ) -> None:
        if os.geteuid() != 0:
            raise NoDovecotError("dovecot's auth server needs root")
        self._command, self._version = dovecot_program(), dovecot_version()
        self._users, self._service, self._mechanisms = users, service, mechanisms
        self.folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="relay-dovecot-"))
        try:
            self.folder.chmod(0o755)
            (self.folder / "run").mkdir(mode=0o755)
            self.write_users(self._users)
            text = _BY_VERSION[self._version] + _CONFIGURATION
            (self.folder / "dovecot.conf").write_text(
                text.format(folder=self.folder, mechanisms=self._mechanisms) + self._service
            )
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def path(self) -> Path:
        """The socket for auth clients, which is there by default."""
        return self.folder / "run" / "auth-client"

    def write_users(self, users: Mapping[str, str]) -> None:
        """Have these users from now on."""
        part = self.folder / "users.part"
        part.write_text("".join(f"{user}:{password}::::::\n" for user, password in users.items()))
        part.chmod(0o644)
        part.replace(self.folder / "users")

    def start(self) -> None:
        """Start the daemon, and wait for its socket."""
        self._process = subprocess.Popen(
            [self._command, "-F", "-c", str(self.folder / "dovecot.conf")]
        )
        log = self.folder / "log"

        def is_ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, log.read_text() if log.exists() else "no log"
            return self.path.exists()

        until("Dovecot listens", is_ready)

    def stop(self) -> None:
        """End the daemon; its socket is gone."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_S)
            self._process = None
            self.path.unlink(missing_ok=True)
