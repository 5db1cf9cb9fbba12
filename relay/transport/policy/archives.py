"""Read the archives among the attachments of a message, for the conditions on attachments.

Nothing is inflated in this process. A child process inflates one file at a time
(relay/transport/policy/archive_child.py). Threads that ask at the same time have different child
processes. A child that takes too long is killed, and the next file gets a new one. The bounds are
for all attachments of a message together, in all contents that rules make of the message. A file is
sent to a child only if it begins as an archive or an OLE file, or has the end record of a ZIP file.

The calls block, and are made in threads. They raise OSError if no process can be started, or if a
body cannot be read.
"""

import atexit
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from tempfile import TemporaryFile
from typing import IO, Any

from msgspec import Struct, msgpack

from relay.base.child_process import LENGTH_BYTES, AnsweringProcess, framed
from relay.base.clock import SystemClock
from relay.base.message.content import Octets, octets_of
from relay.base.message.header import ParsedContent
from relay.formats.file_types import ARCHIVES, OLE, ZIP, file_types
from relay.formats.transfer_encoding import decoded_blocks
from relay.transport.policy.archive_child import END_RECORD, ArchiveAnswer, ArchiveRequest
from relay.transport.policy.attachment_names import normalised
from relay.transport.policy.message_parts import AttachedFile, MessagePart, decodings

# limit of rules: entries of all archives of a message
ENTRIES_MAX = 1000
# limit of rules: inflated octets of these entries
INFLATED_OCTETS_MAX = 100_000_000
# limit of rules: time for the archives of a message
TIME_LIMIT_S = 5.0
_START_LIMIT_S = 30.0  # for the start of a process, on a busy machine
_ASK_AGAIN_S = 0.05  # between two checks whether the caller has given up
_ATTEMPTS = 2  # the first process may have been killed while it was idle, or by the kernel
_READ_BYTES = 1 << 16
_LOOKED_INTO = ARCHIVES | {OLE}


class ArchiveContents(Struct, frozen=True):
    """What is in an attachment, as far as it was examined."""

    entries: tuple[AttachedFile, ...] = ()
    is_encrypted: bool = False
    is_unreadable: bool = False
    bound: str = ""  # the bound that it exceeds; "" for none
    types: tuple[str, ...] = ()  # of its content; also ZIP if it may be a ZIP file


class MessageArchives:
    """What is left of the bounds for a message, and the answers about its files so far.

    Rules may make many contents of a message; all of them share this. `between` is called while
    the caller waits for an answer.
    """

    def __init__(self, between: Callable[[], None]) -> None:
        self.entries, self.octets = ENTRIES_MAX, INFLATED_OCTETS_MAX
        self.time_s = TIME_LIMIT_S
        self.between = between
        self.answers: dict[bytes, ArchiveAnswer] = {}  # by the digest of the file


class _ArchiveProcess(AnsweringProcess):
    """A process of relay.transport.policy.archive_child."""

    def receive(self, until_s: float, limits: MessageArchives) -> bytearray:
        """Return an answer. Raises EOFError, TimeoutError, ConnectionError, and what `between`
        raises.
        """
        length = int.from_bytes(self._receive(LENGTH_BYTES, until_s, limits))
        return self._receive(length, until_s, limits)

    def _receive(self, length: int, until_s: float, limits: MessageArchives) -> bytearray:
        received = bytearray()
        while len(received) < length:
            limits.between()
            if _clock.real_s() >= until_s:
                raise TimeoutError
            with suppress(TimeoutError):
                octets = self.socket.recv(min(length - len(received), _READ_BYTES))
                if not octets:
                    raise EOFError
                received += octets
        return received


