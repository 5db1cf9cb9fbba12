"""The child's side of a session: SessionServices by calls to the owner, over one channel.

An answer to RCPT that may be kept is given again without a call, as long as the owner does not say
that something has changed.
"""

import asyncio
from collections.abc import Callable, Sequence
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
from relay.base.message.envelope import ForwardPath
from relay.store.spool.types import SpoolUnavailableError, translate_os_errors
from relay.transport.gate.frames import FrameChannel
from relay.transport.gate.wire import (
    Accept,
    CheckRecipient,
    CheckSender,
    DropBody,
    Ended,
    ForgetLogin,
    FromChild,
    LogIn,
    OpenBody,
    Refused,
    WrittenBody,
    decode_data_reply,
    decode_login,
    decode_recipient,
    decode_reply,
    encode,
)
from relay.transport.ingress.data import ContentRejection, DataReply, ReceivedContent
from relay.transport.ingress.esmtp_parameters import MailArgument, SmtpRejection
from relay.transport.ingress.session_services import RecipientAnswer, RefusedCommand, SessionClaims
from relay.transport.ingress.smtp_session import ClientDisconnected

T = TypeVar("T")
_Answered = Raw | Descriptor
_KEPT_MAX = 10_000
_BODIES = Path("body")  # a name for errors


class OwnerCalls:
    """The calls of all sessions to the owner."""

    def __init__(self, disk: BodyDisk) -> None:
        """`disk` is that of the bodies."""
        self.disk = disk
        self.channel: FrameChannel  # set before the first session
        self.sessions: dict[int, RemoteServices] = {}  # by their numbers
        self.kept: dict[tuple[str, str], RecipientAnswer] = {}
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[_Answered | None]] = {}

    async def ask(self, call: Callable[[int], FromChild], decode: Callable[[Any], T]) -> T:
        """Make a call, which gets its number, and return its answer.

        Raises SmtpRejection, and ClientDisconnected if the owner has ended: no reply is right then.
        """
        await self.channel.room()
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self.channel.send(encode(call(number)))
            value = await asked
        finally:
            del self._asked[number]
        if value is None:
            raise SmtpRejection(ContentRejection.LOCAL_ERROR)  # the owner has logged why
        return decode(value)

    def tell(self, frame: FromChild) -> None:
        """Tell what has no answer."""
        self.channel.send(encode(frame))

    def answered(self, call: int, value: _Answered | None) -> None:
        """Hand an answer on, None if it failed; nobody waits for it if the client is gone."""
        asked = self._asked.get(call)
        if asked is not None and not asked.done():
            asked.set_result(value)

    def give_up(self) -> None:
        """End the sessions that wait for an answer: none comes."""
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ClientDisconnected())

    def keep(self, key: tuple[str, str], answer: RecipientAnswer) -> None:
        """Keep an answer, and no more than so many."""
        if len(self.kept) >= _KEPT_MAX:
            self.kept.clear()
        self.kept[key] = answer


