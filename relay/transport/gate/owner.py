"""The owner's side of the gate: it keeps the owner's side of each session, and answers the child.

Each session has one SessionOwner, made with the address and the trust of its connection before the
child gets the connection. A call has the random number of its session, and gets one answer. If a
session does not wait for its answer, or does not exist, the child breaks the rules: it is ended,
and another is started.
"""

import asyncio
import os
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, cast

from msgspec import Raw

from relay.base.accounts.account import LoginDelayedError, LoginRefusedError
from relay.base.message.content import Content, LargeContent
from relay.base.message.envelope import ForwardPath
from relay.base.observe.logs import ContainedErrors, get_logger
from relay.base.task_set import TaskSet
from relay.store.spool.types import LendableBody, SpoolError, SpoolUnavailableError
from relay.transport.gate import wire
from relay.transport.gate.frames import FrameChannel
from relay.transport.ingress.data import ContentRejection, DataReply, ReceivedContent
from relay.transport.ingress.session_owner import SessionOwner

_OFFERED_BYTES_MAX = 64 * 1024 * 1024  # of messages that are being accepted; then the child waits
_RECIPIENTS_MAX = 100_000  # of a transaction
_UNREAD_BYTES_MAX = 16 * 1024 * 1024  # of answers that the child does not read
Question = wire.LogIn | wire.CheckSender | wire.CheckRecipient | wire.OpenBody | wire.Accept
_has_control = re.compile(r"[\x00-\x1f\x7f]").search
_log = get_logger("gate")


class _OwnedSession:
    """The state that the owner keeps of a session."""

    __slots__ = ("body", "is_busy", "owner", "taken")

    def __init__(self, owner: SessionOwner) -> None:
        self.owner = owner
        self.taken: set[tuple[str, str]] = set()  # accepted pairs of sender and recipient
        self.body: LendableBody | None = None  # the file that the child writes
        self.is_busy = False  # a call waits for its answer

    @property
    def is_free(self) -> bool:
        """Whether the client may use any sender and recipient: a trusted network, no login."""
        return self.owner.is_trusted and not self.owner.login

    def take_sender(self, sender: str, reply: str) -> None:
        """Record the sender of a new transaction, if it is accepted."""
        self.taken = set() if reply or self.is_free else {(sender, "")}

    def take_recipient(self, sender: str, recipient: str, reply: str) -> None:
        """Record a recipient of a stranger, if it is accepted."""
        if not (reply or self.is_free or self.owner.login) and len(self.taken) <= _RECIPIENTS_MAX:
            self.taken.add((sender, recipient))

    def has_taken(self, sender: str, paths: Sequence[ForwardPath]) -> bool:
        """Whether the owner has accepted sender and recipients; a login may relay to any."""
        taken, self.taken = self.taken, set()
        recipients = [] if self.owner.login else [path.address for path in paths]
        return self.is_free or {(sender, recipient) for recipient in ("", *recipients)} <= taken

    def drop(self) -> None:
        """Discard the body that the child was writing, unless a call takes it."""
        if self.body is not None and not self.is_busy:
            self.body.discard()
            self.body = None


