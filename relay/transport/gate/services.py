"""The child's side of a session: the functions of its SessionClient, as calls to the owner.

All calls use one channel. An answer to RCPT that may be kept is used again without a call, until
the owner sends a new Setup.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from msgspec import Raw

from relay.base.accounts.account import LoginDelayedError, LoginRefusedError
from relay.base.blocks import BodyDisk
from relay.base.files import Descriptor, FileOctets, write_all
from relay.base.message.content import LargeContent
from relay.store.spool.types import SpoolUnavailableError, translate_os_errors
from relay.transport.gate import wire
from relay.transport.gate.frames import FrameChannel
from relay.transport.ingress.data import ContentRejection, DataReply, ReceivedContent
from relay.transport.ingress.esmtp_parameters import SmtpRejection
from relay.transport.ingress.session_client import (
    OfferedMail,
    RecipientAnswer,
    RefusedCommand,
    SessionClaims,
    SessionClient,
)
from relay.transport.ingress.smtp_session import ClientDisconnected

T = TypeVar("T")
_Answered = Raw | Descriptor
_KEPT_MAX = 10_000
_BODIES = Path("body")  # a name for errors


class OwnerCalls:
    """The calls of all sessions to the owner."""

    def __init__(
        self,
        disk: BodyDisk,
        on_frame: Callable[[wire.FromOwner], None],
        on_end: Callable[[str], None],
    ) -> None:
        """`disk` has the bodies; `on_frame` gets frames that are no answers; `on_end` as in
        FrameChannel.
        """
        self.disk = disk
        self.channel = FrameChannel(self._hear, on_end)
        self.kept: dict[tuple[str, str], RecipientAnswer] = {}
        self._on_frame = on_frame
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[_Answered | None]] = {}

    async def ask(self, call: Callable[[int], wire.FromChild], decode: Callable[[Any], T]) -> T:
        """Make a call and return the answer; `call` gets the number of the call.

        Raises SmtpRejection, and ClientDisconnected if the owner has ended: the right reply is
        unknown then.
        """
        if self.channel.is_full:
            await self.channel.room()
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self.channel.send(wire.encode(call(number)))
            value = await asked
        finally:
            del self._asked[number]
        if value is None:
            raise SmtpRejection(ContentRejection.LOCAL_ERROR)  # the owner has logged why
        return decode(value)

    def _hear(self, octets: bytes) -> None:
        frame = wire.decode_from_owner(octets)
        if isinstance(frame, wire.CallAnswer):
            self.answered(frame.call, None if frame.has_failed else frame.value)
        else:
            self._on_frame(frame)

    def tell(self, frame: wire.FromChild) -> None:
        """Send a frame that has no answer."""
        self.channel.send(wire.encode(frame))

    def answered(self, call: int, value: _Answered | None) -> None:
        """Pass an answer on, None if the call failed, unless the client has disconnected."""
        asked = self._asked.get(call)
        if asked is not None and not asked.done():
            asked.set_result(value)

    def give_up(self) -> None:
        """End the sessions that wait for an answer, because none comes."""
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ClientDisconnected())


class RemoteOwner:
    """The owner's side of one session, as the child calls it."""

    def __init__(self, calls: OwnerCalls, session: int, *, is_trusted: bool) -> None:
        """`session` is the owner's number, `is_trusted` what the owner says of the network."""
        self._calls = calls
        self._session = session
        self._may_relay = is_trusted
        self._body: RemoteBody | None = None
        self._has_ended = False

    def client(self, ip: str) -> SessionClient:
        """Return the client, before its session begins.

        It has no milters, and is no program of this machine.
        """
        return SessionClient(
            ip,
            self._may_relay,
            self._log_in,
            self._sender_rejection,
            self._check_recipient,
            self._new_body,
            self._accept,
            self._refused,
            ended=self._end,
        )

    async def _log_in(self, user: str, secret: str, is_token: bool) -> str:
        answer = await self._calls.ask(
            lambda call: wire.LogIn(self._session, call, user, secret, is_token), wire.decode_login
        )
        if answer.refused:
            raise LoginRefusedError(answer.refused)
        if answer.delayed:
            raise LoginDelayedError(answer.delayed, answer.retry_after_s)
        self._may_relay = self._may_relay or bool(answer.login)
        return answer.login

    def _sender_rejection(self, reverse_path: str) -> Awaitable[str]:
        return self._calls.ask(
            lambda call: wire.CheckSender(self._session, call, reverse_path), wire.decode_reply
        )

    async def _check_recipient(
        self, address: str, reverse_path: str, size_bytes: int, *, helo: str
    ) -> RecipientAnswer:
        key, kept = (address, reverse_path), self._calls.kept  # a reload replaces it
        if self._may_relay and (known := kept.get(key)) is not None:
            return known
        answer = await self._calls.ask(
            lambda call: wire.CheckRecipient(
                self._session, call, address, reverse_path, size_bytes, helo
            ),
            wire.decode_recipient,
        )
        if self._may_relay and answer.may_keep:
            if len(kept) >= _KEPT_MAX:
                kept.clear()
            kept[key] = answer
        return answer

    def _new_body(self) -> "RemoteBody":
        self._body = RemoteBody(self._calls, self._session)
        return self._body

    async def _accept(self, offered: OfferedMail, received: ReceivedContent) -> DataReply:
        """Send the message; from then on it is the owner's, even if the client disconnects."""
        content, body, written = received.content, self._body, None
        if isinstance(content, LargeContent):
            assert body is not None
            written = wire.WrittenBody(
                body.size_bytes, body.crc32, content.eight_bit, content.long_lines
            )
            content = content.header
        self._body = None

        def offer(call: int) -> wire.FromChild:
            if body is not None:
                body.offer()
            return wire.Accept(self._session, call, offered, content, written)

        try:
            return await self._calls.ask(offer, wire.decode_data_reply)
        finally:
            received.release()

    def _refused(self, refused: RefusedCommand, claims: SessionClaims) -> None:
        self._calls.tell(wire.Refused(self._session, refused, claims))

    def _end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._calls.tell(wire.Ended(self._session))


class RemoteBody:
    """A spool.types.IncomingBody in a file that the owner opened."""

    def __init__(self, calls: OwnerCalls, session: int) -> None:
        self._calls = calls
        self._session = session
        self._file: Descriptor | None = None  # while it is of this process
        self.size_bytes = self.crc32 = 0

    async def write(self, blocks: Sequence[bytes]) -> None:
        """See IncomingBody."""
        if self._file is None:
            opened = await self._calls.ask(
                lambda call: wire.OpenBody(self._session, call), _file_or_text
            )
            if isinstance(opened, str):
                raise SpoolUnavailableError(opened)
            self._file = opened
        await self._calls.disk.run(partial(self._write, self._file, b"".join(blocks)))

    def _write(self, file: Descriptor, octets: bytes) -> None:
        self._calls.disk.check_free_space(len(octets))
        with translate_os_errors(_BODIES):
            write_all(file.number, octets)
        self.size_bytes += len(octets)
        self.crc32 = crc32(octets, self.crc32)

    def offer(self) -> None:
        """Close the file. The owner does not take a file that is still open here."""
        self._file = None

    def octets(self) -> FileOctets:
        """See IncomingBody. This process does not read it."""
        return FileOctets(_BODIES, 0, self.size_bytes)

    def discard(self) -> None:
        """See IncomingBody."""
        if self._file is not None:
            self._file = None
            self._calls.tell(wire.DropBody(self._session))


def _file_or_text(answer: _Answered) -> Descriptor | str:
    return answer if isinstance(answer, Descriptor) else wire.decode_reply(answer)
