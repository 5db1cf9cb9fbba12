"""Dovecot's IMAP server on one Maildir: a process per session, spoken to through a pipe; no daemon runs.

    dovecot = Dovecot(relay.home("alice"))
    with dovecot.session() as imap:
        imap.select("Sent")
    assert dovecot.complaints() == []

It touches no other Dovecot of the machine; a session ends with its `with`. Raises NoDovecotError,
with the reason to skip, where it is not installed. See RFC 9051 (IMAP), as much as imaplib speaks.
"""

import imaplib
import os
import pwd
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

_PLACES = ("/usr/lib/dovecot/imap", "/usr/libexec/dovecot/imap")
# Dovecot serves no mail as root. Where the tests run as root, it is nobody, who may open every file.
_NOBODY = "nobody"
_RIGHTS = "+dac_override,+dac_read_search,+fowner,+chown"
# 2.4 has another language. It reads no file that does not begin with a version, passes on no variable of
# the environment that is not named, and its doveadm asks for the user.
_BY_VERSION = {
    "2.3": "mail_location = maildir:{maildir}\n",
    "2.4": """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
mail_driver = maildir
mail_path = {maildir}
import_environment {{
  USER = owner
  HOME = {folder}
}}
""",
}
_CONFIGURATION = """\
log_path = /dev/stderr
base_dir = {folder}
maildir_stat_dirs = yes
ssl = no
first_valid_uid = 1
first_valid_gid = 0
stats_writer_socket_path =
"""
_TOLD = re.compile(r"\b(Error|Warning|Panic|Fatal):")


class NoDovecotError(Exception):
    """Why there is no Dovecot here."""


def dovecot_program() -> str:
    """The daemon. Raises NoDovecotError."""
    found = shutil.which("dovecot", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        raise NoDovecotError("dovecot-core is not installed")
    return found


def dovecot_version() -> str:
    """ "2.3" or "2.4": the language of its configuration. Raises NoDovecotError."""
    done = subprocess.run(
        [dovecot_program(), "--version"], capture_output=True, text=True, timeout=120, check=True
    )
    return "2.3" if done.stdout.startswith("2.3.") else "2.4"


class ImapSession(imaplib.IMAP4_stream):
    """A session in which a command that is not OK is an AssertionError."""

    def ok(self, command: str, *words: str) -> list[bytes]:
        """Say a command; return its untagged answers of that name."""
        kind, answer = self._simple_command(command, *words)
        assert kind == "OK", f"{command} {words}: {kind} {answer}"
        return [one for one in self._untagged_response(kind, answer, command)[1] if one]

    def enter(self, folder: str) -> int:
        """Select a mailbox; return how many messages it has."""
        kind, answer = self.select(quoted(folder))
        assert kind == "OK", f"SELECT {folder}: {kind} {answer}"
        return int(answer[0] or 0)

    def folders(self, command: str = "LIST") -> set[str]:
        """The names of all mailboxes, as IMAP has them: Dovecot lists them once a session."""
        answers = self.ok(command, '""', '"*"')
        return {one.decode().rpartition('"." ')[2].strip('"') for one in answers}

    def uid_of(self, subject: str) -> str:
        """The UID of the only message of a subject in the mailbox that is open."""
        _, [found] = self.uid("SEARCH", "SUBJECT", quoted(subject))
        [uid] = found.decode().split()
        return uid

    def flags(self, folder: str = "INBOX") -> dict[str, set[str]]:
        """Subject -> flags of a mailbox's messages, without \\Recent."""
        self.enter(folder)
        found = {}
        _, answers = self.uid("FETCH", "1:*", "(FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
        for answer in answers:
            if isinstance(answer, tuple):
                flags = imaplib.ParseFlags(answer[0])
                subject = answer[1].decode().strip().removeprefix("Subject: ")
                found[subject] = {flag.decode() for flag in flags} - {"\\Recent"}
        return found

    def __exit__(self, *words: object) -> None:
        super().__exit__(*words)
        self.process.wait(10)


def quoted(name: str) -> str:
    """A mailbox's name as an IMAP string."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class Dovecot:
    """One Maildir++, shared with whoever else writes to it."""

    def __init__(self, maildir: Path) -> None:
        found = [place for place in _PLACES if Path(place).exists()]
        if not found:
            raise NoDovecotError("dovecot-imapd is not installed")
        self._imap, self._maildir = found[0], maildir
        self._folder = Path(tempfile.mkdtemp(prefix="relay-dovecot-"))
        self._folder.chmod(0o755)
        self._log = self._folder / "log"
        self._configuration = self._folder / "dovecot.conf"
        self._version = dovecot_version()
        text = _BY_VERSION[self._version] + _CONFIGURATION
        self._configuration.write_text(text.format(folder=self._folder, maildir=maildir))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def session(self) -> ImapSession:
        """A session of the mailbox's owner."""
        command = [*self._as_owner(), self._imap, "-c", str(self._configuration)]
        return ImapSession(f"exec {shlex.join(command)} 2>>{shlex.quote(str(self._log))}")

    def fetch(self, fields: str, *, form: str = "flow") -> str:
        """What doveadm's fetch prints of all messages; its complaints go to the others."""
        doveadm = shutil.which("doveadm")
        if doveadm is None:
            raise NoDovecotError("doveadm is not installed")
        whose = ["--no-userdb-lookup"] if self._version == "2.4" else []
        command = [
            *self._as_owner(),
            doveadm,
            "-c",
            str(self._configuration),
            "-f",
            form,
            "fetch",
            *whose,
            fields,
            "all",
        ]
        with self._log.open("ab") as log:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=120,
                check=False,
            )
        assert done.returncode == 0, f"doveadm fetch: {done.returncode} {self.complaints()}"
        return done.stdout

    def complaints(self) -> list[str]:
        """Every error and warning that it reported so far."""
        log = self._log.read_text() if self._log.exists() else ""
        return [line for line in log.splitlines() if _TOLD.search(line)]

    def _as_owner(self) -> list[str]:
        own = ["env", "USER=owner", f"HOME={self._folder}"]
        if os.geteuid() != 0:
            return own
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise NoDovecotError("setpriv is not installed, and Dovecot serves no mail as root")
        nobody = pwd.getpwnam(_NOBODY)
        for directory in (self._folder, self._maildir, *self._maildir.rglob("*")):
            if directory.is_dir():  # Dovecot asks whether they are its own to write
                os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        for above in self._maildir.parents:
            if above.stat().st_mode & 0o011 != 0o011:
                above.chmod(above.stat().st_mode | 0o011)
        return [
            setpriv,
            f"--reuid={nobody.pw_uid}",
            f"--regid={nobody.pw_gid}",
            "--clear-groups",
            f"--inh-caps={_RIGHTS}",
            f"--ambient-caps={_RIGHTS}",
            *own,
        ]
