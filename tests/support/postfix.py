"""A private Postfix: own configuration, queue and log in a folder of its own, on a free loopback port.

    with Postfix(domain="post.test", people=["carol"]) as postfix:
        ... postfix.port takes mail, postfix.mail("carol") reads it ...

It touches no other Postfix of the machine, and is stopped by its own configuration. Raises
NoPostfixError, with the reason to skip, where it is not installed or there are no rights.
"""

import os
import pwd
import shutil
import smtplib
import subprocess
from collections.abc import Mapping, Sequence

from tests.support.commands import run_command
from tests.support.mail_server import MailServer
from tests.support.ports import free_port
from tests.support.relay_process import until

_COMMAND = shutil.which("postfix", path=os.environ.get("PATH", "") + ":/usr/sbin")
_SERVICES = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup   unix  n - n -   0 cleanup
qmgr      unix  n - n 300 1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n -   - trivial-rewrite
bounce    unix  - - n -   0 bounce
defer     unix  - - n -   0 bounce
trace     unix  - - n -   0 bounce
proxymap  unix  - - n -   - proxymap
smtp      unix  - - n -   - smtp
error     unix  - - n -   - error
retry     unix  - - n -   - error
virtual   unix  - n n -   - virtual
anvil     unix  - - n -   1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""


class NoPostfixError(Exception):
    """Why there is no Postfix here."""


class Postfix(MailServer):
    """Takes mail for `people` at `domain` into Maildirs; all else goes to `relayhost`, if there is one."""

    def __init__(
        self,
        *,
        domain: str,
        people: Sequence[str] = (),
        relayhost: str = "",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        if _COMMAND is None:
            raise NoPostfixError("postfix is not installed")
        if os.geteuid() != 0:
            raise NoPostfixError("postfix needs root")
        self.port = 0
        self._domain, self._people = domain, people
        self._relayhost, self._settings = relayhost, settings or {}

    @property
    def log(self) -> str:
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def session(self) -> smtplib.SMTP:
        """A session with it."""
        return smtplib.SMTP("127.0.0.1", self.port, timeout=120)

    def _start(self) -> None:
        self._folder.chmod(0o755)
        for name in ("etc", "queue", "data", "mail"):
            (self._folder / name).mkdir()
        shutil.chown(self._folder / "data", "postfix")
        shutil.chown(self._folder / "mail", "nobody")
        self.port = free_port()
        main = "".join(f"{name} = {value}\n" for name, value in self._main().items())
        (self._folder / "etc" / "main.cf").write_text(main)
        (self._folder / "etc" / "master.cf").write_text(_SERVICES.format(port=self.port))
        done = self._control("start")
        assert done.returncode == 0, f"postfix start: {done.stderr} {self.log}"
        until("Postfix greets", self._greets)

    def _main(self) -> dict[str, str]:
        nobody = pwd.getpwnam("nobody")
        people = ", ".join(f"{{{one}@{self._domain} = {one}/}}" for one in self._people)
        return {
            "compatibility_level": "3.6",
            "queue_directory": str(self._folder / "queue"),
            "data_directory": str(self._folder / "data"),
            "maillog_file": str(self._folder / "log"),
            "maillog_file_prefixes": str(self._folder),
            "myhostname": f"mx.{self._domain}",
            "mydestination": "",
            "alias_maps": "",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mynetworks": "127.0.0.0/8",
            "smtpd_peername_lookup": "no",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "smtpd_recipient_restrictions": "reject_unlisted_recipient",
            "virtual_mailbox_domains": self._domain,
            "virtual_mailbox_base": str(self._folder / "mail"),
            "virtual_mailbox_maps": f"inline:{{ {people} }}" if people else "",
            "virtual_uid_maps": f"static:{nobody.pw_uid}",
            "virtual_gid_maps": f"static:{nobody.pw_gid}",
            "smtp_dns_support_level": "disabled",
            "relayhost": self._relayhost,
            **self._settings,
        }

    def _stop(self) -> None:
        self._control("stop")

    def _greets(self) -> bool:
        try:
            with self.session():
                return True
        except OSError:
            return False

    def _control(self, verb: str) -> subprocess.CompletedProcess[str]:
        assert _COMMAND is not None
        return run_command([_COMMAND, "-c", str(self._folder / "etc"), verb])
