"""Local delivery: into the Maildirs of this relay, a few at once, round robin among senders.

In a development relay, captured mail is delivered too, into a separate mailbox for each recipient.

The store puts one copy into a mailbox, and decides whether there is room
(relay/store/mailbox/quota.py) and whether it is there already (relay/store/mailbox/inbox.py). Its
file is named after the queue id and the recipient's number, so that a repeated delivery finds the
first copy. A delivery that is cut
off is indeterminate: the next attempt first looks for its copy in the mailbox. An unknown user gets
550 5.1.1 here, if the account was removed after ingress accepted it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from relay.base.accounts.account import DEAD_LETTER
from relay.base.message.address import own_mailbox
from relay.base.message.content import Content, edit_header
from relay.base.message.envelope import Source
from relay.base.message.nexthop import CAPTURE
from relay.base.message.outcome import (
    INTERNAL,
    Captured,
    DeferralClass,
    Deferred,
    Delivered,
    Evidence,
    Failed,
    Indeterminate,
    Outcome,
)
from relay.base.message.receipt import ReceiptRequest
from relay.base.observe.logs import ContainedErrors, get_logger
from relay.base.task_set import TaskSet
from relay.delivery.attempt_recorder import AttemptRecorder
from relay.delivery.attempt_result import internal_error_outcomes
from relay.delivery.content_cache import unreadable
from relay.delivery.fair_queue import ClaimQueue
from relay.formats.mdn import asks_for_receipt, receipt_request
from relay.store.mailbox import errors
from relay.store.mailbox.delivery_store import DeliveryResult, DeliveryStore
from relay.store.mailbox.message_file import delivered_id
from relay.store.mailbox.stored_message import WellKnown
from relay.store.spool.types import Claim, ClaimedRecipient, SpoolError
from relay.transport.routing.route_table import RouteTable

_log = get_logger("delivery")
_AT_ONCE = 16
_CUT_OFF = Evidence("4.3.0", "the relay was stopped while it delivered this")


@dataclass(eq=False)
class LocalDelivery:
    """Claims for local mailboxes, and the workers that deliver them."""

    recorder: AttemptRecorder  # records the results of claims
    store: DeliveryStore  # has the mailboxes
    addresses: RouteTable  # which mailbox an address has
    _: KW_ONLY
    delivers_captured: bool = False  # whether captured mail gets a copy in a mailbox

    def __post_init__(self) -> None:
        self.ready = ClaimQueue()
        self.workers = TaskSet()

    def push(self, claim: Claim) -> None:
        """Add a claim; start a worker if there are fewer than the limit."""
        self.recorder.claims.track(claim, self.ready)
        self.ready.push(claim)
        self._ensure_worker()

    def abort(self) -> None:
        """Cancel the deliveries in progress."""
        self.workers.cancel()

    def _ensure_worker(self) -> None:
        """Start a worker if a claim waits and there are fewer workers than the limit."""
        if self.ready and len(self.workers) < _AT_ONCE:
            worker = self.workers.start(self._work())
            # a claim may have been pushed while this worker ended
            worker.add_done_callback(lambda _: self._ensure_worker())

    async def _work(self) -> None:
        contents, claims = self.recorder.contents, self.recorder.claims
        while (claim := self.ready.pop()) is not None:
            if contents.has_room_for(claim) or await contents.wait_for_room(claim, claims):
                await self._attempt(claim)

    async def _attempt(self, claim: Claim) -> None:
        outcomes: dict[int, Outcome] = {}
        try:
            with ContainedErrors(_log, "internal error in local delivery", qid=claim.message.id):
                await self._deliver(claim, outcomes)
        except asyncio.CancelledError:
            await self._cut_off(claim, outcomes)
            raise
        outcomes = internal_error_outcomes(claim) | outcomes
        await self.recorder.finish([self.recorder.record(claim, outcomes, reached=True)])

    async def _cut_off(self, claim: Claim, outcomes: dict[int, Outcome]) -> None:
        if outcomes:
            await self.recorder.record(claim, outcomes, reached=True)
        else:
            await self.recorder.release(claim)

    async def _deliver(self, claim: Claim, outcomes: dict[int, Outcome]) -> None:
        """Fill `outcomes`. A delivery that is cut off may have put its copy into the mailbox."""
        try:
            content = await self.recorder.contents.of(claim)
        except SpoolError as error:
            outcomes |= unreadable(claim, error)
            return

        async def deliver_to(mailbox: str | None, recipients: list[ClaimedRecipient]) -> None:
            outcome: Outcome = Indeterminate(_CUT_OFF)
            try:
                outcome = await self.deliver(claim, mailbox, recipients, content=content)
            finally:
                outcomes.update(dict.fromkeys((recipient.id for recipient in recipients), outcome))

        groups = self.by_mailbox(claim)
        if len(groups) == 1:
            await deliver_to(*groups[0])
        else:
            await self._run_share(partial(deliver_to, *group) for group in groups)

    async def _run_share(self, calls: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        """Run all calls; at once only as many as are one claim's share of _AT_ONCE."""
        waiting = deque(calls)
        running: list[asyncio.Task[None]] = []
        try:
            while waiting or running:
                while waiting and len(running) < _AT_ONCE // len(self.workers):
                    running.append(asyncio.create_task(waiting.popleft()()))
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in running:
                    if task.done():
                        task.result()
                running = [task for task in running if not task.done()]
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    # -- one copy
    def by_mailbox(self, claim: Claim) -> list[tuple[str | None, list[ClaimedRecipient]]]:
        """Return the recipients of a claim, grouped by mailbox; each unknown one has None.

        A group gets one copy and one outcome: `bob@`, `BOB@` and `bob+tag@` are one mailbox. In
        captured mail, `bob+tag@` is another mailbox than `bob@`.
        """
        is_local = claim.next_hop != CAPTURE
        mailbox_of = self.addresses.mailbox_for if is_local else own_mailbox
        groups: dict[str | int, tuple[str | None, list[ClaimedRecipient]]] = {}
        for recipient in claim.recipients:
            mailbox = mailbox_of(recipient.path.address)
            groups.setdefault(mailbox or recipient.id, (mailbox, []))[1].append(recipient)
        return list(groups.values())

    async def deliver(
        self,
        claim: Claim,
        mailbox: str | None,
        recipients: Sequence[ClaimedRecipient],
        *,
        content: Content,
    ) -> Outcome:
        """Put one copy into the folder of `mailbox` that the entry names, for `recipients`: a group
        of by_mailbox().

        The copy is named after the first recipient, which is the same in every attempt, because the
        group shares each outcome.
        """
        recipient = min(recipients, key=lambda recipient: recipient.id)
        is_captured = claim.next_hop == CAPTURE
        if is_captured and not self.delivers_captured:  # queued by a development relay
            return Captured(Evidence("2.1.5", "250 2.1.5 captured"))  # RFC 3463 3.2
        if mailbox is None:
            reply = f"550 5.1.1 <{recipient.path.address}>: no such user here"  # RFC 3463 3.2
            return Failed(Evidence("5.1.1", reply))
        head = (
            f"Return-Path: <{claim.message.envelope.reverse_path}>\r\n"
            f"Delivered-To: {recipient.path.address}\r\n"
        ).encode()
        unique = f"{claim.message.id}-{recipient.id}"
        try:
            result = await self.store.deliver(
                mailbox,
                unique=unique,
                folder=WellKnown(claim.extra.folder or WellKnown.INBOX),
                content=edit_header(content, head.__add__),
                over_quota=(claim.message.source is Source.REPORT and not claim.extra.keep)
                or any(recipient.added_by for recipient in recipients),
                # restored mail may have reached the mailbox while both were backed up
                is_repeat=claim.attempts > 0 or claim.extra.released,
            )
        except errors.MailboxTooSmallError as error:
            return Failed(Evidence("5.2.2", f"552 5.2.2 {error}"))  # RFC 3463 3.3
        except errors.MailboxFullError as error:
            # RFC 3463 3.3
            return Deferred(Evidence("4.2.2", f"452 4.2.2 {error}"), DeferralClass.MAILBOX)
        except errors.ContentUnreadableError as error:
            # RFC 3463 3.4
            return Deferred(Evidence("4.3.0", f"451 4.3.0 {error}"), DeferralClass.CONTENT)
        except errors.StoreUnavailableError as error:
            return Deferred(Evidence("4.3.0", f"451 4.3.0 {error}"), DeferralClass.MAILBOX)
        except Exception:  # noqa: BLE001 - an internal error defers, nothing is lost
            _log.exception("internal error in local delivery", qid=claim.message.id)
            return INTERNAL
        if (
            mailbox == DEAD_LETTER
            and claim.message.trusted
            and claim.message.source is not Source.REPORT
        ):
            event = "mail to postmaster has no reader: set mailboxes.postmaster"
            _log.repeated("warning", event, apart_s=3600.0, qid=claim.message.id)
        note = " (already delivered)" if result is DeliveryResult.ALREADY_THERE else ""
        text = f"{'captured for' if is_captured else 'delivered to'} {mailbox}{note}"
        # RFC 3463 3.2
        evidence = Evidence(
            "2.1.5",
            f"250 2.1.5 {text}",
            graph_id=delivered_id(unique),
            receipt=_receipt(claim, recipient, content, mailbox=mailbox),
        )
        return Captured(evidence) if is_captured else Delivered(evidence)


def _receipt(
    claim: Claim, recipient: ClaimedRecipient, content: Content, *, mailbox: str
) -> ReceiptRequest | None:
    """Return the read receipt that the message asks for. Senders do not learn of recipients that a
    rule added.
    """
    qid = claim.message.id  # the copy is in the mailbox
    with ContainedErrors(_log, "internal error in a request for a receipt", qid=qid):
        if asks_for_receipt(content) and not recipient.added_by:
            return receipt_request(content, claim.message, recipient.path, mailbox=mailbox)
    return None
