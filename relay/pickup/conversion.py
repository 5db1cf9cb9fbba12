"""Conversion where it can do no harm: on the loop, in a thread, or in a process that can be killed.

On the path: handling asks for a note's MIME, step 3.
Holds: what may take long is not on the loop; what fails, hangs, or was in work when this process
    died is tried once more in a child, and never in here again.
Fails: ConversionError for a message that cannot be sent; UnsafeNoteError for one that no process
    came to an end with; OSError when its file cannot be read, or no child be started.
Standards: docs/design.md 1; POSIX setrlimit.
"""

import asyncio
import contextlib
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from relay.clock import Clock
from relay.journal.logs import get_logger
from relay.mailbox.types import Note
from relay.message.content import Octets
from relay.message.converted import ConversionError, Converted
from relay.message.draft import FIRST_FIELD_BYTES, private_length

PLAIN_BYTES_MAX = 64 * 1024
_LIMIT_S = 10.0  # for any conversion, and more for each MiB
_LIMIT_S_PER_MIB = 1.0
_CHILD_START_S = 10.0
_RUNAWAYS_MAX = 4  # threads that nobody waits for any more
_CHILDREN_MAX = 2
_MARK_KEPT_S = 30 * 86400.0
_PLAIN = b'"body_type":"text"'  # in the block, where quotes within strings are escaped

_log = get_logger("pickup")


class Converter(Protocol):
    """relay.message.convert.convert, or what a test has in its place: a function of a module."""

    __name__: str

    def __call__(self, note: bytes | Octets, *, now_us: int, hostname: str) -> Converted:
        """Return what is submitted. Raises ConversionError, OSError."""
        ...


class UnsafeNoteError(Exception):
    """A conversion crashed or hung, also in a process of its own; the text says how."""


class Conversion:
    """Converts notes, each where it belongs."""

    def __init__(
        self,
        convert: Converter,
        *,
        hostname: str,
        clock: Clock,
        marks: Path,
    ) -> None:
        """`marks` is a directory for the names of notes that are in work."""
        self._convert = convert
        self._hostname = hostname
        self._clock = clock
        self._marks = marks
        self._suspects = _marked(marks, clock)
        self._runaways = 0
        self._children = asyncio.Semaphore(_CHILDREN_MAX)

    async def converted(self, note: Note, content: Octets) -> Converted:
        """Convert a note. Raises ConversionError, UnsafeNoteError, OSError."""
        try:
            if note.submission_id not in self._suspects:
                if is_plain(content):
                    return self._here(content)
                if self._runaways < _RUNAWAYS_MAX:
                    with self._marked(note):
                        return await self._in_thread(content)
        except (ConversionError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, a child tells whether it stays
            _log.warning(
                "conversion fault",
                submission_id=note.submission_id,
                error=f"{type(error).__name__}: {error}",
            )
        made = await self._in_child(note, content.size)
        self.forget(note)
        return made

    def forget(self, note: Note) -> None:
        """Say that nothing more will happen to this process for the note's sake."""
        self._suspects.discard(note.submission_id)
        with contextlib.suppress(OSError):
            (self._marks / note.submission_id).unlink(missing_ok=True)

    def _here(self, content: Octets) -> Converted:
        return self._convert(content, now_us=self._clock.time_us(), hostname=self._hostname)

    async def _in_thread(self, content: Octets) -> Converted:
        """Convert in a thread of its own, which is left to itself after its time.

        Raises TimeoutError.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Converted] = loop.create_future()

        def tell(made: Converted | None, error: BaseException | None) -> None:
            if ended.cancelled():  # nobody waits any more
                self._runaways -= 1
            elif made is not None:
                ended.set_result(made)
            else:
                ended.set_exception(error or RuntimeError("the conversion gave nothing"))

        def run() -> None:
            made, raised = None, None
            try:
                made = self._here(content)
            except BaseException as error:  # noqa: BLE001 - raised again by who waits
                raised = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, made, raised)

        threading.Thread(target=run, name="conversion", daemon=True).start()
        try:
            async with asyncio.timeout(_limit_s(content.size)):
                return await ended
        except (TimeoutError, asyncio.CancelledError):
            if ended.cancelled():
                self._runaways += 1
            raise

    async def _in_child(self, note: Note, size_bytes: int) -> Converted:
        limit_s = _CHILD_START_S + _limit_s(size_bytes)
        function = f"{self._convert.__module__}:{self._convert.__name__}"
        words = (function, str(note.path), str(self._clock.time_us()), self._hostname)
        async with self._children:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "relay.pickup.child", *words, str(int(limit_s) + 1),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
            try:
                async with asyncio.timeout(limit_s):
                    answer, _ = await child.communicate()
            except TimeoutError:
                raise UnsafeNoteError(f"it did not end within {limit_s:g} seconds") from None
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
        return _read_answer(answer, child.returncode)

    @contextlib.contextmanager
    def _marked(self, note: Note) -> Iterator[None]:
        """Leave a mark that a start finds if this process does not survive what is inside."""
        with contextlib.suppress(OSError):  # a full disk must not stop mail
            self._marks.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._marks / note.submission_id).touch(0o600)
        try:
            yield
        finally:
            self.forget(note)


def is_plain(content: Octets) -> bool:
    """Whether a note's conversion takes no time worth a thread: short text that Graph gave us.

    Its text is copied and its fields are written; nothing is parsed, no html made text.
    """
    if content.size > PLAIN_BYTES_MAX:
        return False
    length = private_length(content.read(0, FIRST_FIELD_BYTES))
    return _PLAIN in content.read(0, length)


def _limit_s(size_bytes: int) -> float:
    return _LIMIT_S + _LIMIT_S_PER_MIB * size_bytes / (1 << 20)


def _read_answer(answer: bytes, code: int | None) -> Converted:
    if code != 0:
        what = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        raise UnsafeNoteError(f"it ended with {what}")
    made = pickle.loads(answer)  # noqa: S301 - our own child's, which writes this and nothing else
    if isinstance(made, Converted):
        return made
    raise made


def _marked(marks: Path, clock: Clock) -> set[str]:
    """What was in work when a process died; marks whose notes are long gone are removed."""
    found = set()
    with contextlib.suppress(OSError):
        for mark in marks.iterdir():
            if clock.time_us() / 1_000_000 - mark.stat().st_mtime > _MARK_KEPT_S:
                mark.unlink(missing_ok=True)
            else:
                found.add(mark.name)
    return found