class ArchiveReader:
    """Sends files to child processes. Idle ones are kept for the next file."""

    def __init__(self) -> None:
        self._idle: list[_ArchiveProcess] = []

    def ask(self, descriptor: int, limits: MessageArchives) -> ArchiveAnswer | None:
        """Return the answer about an open file; None if it takes too long or the process ends.

        What `between` raises ends the call. Raises OSError.
        """
        try:
            for _ in range(_ATTEMPTS if limits.time_s else 0):
                with suppress(EOFError, ConnectionError):
                    return self._ask(descriptor, limits)
        except TimeoutError:
            limits.time_s = 0
        return None

    def close(self) -> None:
        """End the processes that are idle; the others end with this process."""
        with suppress(IndexError):  # there is none, or another thread took the last one
            while True:
                self._idle.pop().end()

    def _ask(self, descriptor: int, limits: MessageArchives) -> ArchiveAnswer:
        try:
            child = self._idle.pop()
        except IndexError:
            child = self._started(limits)
        until_s = _clock.real_s() + limits.time_s
        cpu_s = int(limits.time_s) + 1
        request = ArchiveRequest(limits.entries, limits.octets, cpu_s=cpu_s)
        try:
            socket.send_fds(child.socket, [framed(request)], [descriptor])
            answer = _read_answer(child.receive(until_s, limits))
        except BaseException:
            child.end()
            raise
        finally:
            limits.time_s = max(0.0, until_s - _clock.real_s())
        self._idle.append(child)
        limits.entries, limits.octets = answer.entries_left, answer.octets_left
        return answer

    def _started(self, limits: MessageArchives) -> _ArchiveProcess:
        child = _ArchiveProcess("relay.transport.policy.archive_child")
        try:
            child.socket.settimeout(_ASK_AGAIN_S)
            child.receive(_clock.real_s() + _START_LIMIT_S, limits)
        except BaseException as error:
            child.end()
            if isinstance(error, EOFError | TimeoutError):
                raise OSError("the process that looks into archives did not start") from None
            raise
        return child


_clock = SystemClock()
_read_answer = msgpack.Decoder(ArchiveAnswer).decode
reader = ArchiveReader()
atexit.register(reader.close)


def archive_contents(
    content: ParsedContent, parts: Sequence[MessagePart], limits: MessageArchives
) -> tuple[ArchiveContents, ...]:
    """Return what is in the attachments among the parts of a content, in the order of
    relay.transport.policy.message_parts.attachments(). Raises OSError.
    """
    octets = octets_of(content.joined())
    return tuple([_contents(octets, part, limits) for part in parts if part.is_attachment])


def _contents(octets: Octets, part: MessagePart, limits: MessageArchives) -> ArchiveContents:
    contents = ArchiveContents()
    for body, coding in decodings(octets, part):

        def blocks(body: Octets = body, coding: Any = coding) -> Iterator[bytes]:
            for block in decoded_blocks(body, coding):
                limits.between()
                yield block

        types = file_types(blocks())
        if _LOOKED_INTO.isdisjoint(types) and not _has_end_record(blocks()):
            continue
        answer = _answer(blocks(), limits)
        entries = [
            AttachedFile(tuple(dict.fromkeys(map(normalised, names))), tuple(kinds))
            for names, kinds in answer.entries
        ]
        if answer.is_zip or answer.bound:
            types = (*types, ZIP)
        contents = ArchiveContents(
            (*contents.entries, *entries),
            contents.is_encrypted or answer.is_encrypted,
            contents.is_unreadable or answer.is_unreadable,
            contents.bound or answer.bound,
            tuple(dict.fromkeys((*contents.types, *types))),
        )
    return contents


def _answer(blocks: Iterator[bytes], limits: MessageArchives) -> ArchiveAnswer:
    digest = sha256()
    with _unnamed_file() as file:
        for block in blocks:
            digest.update(block)
            file.write(block)
        file.flush()
        key = digest.digest()
        if key not in limits.answers:
            lacking = ArchiveAnswer(bound=f"{TIME_LIMIT_S:g} seconds, or the memory")
            limits.answers[key] = reader.ask(file.fileno(), limits) or lacking
    return limits.answers[key]


def _unnamed_file() -> IO[bytes]:
    """Return a file outside of this process's memory."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("attachment"), "w+b")
    return TemporaryFile()


def _has_end_record(blocks: Iterator[bytes]) -> bool:
    held = b""
    for block in blocks:
        held += block
        if END_RECORD in held:
            return True
        held = held[1 - len(END_RECORD) :]
    return False
