"""The child process of one session: Dovecot's `imap` or `pop3`.

Its command line names neither the client nor the mailbox; its environment is the mailbox and the
user. It ends when its input ends, or is killed. Where `setpriv` exists, the kernel kills it as soon
as the thread that started it ends: without that, it sees the end of its input between two commands
only.
"""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from relay.base.phrases import printable
from relay.base.task_set import TaskSet
from relay.store.mailbox.maildir import list_names, remove

if sys.platform == "linux":
    import resource

# Memory of the process of a session by IMAP or POP3
_MEMORY_BYTES = 512 << 20
_LINE_BYTES_MAX = 65536
_READ_BYTES = 65536
END_S = 2.0  # from the end of its input until it is killed
_LOOK_S = 0.01
_ERROR = re.compile(rb"^(?!.{0,1000}: Info: ).{1,1000}", re.MULTILINE)
_TMP_NAME = re.compile(r"(\d++)\.M\d++P(\d++)\.")


def child_command(program: str, configuration: Path) -> list[str]:
    """Return the command of a child process."""
    setpriv = shutil.which("setpriv")
    dies_too = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    return [*dies_too, program, "-c", str(configuration)]


class DovecotChild:
    """A child process that serves one session. Await start() once, and end() even after an error.

    It writes no file of more than `file_bytes`: a write beyond that fails, because it inherits that
    Python ignores SIGXFSZ. The processes of uvloop do not.
    """

    reader: asyncio.StreamReader  # what it says to the client
    writer: asyncio.StreamWriter  # its input
    _errors: asyncio.Task[str]

    def __init__(self, mailbox: Path, user: str, *, began_s: int, file_bytes: int) -> None:
        """`began_s` is the time of the start."""
        self._mailbox, self._user = mailbox, user
        self._began_s, self._file_bytes = began_s, file_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._tasks = TaskSet()
        self._kill_at_s = 0.0

    async def start(self, command: Sequence[str], prompt: bytes) -> bytes:
        """Return the first line of the process, which answers `prompt`, b"" at its end.

        Raises OSError.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self.reader, self.writer = await asyncio.open_unix_connection(
                sock=ours, limit=_LINE_BYTES_MAX
            )
            self._process = subprocess.Popen(  # noqa: S603, ASYNC220 - Dovecot; it takes a millisecond
                command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                env={"HOME": os.fspath(self._mailbox), "USER": self._user},
                restore_signals=False,
                start_new_session=True,  # Ctrl-C must not reach it
            )
        self._errors = self._tasks.start(self._read_errors())
        if sys.platform == "linux":
            sizes = {resource.RLIMIT_FSIZE: self._file_bytes, resource.RLIMIT_AS: _MEMORY_BYTES}
            for kind, size in sizes.items():
                with suppress(OSError, ValueError):  # a lower limit is in force, or it has ended
                    resource.prlimit(self._process.pid, kind, (size, size))
        self.writer.write(prompt)
        with suppress(ValueError):  # a line without an end
            return await self.reader.readline()
        return b""

    def end_input(self) -> None:
        """End its input; it has END_S to end."""
        if not self._kill_at_s:
            loop = asyncio.get_running_loop()
            self._kill_at_s = loop.time() + END_S  # real time: a child process
            with suppress(OSError):
                self.writer.write_eof()

    async def end(self) -> str:
        """End the process, and remove what it left in tmp/; return its first error, "" for none."""
        process, loop = self._process, asyncio.get_running_loop()
        if process is None:
            return ""
        self.end_input()
        try:
            while process.poll() is None:
                if loop.time() > self._kill_at_s:  # real time: a child process
                    break
                await asyncio.sleep(_LOOK_S)  # real time: a child process
        finally:
            process.kill()
            process.wait()
            self.writer.close()
        await asyncio.to_thread(self._remove_unfinished, process.pid)
        return printable(await self._errors)

    async def _read_errors(self) -> str:
        reader = asyncio.StreamReader()
        assert self._process is not None
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stderr
        )
        first = b""
        while octets := await reader.read(_READ_BYTES):
            if not first and (error := _ERROR.search(octets)):
                first = error[0]
        return first.decode(errors="replace")

    def _remove_unfinished(self, pid: int) -> None:
        for path in unfinished_files(self._mailbox, pid, self._began_s):
            with suppress(OSError):
                remove(path)


def unfinished_files(mailbox: Path, pid: int, began_s: int) -> Iterator[Path]:
    """Yield the files in tmp/ of all folders that a process has written since a time."""
    for folder in (mailbox, *mailbox.glob(".*")):
        for name in list_names(folder / "tmp"):
            match = _TMP_NAME.match(name)
            if match and int(match[2]) == pid and int(match[1]) >= began_s:
                yield folder / "tmp" / name
