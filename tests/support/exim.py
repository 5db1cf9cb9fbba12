"""A private Exim: own configuration, queue, Maildirs and log in a folder of its own, on a free loopback port.

    with Exim(domain="exim.test", people=["carol"]) as exim:
        ... exim.port takes mail, exim.mail("carol") reads it ...

`make test` unpacks Debian's package into .system, because it excludes Postfix. Its program ends
where there is no user Debian-exim; it gets one in a mount namespace of its own. Raises NoEximError,
with the reason to skip, where it is missing or there are no rights.
"""

import os
import shutil
import smtplib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.mail_server import MailServer
from tests.support.ports import free_port
from tests.support.relay_process import WAIT_S, until
from tests.support.unpacked import UNPACKED, copied

_PLACES = (Path("/usr/sbin/exim4"), UNPACKED / "sbin/exim4")
_USERS = {"passwd": "Debian-exim:x:65533:65533::/:/bin/false\n", "group": "Debian-exim:x:65533:\n"}
_START = 'mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/group" /etc/group && shift && exec "$@"'
_CONFIGURATION = """\
primary_hostname = mx.{domain}
exim_path = {program}
exim_user = nobody
exim_group = nogroup
keep_environment = LD_LIBRARY_PATH
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
tls_advertise_hosts =
host_lookup =
rfc1413_query_timeout = 0s
recipients_max = {recipients_max}
acl_smtp_rcpt = rcpt
acl_smtp_data = content
begin acl
rcpt:
  deny !domains = {domain}
  accept local_parts = {people}
  defer local_parts = full
    message = 452 4.2.2 mailbox full
  deny message = 550 5.1.1 no such user
content:
  accept
{delivery}"""
_LOCAL = """\
begin routers
people:
  driver = accept
  local_parts = {people}
  transport = maildir
begin transports
maildir:
  driver = appendfile
  maildir_format
  directory = {folder}/mail/$local_part_data
  user = nobody
"""
_SMARTHOST = """\
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = smtp
begin transports
smtp:
  driver = smtp
  port = {smarthost}
  allow_localhost
  hosts_try_chunking = *
"""


class NoEximError(Exception):
    """Why there is no Exim here."""


class Exim(MailServer):
    """Takes mail for `people` at `domain`; the mailbox of "full" is always full.

    After `recipients_max` RCPT commands it replies 452 to further ones. With `smarthost`, a port, it
    sends all mail there, in chunks (BDAT) if they are offered.
    """

    def __init__(
        self, *, domain: str, people: Sequence[str], recipients_max: int = 100, smarthost: int = 0
    ) -> None:
        found = [place for place in _PLACES if place.exists()]
        if not found:
            raise NoEximError("exim4-daemon-light is not there: make test unpacks it")
        if os.geteuid() != 0:
            raise NoEximError("exim needs root")
        self.port = 0
        self._program, self._domain, self._people = found[0], domain, people
        self._recipients_max, self._smarthost = recipients_max, smarthost
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it has logged and printed."""
        paths = [self._folder / "out", *(self._folder / "log").glob("*")]
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    def _start(self) -> None:
        self._folder.chmod(0o755)
        for name in ("spool", "mail", "log"):
            (self._folder / name).mkdir()
            shutil.chown(self._folder / name, "nobody")
        for name, line in _USERS.items():
            (self._folder / name).write_text(Path("/etc", name).read_text() + line)
        program = copied(self._program, self._folder)
        self.port = free_port()
        configuration = self._folder / "exim.conf"
        values = {
            "domain": self._domain,
            "people": " : ".join(self._people),
            "port": self.port,
            "folder": self._folder,
            "program": program,
            "recipients_max": self._recipients_max,
            "smarthost": self._smarthost,
        }
        delivery = (_SMARTHOST if self._smarthost else _LOCAL).format(**values)
        configuration.write_text(_CONFIGURATION.format(**values, delivery=delivery))
        command = ["unshare", "--mount", "sh", "-c", _START, "sh", str(self._folder)]
        command += [str(program), "-C", str(configuration), "-bdf"]
        with (self._folder / "out").open("wb") as out:
            self._process = subprocess.Popen(
                command,
                env=os.environ | {"LD_LIBRARY_PATH": str(self._folder)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        until("Exim greets, or ends", lambda: self._greets() or self._process.poll() is not None)
        if self._process.poll() is not None and self.log.startswith(("unshare:", "mount:")):
            raise NoEximError(f"no mount namespace: {self.log.strip()}")
        assert self._process.poll() is None, self.log

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_S)

    def _greets(self) -> bool:
        try:
            with smtplib.SMTP("127.0.0.1", self.port, timeout=120):
                return True
        except OSError:
            return False