class RemoteServices:
    """The SessionServices of one session."""

    def __init__(self, owner: OwnerCalls, session: int, *, is_trusted: bool) -> None:
        """`session` is the owner's number, `is_trusted` what the owner says of the network."""
        self._owner = owner
        self._session = session
        self._is_trusted = is_trusted
        self._body: RemoteBody | None = None
        self.login = ""
        self.has_ended = False
        owner.sessions[session] = self

    async def log_in(self, user: str, secret: str, *, is_token: bool) -> bool:
        """See SessionServices."""
        found = await self._owner.ask(
            lambda call: LogIn(self._session, call, user, secret, is_token), decode_login
        )
        if found.refused:
            raise LoginRefusedError(found.refused)
        if found.delayed:
            raise LoginDelayedError(found.delayed, found.retry_after_s)
        self.login = found.login
        return bool(found.login)

    def forget_login(self) -> None:
        """See SessionServices."""
        if self.login:
            self._owner.tell(ForgetLogin(self._session))
        self.login, self.has_ended = "", False

    async def local_user(self) -> None:
        """See SessionServices: none has the socket for programs."""

    async def sender_rejection(self, reverse_path: str) -> str:
        """See SessionServices."""
        return await self._owner.ask(
            lambda call: CheckSender(self._session, call, reverse_path), decode_reply
        )

    async def recipient(
        self, address: str, reverse_path: str, *, size_bytes: int
    ) -> RecipientAnswer:
        """See SessionServices."""
        may_relay, key = self._is_trusted or bool(self.login), (address, reverse_path)
        if may_relay and (kept := self._owner.kept.get(key)) is not None:
            return kept
        answer = await self._owner.ask(
            lambda call: CheckRecipient(self._session, call, address, reverse_path, size_bytes),
            decode_recipient,
        )
        if may_relay and answer.may_keep:
            self._owner.keep(key, answer)
        return answer

    def new_body(self) -> "RemoteBody":
        """See SessionServices."""
        self._body = RemoteBody(self._owner, self._session)
        return self._body

    def new_filters(self) -> None:
        """See SessionServices: without milters only."""

    async def accept(
        self,
        mail: MailArgument,
        paths: Sequence[ForwardPath],
        received: ReceivedContent,
        *,
        claims: SessionClaims,
    ) -> DataReply:
        """See SessionServices. The message is the owner's as soon as it is sent, even if the client
        disconnects then.
        """
        content, body, written = received.content, self._body, None
        if isinstance(content, LargeContent):
            assert body is not None
            written = WrittenBody(
                body.size_bytes, body.crc32, content.eight_bit, content.long_lines
            )
            content = content.header
        self._body = None

        def offered(call: int) -> FromChild:
            if body is not None:
                body.offer()
            return Accept(self._session, call, mail, list(paths), claims, content, written)

        try:
            return await self._owner.ask(offered, decode_data_reply)
        finally:
            received.release()

    def refused(self, refused: RefusedCommand, claims: SessionClaims) -> None:
        """See SessionServices."""
        self._owner.tell(Refused(self._session, refused, claims))

    def end(self) -> None:
        """See SessionServices."""
        if self._owner.sessions.pop(self._session, None) is not None:
            self._owner.tell(Ended(self._session))


class RemoteBody:
    """A spool.types.IncomingBody in a file that the owner opened."""

    def __init__(self, owner: OwnerCalls, session: int) -> None:
        self._owner = owner
        self._session = session
        self._file: Descriptor | None = None  # while it is of this process
        self.size_bytes = self.crc32 = 0

    async def write(self, blocks: Sequence[bytes]) -> None:
        """See IncomingBody."""
        if self._file is None:
            found = await self._owner.ask(lambda call: OpenBody(self._session, call), _file_or_text)
            if isinstance(found, str):
                raise SpoolUnavailableError(found)
            self._file = found
        await self._owner.disk.run(partial(self._write, self._file, b"".join(blocks)))

    def _write(self, file: Descriptor, octets: bytes) -> None:
        self._owner.disk.check_free_space(len(octets))
        with translate_os_errors(_BODIES):
            write_all(file.number, octets)
        self.size_bytes += len(octets)
        self.crc32 = crc32(octets, self.crc32)

    def offer(self) -> None:
        """Close the file: the owner removes it, and does not take one that is open as it is."""
        self._file = None

    def octets(self) -> FileOctets:
        """See IncomingBody. Nobody reads it here."""
        return FileOctets(_BODIES, 0, self.size_bytes)

    def discard(self) -> None:
        """See IncomingBody."""
        if self._file is not None:
            self._file = None
            self._owner.tell(DropBody(self._session))


def _file_or_text(answer: _Answered) -> Descriptor | str:
    return answer if isinstance(answer, Descriptor) else decode_reply(answer)
