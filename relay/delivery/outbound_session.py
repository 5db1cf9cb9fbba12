"""One connection of a site, with the recording that its next final dot waits for.

A connection has at most one transaction that is not recorded. When a stop cuts an attempt off, it
is recorded as far as it is known: indeterminate if its final dot may have been written (RFC 1047),
and released if nothing is known. A recipient for whom an LMTP host accepts the message is recorded
while the replies for others are awaited (RFC 2033 4.2): after a crash it is not retried. Recipients
that did not fit into one transaction (452, RFC 5321 4.5.3.1.10; LIMITS, RFC 9422) are sent in
further ones, which count as the same attempt.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from msgspec.structs import replace

from relay.base.clock import Clock
from relay.base.message.content import Content, edit_header
from relay.base.message.envelope import Envelope
from relay.base.message.nexthop import HopKind
from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Evidence,
    Failed,
    Indeterminate,
    Outcome,
    SessionFailure,
    SmtpStage,
    Success,
)
from relay.base.observe.logs import get_logger
from relay.delivery.attempt_result import internal_error_outcomes, same_outcome
from relay.delivery.content_cache import unreadable
from relay.delivery.dependencies import Scheduler
from relay.delivery.site_limits import Pushback, is_pushback
from relay.delivery.smtp.client_protocol import SmtpProtocolError
from relay.delivery.smtp.connect import ConnectError
from relay.delivery.smtp.connection import Connection, OnReplies
from relay.delivery.smtp.transaction import (
    Extensions,
    Transaction,
    TransactionResult,
    wrong_address,
)
from relay.formats.encode_for_host import CannotEncodeError, need_of
from relay.store.spool.types import Claim, ClaimedRecipient, SpoolError

_log = get_logger("delivery")

TRANSACTIONS_MAX = 1000  # per connection
_AGAIN_MAX = 1000  # transactions for one claim


@dataclass
class _Attempt:
    """An attempt in progress. `claim` has the recipients without a recorded result."""

    claim: Claim
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    recorded: frozenset[int] = frozenset()
    has_begun: bool = False  # MAIL was answered

    def add(
        self,
        recipients: Sequence[ClaimedRecipient],
        found: Mapping[int, Outcome],
        judged: Callable[[Deferred | Failed], Outcome],
    ) -> None:
        """Add what a transaction gave; its keys are indexes into `recipients`. A rejection is first
        `judged`.
        """
        for index, outcome in found.items():
            number = recipients[index].id
            if number not in self.recorded:
                if isinstance(outcome, Deferred | Failed):
                    outcome = judged(outcome)  # noqa: PLW2901 - nothing needs the former
                self.outcomes[number] = outcome

    def take_accepted(self) -> dict[int, Success]:
        """Take out the recipients for which the host has accepted the message."""
        outcomes = self.outcomes.items()
        taken = {key: outcome for key, outcome in outcomes if isinstance(outcome, Success)}
        for key in taken:
            del self.outcomes[key]
        others = tuple(one for one in self.claim.recipients if one.id not in taken)
        self.claim = replace(self.claim, recipients=others)
        self.recorded |= taken.keys()
        return taken


def _as_forwarded(claim: Claim, content: Content) -> tuple[Envelope, Content]:
    """Return what leaves: of a copy that an alias forwards with its sender, and the field that says
    so (RFC 9228).
    """
    envelope, extra = claim.message.envelope, claim.extra
    if extra.sender:
        envelope = replace(envelope, reverse_path=extra.sender)
    if extra.delivered_to:
        content = edit_header(content, f"Delivered-To: {extra.delivered_to}\r\n".encode().__add__)
    return envelope, content


class NoRoomError(Exception):
    """There is no room for the content of a claim now. Nothing was attempted."""


class OutboundSession:
    """A connection and its last recording. `host` is the last host that it connected to."""

    def __init__(
        self,
        connect: Callable[["OutboundSession"], Awaitable[Connection]],
        scheduler: Scheduler,
        clock: Clock,
        *,
        judged: Callable[[Deferred | Failed], Outcome] = lambda outcome: outcome,
    ) -> None:
        """`connect` opens a connection and calls set_host(). It raises ConnectError. `judged`
        returns what a rejection means.
        """
        self._judged = judged
        self._connect = connect
        self._scheduler = scheduler
        self._clock = clock
        self._began_s = 0.0
        self.host = ""
        self._connection: Connection | None = None
        self._unrecorded: asyncio.Task[None] | None = None
        self._in_doubt = False  # the final dot may have been written and was not answered
        self.is_over = False  # begins no transaction any more

    @property
    def is_connected(self) -> bool:
        """Whether it has a connection, busy or idle."""
        return self._connection is not None

    @property
    def took_s(self) -> float:
        """How long the attempt takes, until now."""
        return self._clock.real_s() - self._began_s

    def set_host(self, host: str) -> None:
        """Record the host that is being connected to."""
        self.host = host

    async def deliver(self, claim: Claim) -> Pushback:
        """Attempt every recipient of the claim once and begin to record it. Raises ConnectError if
        no host gives a connection, NoRoomError; nothing was attempted then.
        """
        attempt = _Attempt(claim)
        self._began_s = self._clock.real_s()
        try:
            await self._attempt(attempt)
        except (ConnectError, NoRoomError):
            raise
        except asyncio.CancelledError:  # the grace time of a stop is over
            self._cut_off(attempt)
            raise
        except Exception:  # noqa: BLE001 - an internal error must not end the worker
            _log.exception("internal error in an attempt", qid=claim.message.id)
            attempt.outcomes = internal_error_outcomes(attempt.claim) | attempt.outcomes
        self._record_in_order(
            self._scheduler.record(attempt.claim, attempt.outcomes, took_s=self.took_s)
        )
        self._note_reuse()
        await self._quit_when_worn()
        if not any(map(is_pushback, attempt.outcomes.values())):
            return Pushback.NONE
        return Pushback.AFTER_MAIL if attempt.has_begun else Pushback.BEFORE_MAIL

    async def _attempt(self, attempt: _Attempt) -> None:
        """Fill its outcomes. Raises ConnectError and NoRoomError if nothing was attempted."""
        self._in_doubt = False
        claim = attempt.claim
        await self._connected()  # first: an unreachable host must not keep contents in memory
        if not self._scheduler.contents.has_room_for(claim):
            raise NoRoomError
        try:
            content = await self._scheduler.contents.of(claim)
        except SpoolError as error:
            _log.error("content unreadable", qid=claim.message.id, error=str(error))
            attempt.outcomes |= unreadable(claim, error)
            return
        envelope, content = _as_forwarded(claim, content)
        left = claim.recipients
        for _ in range(_AGAIN_MAX):
            paths = tuple(one.path for one in left)
            transaction = Transaction(envelope, paths, content)
            try:
                on_replies = self._on_replies_for(attempt, left)
                result = await self._transact(claim, transaction, on_replies)
            except ConnectError as error:
                if not attempt.outcomes and not attempt.recorded:
                    raise
                for one in left:  # others were attempted already: this is the same attempt
                    attempt.outcomes.setdefault(one.id, error.outcome)
                return
            except SpoolError as error:
                attempt.outcomes = unreadable(attempt.claim, error) | attempt.outcomes
                return
            attempt.has_begun = attempt.has_begun or not result.never_begun
            attempt.add(left, result.outcomes, self._judged)
            if not result.again:
                return
            left = tuple(left[index] for index in result.again)
            self._record_accepted(attempt)  # before the next final dot
            await self._quit_when_worn()

    def _on_replies_for(
        self, attempt: _Attempt, recipients: Sequence[ClaimedRecipient]
    ) -> OnReplies | None:
        """Return what records recipients by LMTP while others have no reply yet."""
        if attempt.claim.next_hop.kind is not HopKind.LMTP:
            return None

        def record_accepted(outcomes: Mapping[int, Outcome]) -> None:
            attempt.add(recipients, outcomes, self._judged)
            self._record_accepted(attempt)

        return record_accepted

    def _record_accepted(self, attempt: _Attempt) -> None:
        attempted = attempt.claim
        if taken := attempt.take_accepted():
            self._record_in_order(self._scheduler.record_some(attempted, taken, took_s=self.took_s))

    async def _transact(
        self, claim: Claim, transaction: Transaction, on_replies: OnReplies | None
    ) -> TransactionResult:
        """Run one transaction, on a new connection if the old one turns out to be closed."""
        while True:
            connection = await self._connected()
            try:
                sent = await self._for_host(claim, transaction, connection.extensions)
            except CannotEncodeError as error:
                reply = f"{error.status} {error}"
                failed = Failed(connection.peer.evidence(error.status, reply))
                everyone = range(len(transaction.recipients))
                return TransactionResult(dict.fromkeys(everyone, failed), reusable=True)
            result = await connection.transact(
                sent, before_dot=partial(self._before_dot, claim), on_replies=on_replies
            )
            self._in_doubt = False
            if not result.reusable:
                self._connection = None
            if not result.stale:
                return result

    async def _for_host(
        self, claim: Claim, transaction: Transaction, offered: Extensions
    ) -> Transaction:
        """Return the transaction with what the host takes. Raises CannotEncodeError, SpoolError."""
        need = need_of(transaction.content, eight_bit=offered.eight_bit, smtputf8=offered.smtputf8)
        if not need or wrong_address(transaction, offered):
            return transaction
        made = await self._scheduler.contents.encoded(claim, need)
        _, content = _as_forwarded(claim, made.content)
        return dataclasses.replace(transaction, content=content, encoded=made.why)

    async def _connected(self) -> Connection:
        """Return the open connection, or a new one, for the transaction that begins. Raises
        ConnectError.
        """
        if not self.is_over and (self._connection is None or not self._connection.is_open):
            self._connection = await self._connect(self)
        if self._connection is None or self.is_over:
            text = "the routes or [delivery] have changed: the connection is not used any more"
            over = Deferred(Evidence("4.3.5", text), DeferralClass.INTERNAL)  # RFC 3463 3.4
            raise ConnectError(over, SmtpStage.CONNECT)
        return self._connection

    def _cut_off(self, attempt: _Attempt) -> None:
        """Record what is known; release the claim if nothing is."""
        claim, outcomes = attempt.claim, attempt.outcomes
        if self._in_doubt:
            text = "the relay was stopped before the host answered the final dot"
            in_doubt = Indeterminate(Evidence("4.4.2", text, host=self.host))
            outcomes = same_outcome(claim, in_doubt) | outcomes
        scheduler = self._scheduler
        self._record_in_order(
            scheduler.record(claim, outcomes, took_s=self.took_s)
            if outcomes
            else scheduler.give_back(claim)
        )

    def _record_in_order(self, recording: Coroutine[None, None, None]) -> None:
        """Begin to record, after the recording in progress.

        A transaction without a final dot does not wait for that one. If it were recorded first, the
        entry would be requeued before its accepted recipients are recorded, and the next final dot
        would not wait for the earlier recording.
        """
        before = self._unrecorded

        async def in_order() -> None:
            try:
                if before is not None:
                    await before
            finally:  # an error of that one must not leave this claim without a record
                await recording

        self._unrecorded = self._scheduler.run_in_background(in_order())

    def _note_reuse(self) -> None:
        """Let the evidence of further attempts say that the connection was open already."""
        connection = self._connection
        if connection is None or (session := connection.peer.session) is None:
            return
        if session.connect_ms is not None:  # of the first attempt
            reused = replace(session, connect_ms=None, tls_ms=0.0)
            connection.peer = replace(connection.peer, session=reused)

    async def _before_dot(self, claim: Claim) -> None:
        if self._unrecorded is not None and not self._unrecorded.done():
            await asyncio.shield(self._unrecorded)
        if not self._scheduler.spool.may_finish(claim):
            text = "the database of the spool has not heard of this node for too long"
            raise SmtpProtocolError(SessionFailure.LOST, text)
        self._in_doubt = True

    async def _quit_when_worn(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if connection.is_worn or connection.transactions >= TRANSACTIONS_MAX:
            self._connection = None
            await connection.quit()

    async def end(self) -> None:
        """Wait for the last recording, then send QUIT."""
        try:
            if self._unrecorded is not None:
                await asyncio.shield(self._unrecorded)
            if self._connection is not None and self._connection.is_open:
                await self._connection.quit()
        finally:
            if self._connection is not None:
                self._connection.close()