class SessionsOfChild:
    """The sessions of one child, until it ends."""

    def __init__(
        self,
        send_file: Callable[[wire.BodyFile, int], None],
        on_ready: Callable[[wire.Ready], None],
    ) -> None:
        """`send_file` sends a packet with a descriptor, which it closes."""
        self.channel: FrameChannel  # to the child
        self._send_file, self._on_ready = send_file, on_ready
        self._sessions: dict[int, _OwnedSession] = {}
        self._tasks = TaskSet()
        self._offered_bytes = 0

    @property
    def total(self) -> int:
        """The number of open sessions."""
        return len(self._sessions)

    def begin(self, owner: SessionOwner) -> int:
        """Return the number of a new session."""
        number = secrets.randbits(63)
        self._sessions[number] = _OwnedSession(owner)
        return number

    def hear(self, octets: bytes) -> None:
        """Handle a frame. Raises ValueError if it breaks the rules."""
        frame = wire.decode_from_child(octets)
        if isinstance(frame, wire.Ready):
            self._on_ready(frame)
            return
        if self.channel.is_full and self.channel.unread_bytes > _UNREAD_BYTES_MAX:
            raise ValueError("the child reads no answers")
        session = self._sessions.get(frame.session)
        if session is None:
            raise ValueError(f"found {type(frame).__name__} of a session that does not exist")
        match frame:
            case wire.Refused(refused=refused):
                session.owner.refused(refused, frame.claims)
            case wire.DropBody():
                session.drop()
            case wire.Ended():
                self._sessions.pop(frame.session).drop()
            case _:
                if session.is_busy:
                    raise ValueError(f"found {type(frame).__name__} before the last answer")
                session.is_busy = True
                answering = self._answer(session, frame)
                if isinstance(frame, wire.Accept):
                    self._tasks.keep(session.owner.acceptances.start(answering))
                else:
                    self._tasks.start(answering)

    def end(self) -> None:
        """Forget the sessions after the end of the child. Messages it has handed over go on."""
        for session in self._sessions.values():
            session.drop()
        self._sessions.clear()

    async def finish(self, timeout_s: float) -> None:
        """Wait for messages that the child has handed over; those that hang get no 250."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)  # real time: a disk

    async def _answer(self, session: _OwnedSession, call: Question) -> None:
        value, has_failed = None, True  # then the session answers 451, and the others go on
        with ContainedErrors(_log, "a call of the gate failed", call=type(call).__name__):
            value = await self._value(session, call)
            has_failed = False
        session.is_busy = False
        if call.session not in self._sessions:  # the client is gone
            session.drop()
        if value is not None or has_failed:  # the value becomes the octets of a Raw with its frame
            self.channel.send(
                wire.encode(wire.CallAnswer(call.call, cast("Raw", value), has_failed))
            )

    async def _value(self, session: _OwnedSession, call: Question) -> Any:
        owner = session.owner
        match call:
            case wire.CheckRecipient(address=address, reverse_path=sender):
                answer = await owner.check_recipient(
                    address, sender, call.size_bytes, helo=call.helo
                )
                session.take_recipient(sender, address, answer.reply)
                return answer
            case wire.Accept():
                return await self._accept(session, call)
            case wire.CheckSender(reverse_path=sender):
                reply = await owner.sender_rejection(sender)
                session.take_sender(sender, reply)
                return reply
            case wire.LogIn():
                session.taken = set()
                return await _log_in(owner, call)
            case wire.OpenBody():
                return await self._open_body(session, call)

    async def _accept(self, session: _OwnedSession, call: wire.Accept) -> DataReply:
        offered = call.offered
        envelope, paths, claims = offered.mail.envelope, offered.paths, offered.claims
        texts = [envelope.reverse_path, envelope.envid, claims.helo, claims.tls]
        texts += [text for path in paths for text in (path.address, path.orcpt)]
        if _has_control("".join(texts)) or not session.has_taken(envelope.reverse_path, paths):
            _log.error("the gate hands over mail that is not taken", session=call.session)
            return DataReply(ContentRejection.LOCAL_ERROR)
        body, session.body = session.body, None
        size_bytes = len(call.content)
        self._count(size_bytes)

        def release() -> None:
            self._count(-size_bytes)
            if body is not None:
                body.discard()

        content: Content = call.content
        if (written := call.body) is not None:
            try:
                if body is None:
                    raise SpoolUnavailableError("there is no file of this body")
                await body.take_back(written.size_bytes, written.crc32)
            except SpoolError as error:
                release()
                _log.repeated("warning", "spool unavailable", error=error)
                return DataReply(ContentRejection.LOCAL_ERROR)
            octets = body.octets()
            content = LargeContent(call.content, (octets,), written.eight_bit, written.long_lines)
        return await session.owner.accepted(offered, ReceivedContent(content, release))

    def _count(self, size_bytes: int) -> None:
        """Count messages in memory; stop reading while there are too many."""
        was_full = self._offered_bytes > _OFFERED_BYTES_MAX
        self._offered_bytes += size_bytes
        is_full = self._offered_bytes > _OFFERED_BYTES_MAX
        if is_full != was_full:
            self.channel.read(goes_on=not is_full)

    async def _open_body(self, session: _OwnedSession, call: wire.OpenBody) -> str | None:
        """Answer with a file, or return why there is none."""
        if session.body is not None:
            session.body.discard()
        body = session.owner.new_body()
        try:
            descriptor = await body.lend()
        except SpoolError as error:
            return str(error)
        session.body = body
        self._send_file(wire.BodyFile(call.call), os.dup(descriptor))
        return None


async def _log_in(owner: SessionOwner, call: wire.LogIn) -> wire.LoginAnswer:
    try:
        return wire.LoginAnswer(await owner.log_in(call.user, call.secret, call.is_token))
    except LoginDelayedError as error:
        return wire.LoginAnswer(delayed=str(error), retry_after_s=error.retry_after_s)
    except LoginRefusedError as error:
        return wire.LoginAnswer(refused=str(error))
