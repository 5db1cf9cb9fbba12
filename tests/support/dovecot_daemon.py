"""A private Dovecot daemon: own configuration, sockets, users and Maildirs.

    with DovecotAuth({"bob@dove.test": "{SHA512-CRYPT}$6$..."}) as dovecot:
        ... dovecot.path is asked whether a password is right ...
    with DovecotLmtp({"alice@dove.test": None, "full@dove.test": 1}, services=...) as dovecot:
        ... dovecot.port or dovecot.path takes mail, dovecot.mail("alice@dove.test") reads it ...

It touches no other Dovecot of the machine, and is ended by its pid. Raises NoDovecotError, with the
reason to skip, where it is not installed or there are no rights.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from tests.support.dovecot import NoDovecotError, dovecot_program, dovecot_version
from tests.support.ports import free_port
from tests.support.relay_process import WAIT_S, until
from tests.support.unpacked import UNPACKED

_PLACES = (Path("/usr/lib/dovecot/lmtp"), UNPACKED / "lib/dovecot/lmtp")
_NOBODY = 65534
_COMMON = """\
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
ssl = no
default_internal_group = nogroup
"""
_AUTH = """\
protocols =
auth_mechanisms = {mechanisms}
auth_failure_delay = 0
"""
_AUTH_BY_VERSION = {
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
_LMTP = """\
protocols = lmtp
listen = 127.0.0.1
first_valid_uid = 1
first_valid_gid = 0
lmtp_rcpt_check_quota = yes
service lmtp {{
  executable = {lmtp}
}}
"""
_LMTP_BY_VERSION = {
    "2.3": """\
mail_home = {folder}/mail/%u
mail_location = maildir:{folder}/mail/%u
mail_plugins = quota
plugin {{
  quota = maildir:User quota
}}
passdb {{
  driver = passwd-file
  args = username_format=%u {folder}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {folder}/users
  override_fields = uid={uid} gid={uid}
}}
""",
    "2.4": """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
mail_home = {folder}/mail/%{{user}}
mail_driver = maildir
mail_path = {folder}/mail/%{{user}}
mail_plugins {{
  quota = yes
}}
quota user {{
  driver = maildir
  storage_grace = 0
}}
passdb passwd-file {{
  passwd_file_path = {folder}/users
}}
userdb passwd-file {{
  passwd_file_path = {folder}/users
  fields {{
    uid = {uid}
    gid = {uid}
  }}
}}
""",
}
_QUOTA_FIELD = {"2.3": "userdb_quota_rule=*:bytes=", "2.4": "userdb_quota_storage_size="}


class _Dovecot:
    """The daemon, with `configuration` of its version; it listens once its socket is there."""

    socket: ClassVar[str]

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise NoDovecotError("dovecot's servers need root")
        self._command, self.version = dovecot_program(), dovecot_version()
        self.folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def configuration(self) -> str:
        """Make what it needs in the folder; return what is its own of dovecot.conf."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="relay-dovecot-"))
        try:
            self.folder.chmod(0o755)
            (self.folder / "run").mkdir(mode=0o755)
            # the version comes first
            text = self.configuration() + "\n" + _COMMON.format(folder=self.folder)
            (self.folder / "dovecot.conf").write_text(text)
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
        """Its socket, which is there by default."""
        return self.folder / "run" / self.socket

    def start(self) -> None:
        """Start the daemon, and wait for its socket."""
        words = [self._command, "-F", "-c", str(self.folder / "dovecot.conf")]
        process = self._process = subprocess.Popen(words)
        log = self.folder / "log"

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text() if log.exists() else "no log"
            return self.path.exists()

        until("Dovecot listens", is_ready)

    def stop(self) -> None:
        """End the daemon; its socket is gone."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_S)
            self._process = None
            self.path.unlink(missing_ok=True)


class DovecotAuth(_Dovecot):
    """It serves auth clients alone. `users` have these passwords, in Dovecot's forms. `service` is a part
    of dovecot.conf.
    """

    socket = "auth-client"

    def __init__(
        self, users: Mapping[str, str], *, service: str = "", mechanisms: str = "plain"
    ) -> None:
        super().__init__()
        self._users, self._service, self._mechanisms = users, service, mechanisms

    def configuration(self) -> str:
        self.write_users(self._users)
        text = _AUTH_BY_VERSION[self.version] + _AUTH
        return text.format(folder=self.folder, mechanisms=self._mechanisms) + self._service

    def write_users(self, users: Mapping[str, str]) -> None:
        """Have these users from now on."""
        part = self.folder / "users.part"
        part.write_text("".join(f"{user}:{password}::::::\n" for user, password in users.items()))
        part.chmod(0o644)
        part.replace(self.folder / "users")


class DovecotLmtp(_Dovecot):
    """It takes mail by LMTP. `people` may have so many bytes each, None for any. `services` has a part of
    dovecot.conf for each version, of which address and port are replaced.
    """

    socket = "lmtp"

    def __init__(self, people: Mapping[str, int | None], *, services: Mapping[str, str]) -> None:
        found = [place for place in _PLACES if place.exists()]
        if not found:
            raise NoDovecotError("dovecot-lmtpd is not installed")
        super().__init__()
        self.port = free_port()
        self._lmtp, self._people = found[0], people
        service = services[self.version]
        self._service = service.replace("192.0.2.10", "127.0.0.1").replace("24\n", f"{self.port}\n")

    def configuration(self) -> str:
        (self.folder / "mail").mkdir(mode=0o755)
        os.chown(self.folder / "mail", _NOBODY, _NOBODY)
        users = (
            f"{address}:::::::" + ("" if size is None else f"{_QUOTA_FIELD[self.version]}{size}")
            for address, size in self._people.items()
        )
        (self.folder / "users").write_text("\n".join(users) + "\n")
        text = _LMTP_BY_VERSION[self.version] + _LMTP
        return text.format(folder=self.folder, uid=_NOBODY, lmtp=self._lmtp) + self._service

    def mail(self, address: str) -> list[bytes]:
        """The content of each message that somebody has."""
        return [file.read_bytes() for file in sorted(self.folder.glob(f"mail/{address}/new/*"))]

    def fill(self, address: str) -> None:
        """Put a message of 2,000 octets into a mailbox."""
        maildir = self.folder / "mail" / address
        for name in ("cur", "new", "tmp"):
            (maildir / name).mkdir(parents=True)
        (maildir / "new/1.fills.it,S=2000").write_bytes(b"Subject: x\n\n".ljust(2000, b"x"))
        for one in (maildir, *maildir.rglob("*")):
            os.chown(one, _NOBODY, _NOBODY)
