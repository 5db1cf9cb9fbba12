"""One worker of a site: it delivers claims by one session after the other.

deliver() names what happens to each claim, in order. A connection has at most one transaction that
is not recorded. When a stop cuts an attempt off, it is recorded as far as it is known:
indeterminate if its final dot may have been written (RFC 1047), and released if nothing is known. A
recipient for whom an LMTP host accepts the message is recorded while the replies for others are
awaited (RFC 2033 4.2): after a crash it is not retried. Recipients that did not fit into one
transaction (452, RFC 5321 4.5.3.1.10; LIMITS, RFC 9422) are sent in further ones, which count as
the same attempt.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

from msgspec.structs import replace

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
from relay.delivery.connection_slots import SiteStatus, Slot
from relay.delivery.content_cache import unreadable
from relay.delivery.graph.claim_requests import ClaimRequests, GraphTransaction
from relay.delivery.host_selection import HostSession, SessionState
from relay.delivery.site import Site
from relay.delivery.site_limits import is_pushback
from relay.delivery.smtp.client_protocol import SmtpProtocolError
from relay.delivery.smtp.connect import ConnectError
from relay.delivery.smtp.connection import OnReplies
from relay.delivery.smtp.transaction import (
    Extensions,
    Transaction,
    TransactionResult,
    Unsupported,
    plan,
)
from relay.formats.encode_for_host import CannotEncodeError, need_of
from relay.store.spool.types import Claim, ClaimedRecipient, OrderedError, SpoolError

_log = get_logger("delivery")

# limit: messages on an outbound connection
TRANSACTIONS_MAX = 1000
_AGAIN_MAX = 1000  # transactions for one claim
_NOT_SENT = "Microsoft Graph has not sent it"  # what an order waits for


@dataclass
class _Attempt:
    """An attempt in progress. `claim` has the recipients without a recorded result."""

    claim: Claim
    began_s: float
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    recorded: frozenset[int] = frozenset()
    has_begun: bool = False  # MAIL had a reply, and the session went on
    is_waiting: bool = False  # for room: others may take the claim
    requests: ClaimRequests | None = None  # to Microsoft Graph

    def add(
        self,
        recipients: Sequence[ClaimedRecipient],
        outcomes: Mapping[int, Outcome],
        judged: Callable[[Deferred | Failed], Outcome],
    ) -> None:
        """Add the outcomes of a transaction; their keys are indexes into `recipients`. `judged`
        changes rejections by the [[reply]] entries.
        """
        for index, outcome in outcomes.items():
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
        others = tuple(other for other in self.claim.recipients if other.id not in taken)
        self.claim = replace(self.claim, recipients=others)
        self.recorded |= taken.keys()
        return taken


def _as_forwarded(claim: Claim, content: Content) -> tuple[Envelope, Content]:
    """Return the envelope and the content that leave. A copy that an alias forwards has the sender
    and the Delivered-To field that the alias gave it (RFC 9228).
    """
    envelope, extra = claim.message.envelope, claim.extra
    if extra.sender:
        envelope = replace(envelope, reverse_path=extra.sender)
    if extra.delivered_to:
        content = edit_header(content, f"Delivered-To: {extra.delivered_to}\r\n".encode().__add__)
    return envelope, content


async def serve(site: Site) -> None:
    """Deliver claims of a site by one connection, until the site no longer needs it."""
    await site.record_known_failures()
    first = site.ready.first
    if first is None or site.closing:
        return
    if len(site.ready) > 1:  # once this waits: the turn of another claim may be earlier
        asyncio.get_running_loop().call_soon(_use_earlier_turns, site)
    async with site.slots.hold(
        site, status=site.status(first), sender=first.sender, is_new=first.is_fresh
    ) as slot:
        await OutboundSession(site, slot, was_attempted=first.attempts > 0).run()


def _use_earlier_turns(site: Site) -> None:
    """Let the wait for a first slot have the earliest turn of all claims."""
    for sender, is_new in dict.fromkeys((claim.sender, claim.is_fresh) for claim in site.ready):
        site.slots.use_earlier_turn(site, sender, is_new=is_new)


class OutboundSession(SessionState):
    """A worker of a site with its session, and the recording that its next final dot waits for."""

    def __init__(self, site: Site, slot: Slot, *, was_attempted: bool) -> None:
        """`was_attempted`: the message that `slot` is for was attempted before."""
        super().__init__()
        self._site = site
        self._slot = slot
        self._was_attempted = was_attempted
        self._recorder = site.recorder
        self._contents = site.recorder.contents
        self._unrecorded: asyncio.Task[None] | None = None
        self._in_doubt = False  # the final dot may have been written and was not answered

    async def run(self) -> None:
        """Deliver claims until the site no longer needs the connection."""
        site, served = self._site, 0
        site.sessions.add(self)
        try:
            while not site.closing:
                claim = site.next_claim()
                if claim is None:
                    if not await site.wait_for_work():
                        break
                elif not await self.deliver(claim):
                    break
                else:
                    served += 1
                    if site.must_close(self, served):
                        break
        finally:
            site.sessions.remove(self)
            await self._quit()

    async def deliver(self, claim: Claim) -> bool:
        """Attempt every recipient of the claim once, and begin to record the outcomes. Return False
        if no host gave a connection: the site has taken the claim back.
        """
        attempt = _Attempt(claim, self._now_s())
        self._in_doubt = False
        try:
            await self._session()  # host and session: what waits for them holds no content
            while not self._contents.has_room_for(claim):  # room for the content
                if not await self._wait_for_room(attempt):
                    return True
                await self._session()
            await self._transact(attempt)  # a transaction, or several
        except ConnectError as error:
            took_s = self._now_s() - attempt.began_s
            await self._site.not_connected(self, claim, error.outcome, took_s=took_s)
            return False
        except asyncio.CancelledError:  # the grace time of a stop is over
            self._cut_off(attempt)
            raise
        except Exception:  # noqa: BLE001 - an internal error must not end the worker
            _log.exception("internal error in an attempt", qid=claim.message.id)
            attempt.outcomes = internal_error_outcomes(attempt.claim) | attempt.outcomes
        finally:
            self._site.concurrency.end(self)  # pushed_back() below counts the other sessions
            self._site.turns.end(claim)
        self._record(attempt)  # the result
        self._note_reuse()
        await self._quit_when_worn()
        self._tell_site(attempt)
        return True

    # -- host and session
    async def _session(self, without: Collection[str] = ()) -> HostSession:
        """Return the open connection, or a new one to the best host `without` these.

        Raises ConnectError.
        """
        if not self.is_over and (self.connection is None or not self.connection.is_open):
            self.connection = await self._new_session(without)
        if self.connection is None or self.is_over:
            text = "the routes or [delivery] have changed: the connection is not used any more"
            over = Deferred(Evidence("4.3.5", text), DeferralClass.INTERNAL)  # RFC 3463 3.4
            raise ConnectError(over, SmtpStage.CONNECT)
        return self.connection

    async def _new_session(self, without: Collection[str]) -> HostSession:
        site, slot = self._site, self._slot
        site.concurrency.end(self)
        others = [session for session in site.sessions if session is not self]
        is_first = not any(session.is_connected for session in others)
        # a fresh claim has the unreachable level for lack of room: its hosts may be reachable
        is_probe = slot.status is SiteStatus.UNKNOWN or not (
            self._was_attempted or slot.status is SiteStatus.ANSWERED
        )
        limit = partial(site.slots.probe_timeout, slot) if is_probe else nullcontext
        connection = await site.hosts.connect(self, others, limit=limit, without=without)
        site.slots.mark_answered(slot)
        if is_first:  # open connections for the claims that waited for this one
            asyncio.get_running_loop().call_soon(site.open_connections)
        return connection

    # -- room for the content
    async def _wait_for_room(self, attempt: _Attempt) -> bool:
        """Wait for room; return False if the claim is not to be attempted any more."""
        if self._site.closing:
            await self._recorder.release(attempt.claim)
            return False
        attempt.is_waiting = True
        if not await self._site.wait_for_room(attempt.claim):
            return False
        attempt.is_waiting = False
        attempt.began_s = self._now_s()
        return True

    # -- transactions
    async def _transact(self, attempt: _Attempt) -> None:
        """Fill the outcomes. Raises ConnectError if nothing was attempted."""
        claim, only_ask = attempt.claim, attempt.claim.extra.order is not None
        try:
            content = b"" if only_ask else await self._contents.of(claim)
        except SpoolError as error:
            _log.error("content unreadable", qid=claim.message.id, error=str(error))
            attempt.outcomes |= unreadable(claim, error)
            return
        envelope, content = _as_forwarded(claim, content)
        left = claim.recipients
        requests = None
        if claim.next_hop.kind is HopKind.GRAPH:
            content = self._contents.without_own_signatures(content)
            recorder, clock = self._recorder, self._site.clock
            requests = attempt.requests = ClaimRequests(
                recorder.spool, claim, clock, recorder.hostname, only_ask=only_ask
            )
        for _ in range(_AGAIN_MAX):
            paths = tuple([recipient.path for recipient in left])
            transaction = Transaction(envelope, paths, content)
            if requests is not None:
                requests.recipients = tuple(recipient.id for recipient in left)
                transaction = GraphTransaction(envelope, paths, content, requests=requests)
            try:
                on_replies = self._on_replies_for(attempt, left)
                result = await self._transact_once(claim, transaction, on_replies)
            except ConnectError as error:
                if not attempt.outcomes and not attempt.recorded:
                    raise
                for recipient in left:  # others were attempted already: this is the same attempt
                    attempt.outcomes.setdefault(recipient.id, error.outcome)
                return
            except OrderedError:
                result, only_ask = TransactionResult({}), True
            except SpoolError as error:
                attempt.outcomes = unreadable(attempt.claim, error) | attempt.outcomes
                return
            attempt.has_begun = attempt.has_begun or not result.never_begun
            attempt.add(left, result.outcomes, self._site.judged)
            if only_ask:
                unsent = Deferred(Evidence("4.4.2", _NOT_SENT, host=self.host), DeferralClass.SITE)
                attempt.outcomes = same_outcome(claim, unsent) | attempt.outcomes
            if not result.again or only_ask:
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
            attempt.add(recipients, outcomes, self._site.judged)
            self._record_accepted(attempt)

        return record_accepted

    def _record_accepted(self, attempt: _Attempt) -> None:
        attempted = attempt.claim
        if taken := attempt.take_accepted():
            took_s = self._now_s() - attempt.began_s
            self._record_in_order(self._recorder.record_some(attempted, taken, took_s=took_s))

    async def _transact_once(
        self, claim: Claim, transaction: Transaction, on_replies: OnReplies | None
    ) -> TransactionResult:
        """Run one transaction, on a new connection if the old one turns out to be closed, and by
        the next host if one does not offer what the message needs.
        """
        lacking: set[str] = set()
        everyone = range(len(transaction.recipients))
        while True:
            try:
                connection = await self._session(lacking)
            except ConnectError as error:
                if not lacking:
                    raise
                return TransactionResult(dict.fromkeys(everyone, error.outcome))
            self._site.begin(self)
            try:
                sent = await self._for_host(claim, transaction, connection.extensions)
            except CannotEncodeError as error:
                refused = Unsupported(error.status, str(error), lacking=error.by_host)
                result = refused.result(len(everyone), connection.peer)
            else:
                result = await connection.transact(
                    sent, before_dot=partial(self._before_dot, claim), on_replies=on_replies
                )
            self._in_doubt = False
            if not result.reusable:
                self.connection = None
            if result.lacking:
                lacking.add(self.host)
            if lacking and self.connection is not None:  # other mail begins with the best host
                self.connection = None
                await connection.quit()
            if not (result.stale or (result.lacking and self._site.hosts.has_others(lacking))):
                return result

    async def _for_host(
        self, claim: Claim, transaction: Transaction, offered: Extensions
    ) -> Transaction:
        """Return the transaction with what the host takes. Raises CannotEncodeError, SpoolError."""
        need = need_of(transaction.content, eight_bit=offered.eight_bit, smtputf8=offered.smtputf8)
        if not need or isinstance(plan(transaction, offered), Unsupported):
            return transaction
        made = await self._contents.encoded(claim, need)
        _, content = _as_forwarded(claim, made.content)
        return dataclasses.replace(transaction, content=content, encoded=made.why)

    async def _before_dot(self, claim: Claim) -> None:
        if self._unrecorded is not None and not self._unrecorded.done():
            await asyncio.shield(self._unrecorded)
        if not self._recorder.spool.may_finish(claim):
            text = "the database of the spool has not heard of this node for too long"
            raise SmtpProtocolError(SessionFailure.LOST, text)
        self._in_doubt = True

    # -- the result
    def _record(self, attempt: _Attempt) -> None:
        took_s = self._now_s() - attempt.began_s
        if attempt.requests is not None:  # whose end looks for drafts
            attempt.claim = replace(attempt.claim, extra=attempt.requests.noted)
        self._record_in_order(
            self._recorder.record(
                attempt.claim,
                attempt.outcomes,
                reached=True,
                paused_until_us=self._site.paused_until_us,
                took_s=took_s,
            )
        )

    def _tell_site(self, attempt: _Attempt) -> None:
        """Tell the site whether it may have more connections."""
        different = {id(outcome): outcome for outcome in attempt.outcomes.values()}
        if any(map(is_pushback, different.values())):
            self._site.concurrency.pushed_back(after_mail=attempt.has_begun)
        elif self.host:  # otherwise no host was involved
            self._site.answered()

    def _cut_off(self, attempt: _Attempt) -> None:
        """Record what is known; release the claim if nothing is."""
        if self._in_doubt and (attempt.requests is None or attempt.requests.is_sending):
            text = "the relay was stopped before the host answered the final dot"
            in_doubt = Indeterminate(Evidence("4.4.2", text, host=self.host))
            attempt.outcomes = same_outcome(attempt.claim, in_doubt) | attempt.outcomes
        if attempt.outcomes:
            self._record(attempt)
        elif not attempt.is_waiting:  # a stop takes those that wait before it cancels this
            self._record_in_order(self._recorder.release(attempt.claim))

    def _record_in_order(self, recording: Coroutine[None, None, None]) -> None:
        """Begin to record, after the recording in progress.

        A transaction without a final dot does not wait for the earlier recording. If it were
        recorded first, its entry would be requeued before the accepted recipients are recorded, and
        the next final dot would not wait for them.
        """
        before = self._unrecorded

        async def in_order() -> None:
            try:
                if before is not None:
                    await before
            finally:  # an error of that one must not leave this claim without a record
                await recording

        self._unrecorded = self._recorder.begin(in_order())

    def _note_reuse(self) -> None:
        """Let the evidence of further attempts say that the connection was open already."""
        connection = self.connection
        if connection is None:
            return
        session = connection.peer.session
        if session is not None and session.connect_ms is not None:  # of the first attempt
            reused = replace(session, connect_ms=None, tls_ms=0.0)
            connection.peer = replace(connection.peer, session=reused)

    async def _quit_when_worn(self) -> None:
        connection = self.connection
        if connection is None:
            return
        if connection.is_worn or connection.transactions >= TRANSACTIONS_MAX:
            self.connection = None
            await connection.quit()

    async def _quit(self) -> None:
        """Wait for the last recording, then send QUIT."""
        try:
            if self._unrecorded is not None:
                await asyncio.shield(self._unrecorded)
            if self.connection is not None and self.connection.is_open:
                await self.connection.quit()
        finally:
            if self.connection is not None:
                self.connection.close()

    def _now_s(self) -> float:
        return self._site.clock.real_s()
