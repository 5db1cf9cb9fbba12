r"""The read receipts that this relay's own mailboxes owe senders (RFC 8098): which are sent, and
when.

ReceiptSender hears that a copy was read or deleted unread, decides by the account's setting, and
has the notification accepted by the spool. That is one transaction with the end of what is owed,
under a submission key: a crash at any moment leaves exactly one.

ReceiptWatcher notices what other programs have read or deleted. It looks for what changed in the
mailboxes that owe receipts, some seconds apart. A copy with the flag \Seen was read. One that is in
Deleted Items, or in no folder, without that flag was not read; elsewhere it may still be. A copy
counts as gone only if it is missing twice, a minute apart, while the mail root and its folder are
there: a disk that is not mounted or a folder that was renamed deletes nothing.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from relay.base.accounts.account import AccountDirectory, ReceiptSetting
from relay.base.clock import Clock, pause_after
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.message.receipt import OwedReceipt, ReceiptKey, ReceiptKind
from relay.base.observe.logs import RepeatedError, get_logger
from relay.delivery.reports.bounces import Reporter
from relay.store.mailbox.errors import StoreError
from relay.store.mailbox.owed_copies import OwedCopies, Sighting
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.shared.receipts import ReceiptLedger
from relay.store.spool.types import Claim, SentReceipt, SpoolError

_log = get_logger("reports")


def is_due(setting: ReceiptSetting, owed: OwedReceipt, *, is_wanted: bool, is_own: bool) -> bool:
    """Return whether a receipt is sent.

    `is_wanted`: the reader said so. `is_own`: the asker is an account of this relay. Only trusted
    clients prove who asks: others could have Relay write to an account.
    """
    is_answer = setting is ReceiptSetting.AUTO and is_own and owed.is_trusted
    is_sent = is_wanted or is_answer or setting is ReceiptSetting.ALWAYS
    return is_sent and setting is not ReceiptSetting.NEVER


@dataclass(kw_only=True, eq=False, repr=False)
class ReceiptSender:
    """Sends the receipts that are due."""

    spool: SpoolEngine  # knows what is owed, and accepts the notifications
    reporter: Reporter  # writes and routes them
    accounts: AccountDirectory  # who decides
    offer: Callable[[Sequence[Claim]], None]  # gets the claims of the notifications
    copies: OwedCopies  # which may be marked
    crash: CrashPoints  # for crash tests
    is_development: bool = False  # the setting auto is always

    async def read(self, account: str, message_ids: Sequence[str], is_wanted: bool) -> bool:
        """A client has marked messages as read; return whether a notification was sent.

        With `is_wanted` the client asked to send it: raises SpoolError or StoreError if that fails.
        Otherwise an error is logged, and ReceiptWatcher sends it later.
        """
        if not self.spool.receipts.has_any:
            return False
        self.crash.reached(CrashPoint.COPY_READ)
        sent = False
        try:
            for owed in await self.spool.receipts.find(account, message_ids):
                sent |= await self.send(ReceiptKind.READ, owed, is_wanted=is_wanted)
        except (SpoolError, StoreError) as error:
            if is_wanted:
                raise
            _log.warning("read receipt not sent", mailbox=account, error=str(error))
        return sent

    async def send(self, kind: ReceiptKind, owed: OwedReceipt, *, is_wanted: bool = False) -> bool:
        """Send the notification if it is due; return whether it is sent. Raises SpoolError,
        StoreError.
        """
        if owed.is_sent or not self.is_due(owed, is_wanted=is_wanted):
            return False
        ledger = self.spool.receipts
        request = await ledger.request(owed.key)
        if request is None:  # it was sent
            return False
        plan = self.reporter.receipt(kind, request, owed.key[0], is_manual=is_wanted)
        is_marked = await self.copies.is_marked(owed.mailbox, owed.copy_id)
        if is_marked or plan is None:  # another program has sent it, or it has no next hop
            await ledger.end([owed.key])
            return False
        (message,), (event,) = plan.messages, plan.events
        sent = SentReceipt(owed.key, event, is_kept=is_marked is not None)
        accepted = await self.spool.accept(
            message, submission_key=owed.submission_key, receipt=sent
        )
        self.crash.reached(CrashPoint.RECEIPT_ACCEPTED)
        if not accepted.repeated:
            self.reporter.count(kind)
            _log.info(
                "read receipt",
                kind=str(kind),
                about=owed.key[0],
                qid=accepted.queue_id,
                sender=owed.mailbox,
                to=owed.to,
            )
        self.offer(accepted.claims)
        if sent.is_kept:
            await self.finish(owed)
        return True

    async def finish(self, owed: OwedReceipt) -> None:
        """Mark the copy of a receipt that was sent, if its folder has a letter for the keyword, and
        forget the receipt. A copy that cannot be marked holds up no other receipts: it is tried
        again when the ledger changes. Raises SpoolError.
        """
        with suppress(StoreError):
            await self.copies.mark(owed.mailbox, owed.copy_id)
            self.crash.reached(CrashPoint.RECEIPT_MARKED)
            await self.spool.receipts.end([owed.key])

    def is_due(self, owed: OwedReceipt, *, is_wanted: bool = False) -> bool:
        """Return whether a receipt is sent, with `is_wanted` if the reader says so."""
        account = self.accounts.by_address(owed.mailbox)
        setting = account.read_receipts if account else ReceiptSetting.AUTO
        if self.is_development and setting is ReceiptSetting.AUTO:
            setting = ReceiptSetting.ALWAYS
        is_own = self.accounts.by_address(owed.to) is not None
        return is_due(setting, owed, is_wanted=is_wanted, is_own=is_own)


OWED_US = 90 * 86_400_000_000  # what is older is not owed any more
VANISHED_MAX = 20  # in a mailbox; where more are gone together, a fault may be the reason
GONE_US = 60_000_000
_INTERVAL_S = 3.0
_PRUNE_US = 3_600_000_000


@dataclass(kw_only=True, eq=False, repr=False)
class ReceiptWatcher:
    """Watches the mailboxes that owe receipts which are sent without being asked for."""

    sender: ReceiptSender  # decides and sends
    ledger: ReceiptLedger  # knows what is owed
    copies: OwedCopies  # of the messages
    clock: Clock  # for the minute, and the end of what is owed
    _known: dict[ReceiptKey, OwedReceipt] = field(default_factory=dict)
    _missing_us: dict[ReceiptKey, int] = field(default_factory=dict)  # since when, in queue time
    _again_us: dict[str, tuple[int, OwedReceipt]] = field(default_factory=dict)  # by mailbox
    _waiting: set[str] = field(default_factory=set)  # mailboxes about which a line was logged
    _version: int = -1  # of the ledger, when it was read
    _read_again_s: float = 0.0
    _pruned_us: int = 0

    async def run(self) -> None:
        """Look until cancelled."""
        fault = RepeatedError()
        while True:
            try:
                if self.ledger.has_any or self._known:
                    await self.look()
            except (SpoolError, StoreError, OSError) as error:
                fault.log(_log.warning, "read receipts wait", error)
            except Exception:  # noqa: BLE001 - an internal error: the task must go on
                _log.exception("read receipts wait")
            else:
                fault.clear()
            await asyncio.sleep(_INTERVAL_S)  # real time: other programs change mailboxes

    async def look(self) -> None:
        """Look once. Raises SpoolError, StoreError, OSError."""
        now_us = self.clock.queue_us()
        if now_us - self._pruned_us >= _PRUNE_US:
            self._pruned_us = now_us
            await self.ledger.prune(self.clock.confirmed_us() - OWED_US)
        await self._read_ledger()
        for mailbox, (at_us, owed) in list(self._again_us.items()):
            if now_us >= at_us:
                del self._again_us[mailbox]
                self.copies.look_again(owed)
        sightings = await self.copies.look()
        try:
            await self._follow(sightings, now_us)
        except BaseException:
            for sighting in sightings:
                self.copies.look_again(sighting.owed)
            raise

    async def _follow(self, sightings: Sequence[Sighting], now_us: int) -> None:
        missing: dict[str, list[Sighting]] = defaultdict(list)
        for sighting in sightings:
            if sighting.is_missing:
                missing[sighting.owed.mailbox].append(sighting)
            else:
                await self._seen(sighting)
        for mailbox, group in missing.items():
            await self._gone(mailbox, group, now_us)

    async def _read_ledger(self) -> None:
        """Follow the ledger if it has changed."""
        now_s = self.clock.real_s()
        if self.ledger.version == self._version or now_s < self._read_again_s:
            return
        version = self.ledger.version
        owed = {receipt.key: receipt for receipt in await self.ledger.owed()}
        for key in self._known.keys() - owed.keys():
            self._forget(self._known[key])
        for key, receipt in owed.items():
            if receipt.is_sent:  # a crash or an error came before its copy was marked
                await self.sender.finish(receipt)
            elif key not in self._known and self.sender.is_due(receipt):
                self._known[key] = receipt
                self.copies.add(receipt)
        self._version = version
        self._read_again_s = now_s + pause_after(self.clock.real_s() - now_s)

    async def _seen(self, sighting: Sighting) -> None:
        self._missing_us.pop(sighting.owed.key, None)
        if sighting.is_read:
            await self._send(ReceiptKind.READ, sighting.owed)
        elif sighting.is_deleted:
            await self._send(ReceiptKind.NOT_READ, sighting.owed)
        elif sighting.is_moved:
            await self.ledger.moved(sighting.owed.key, sighting.owed.folder)

    async def _gone(self, mailbox: str, missing: Sequence[Sighting], now_us: int) -> None:
        """Send receipts for messages that no folder of the mailbox has, where they were deleted."""
        keys = [sighting.owed.key for sighting in missing]
        since = {key: self._missing_us.setdefault(key, now_us) for key in keys}
        due = [sighting for sighting in missing if now_us - since[sighting.owed.key] >= GONE_US]
        is_many = len(missing) >= VANISHED_MAX
        certain = [sighting for sighting in due if sighting.is_place_there and not is_many]
        if len(certain) < len(due) and mailbox not in self._waiting:
            self._waiting.add(mailbox)
            _log.warning(
                "messages with read receipts are gone: no receipt says that they were deleted,"
                " because their folder is gone too, or many are",
                mailbox=mailbox,
                messages=len(missing),
            )
        if len(certain) < len(missing):
            self._again_us[mailbox] = (now_us + GONE_US, missing[0].owed)
        for sighting in certain:
            await self._send(ReceiptKind.NOT_READ, sighting.owed)

    async def _send(self, kind: ReceiptKind, owed: OwedReceipt) -> None:
        """Send a receipt, and watch its copy no longer."""
        await self.sender.send(kind, owed)
        self._forget(owed)

    def _forget(self, owed: OwedReceipt) -> None:
        self._known.pop(owed.key, None)
        self._missing_us.pop(owed.key, None)
        self.copies.remove(owed)
