"""A private Dovecot that takes mail by LMTP: own configuration, sockets and Maildirs, on a free loopback port.

    with DovecotLmtp({"alice@dove.test": "", "full@dove.test": "*:bytes=1"}) as dovecot:
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

from tests.support.dovecot import NoDovecotError
from tests.support.ports import free_port
from tests.support.relay_process import WAIT_S, until

_TOP = Path(__file__).parents[2]
_LMTP = "usr/lib/dovecot/lmtp"  # of Debian's package, installed or unpacked
_PLACES = (Path("/") / _LMTP, _TOP / ".system" / _LMTP)
_COMMAND = shutil.which("dovecot", path=os.environ.get("PATH", "") + ":/usr/sbin")
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
service lmtp {{
  executable = {lmtp}
}}
{service}
"""
SERVICE = """\
service lmtp {
  inet_listener lmtp {
    address = 192.0.2.10
    port = 24
  }
}
"""


class DovecotLmtp:
    """`people` have a quota rule each, "" for none. `service` is part of dovecot.conf."""

    def __init__(self, people: Mapping[str, str], *, service: str = SERVICE) -> None:
        """Of `service`, address and port are replaced."""
        found = [place for place in _PLACES if place.exists()]
        if _COMMAND is None or not found:
            raise NoDovecotError("dovecot-lmtpd is not installed")
        if os.geteuid() != 0:
            raise NoDovecotError("dovecot's LMTP server needs root")
        self.port = free_port()
        self._lmtp, self._people = found[0], people
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

    def _start(self) -> None:
        self._folder.chmod(0o755)
        for name in ("run", "mail"):
            (self._folder / name).mkdir(mode=0o755)
        os.chown(self._folder / "mail", _NOBODY, _NOBODY)
        users = (
            f"{address}:::::::" + (f"userdb_quota_rule={rule}" if rule else "")
            for address, rule in self._people.items()
        )
        (self._folder / "users").write_text("\n".join(users) + "\n")
        configuration = self._folder / "dovecot.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                folder=self._folder, uid=_NOBODY, lmtp=self._lmtp, service=self._service
            )
        )
        assert _COMMAND is not None
        self._process = subprocess.Popen([_COMMAND, "-F", "-c", str(configuration)])
        log = self._folder / "log"

        def is_ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, log.read_text() if log.exists() else "no log"
            return Path(self.path).exists() and log.exists()

        until("Dovecot listens", is_ready)
