"""A private Dovecot that takes mail by LMTP: own configuration, sockets and Maildirs, on a free loopback port.

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
from typing import Self

from tests.support.dovecot import NoDovecotError, dovecot_program, dovecot_version
from tests.support.ports import free_port
from tests.support.relay_process import WAIT_S, until
from tests.support.unpacked import UNPACKED

_PLACES = (Path("/usr/lib/dovecot/lmtp"), UNPACKED / "lib/dovecot/lmtp")
_NOBODY = 65534
_CONFIGURATION = """\
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
protocols = lmtp
listen = 127.0.0.1
ssl = no
first_valid_uid = 1
first_valid_gid = 0
default_internal_group = nogroup
lmtp_rcpt_check_quota = yes
service lmtp {{
  executable = {lmtp}
}}
"""
_BY_VERSION = {
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


class DovecotLmtp:
    """`people` may have so many bytes each, None for any. `services` has a part of dovecot.conf for each version."""

    def __init__(self, people: Mapping[str, int | None], *, services: Mapping[str, str]) -> None:
        """Of the services, address and port are replaced."""
        found = [place for place in _PLACES if place.exists()]
        if not found:
            raise NoDovecotError("dovecot-lmtpd is not installed")
        if os.geteuid() != 0:
            raise NoDovecotError("dovecot's LMTP server needs root")
        self.port = free_port()
        self._lmtp, self._people = found[0], people
        self._command, self._version = dovecot_program(), dovecot_version()
        service = services[self._version]
        self._service = service.replace("192.0.2.10", "127.0.0.1").replace("24\n", f"{self.port}\n")
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="relay-dovecot-"))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def path(self) -> str:
        """The Unix socket, which is there by default."""
        return f"{self._folder}/run/lmtp"

    def mail(self, address: str) -> list[bytes]:
        """The content of each message that somebody has."""
        return [file.read_bytes() for file in sorted(self._folder.glob(f"mail/{address}/new/*"))]

    def fill(self, address: str) -> None:
        """Put a message of 2,000 octets into a mailbox."""
        maildir = self._folder / "mail" / address
        for name in ("cur", "new", "tmp"):
            (maildir / name).mkdir(parents=True)
        (maildir / "new/1.fills.it,S=2000").write_bytes(b"Subject: x\n\n".ljust(2000, b"x"))
        for one in (maildir, *maildir.rglob("*")):
            os.chown(one, _NOBODY, _NOBODY)

    def _start(self) -> None:
        self._folder.chmod(0o755)
        for name in ("run", "mail"):
            (self._folder / name).mkdir(mode=0o755)
        os.chown(self._folder / "mail", _NOBODY, _NOBODY)
        users = (
            f"{address}:::::::" + ("" if size is None else f"{_QUOTA_FIELD[self._version]}{size}")
            for address, size in self._people.items()
        )
        (self._folder / "users").write_text("\n".join(users) + "\n")
        configuration = self._folder / "dovecot.conf"
        text = (_BY_VERSION[self._version] + _CONFIGURATION).format(
            folder=self._folder, uid=_NOBODY, lmtp=self._lmtp
        )
        configuration.write_text(text + self._service)
        self._process = subprocess.Popen([self._command, "-F", "-c", str(configuration)])
        log = self._folder / "log"

        def is_ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, log.read_text() if log.exists() else "no log"
            return Path(self.path).exists() and log.exists()

        until("Dovecot listens", is_ready)
