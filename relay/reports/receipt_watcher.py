r"""Notice that other programs have read or deleted messages whose read receipts are owed.

ReceiptWatcher looks for what changed in the mailboxes that owe receipts, some seconds apart. A copy
with the flag \Seen was read. One that is in Deleted Items, or in no folder, without that flag was
not read; elsewhere it may still be. A copy counts as gone only if it is missing twice, a minute
apart, while the mail root and its folder are there: a disk that is not mounted or a folder that
was renamed deletes nothing.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from relay.clock import Clock
from relay.mailbox.owed_copies import OwedCopies, Sighting
from relay.mailbox.types import StoreError
from relay.message.receipt import OwedReceipt, ReceiptKey, ReceiptKind
from relay.observe.logs import RepeatedError, get_logger
from relay.reports.receipts import ReceiptSender
from relay.spool.engine import ReceiptLedger
from relay.spool.types import SpoolError

OWED_US = 90 * 86_400_000_000  # what is older is not owed any more
VANISHED_MAX = 20  # in a mailbox; when more are gone together, nobody may have deleted them
GONE_US = 60_000_000
_INTERVAL_S = 3.0
_PRUNE_US = 3_600_000_000
_COST_FACTOR = 20  # reading what is owed takes at most a twentieth of the time
_log = get_logger("reports")


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
                if fault.is_new(error):
                    _log.warning("read receipts wait", error=str(error))
            except Exception:  # noqa: BLE001 - ours: the task must go on
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
            for one in sightings:
                self.copies.look_again(one.owed)
            raise

    async def _follow(self, sightings: Sequence[Sighting], now_us: int) -> None:
        missing: dict[str, list[Sighting]] = defaultdict(list)
        for one in sightings:
            if one.is_missing:
                missing[one.owed.mailbox].append(one)
            else:
                await self._seen(one)
        for mailbox, some in missing.items():
            await self._gone(mailbox, some, now_us)

    async def _read_ledger(self) -> None:
        """Follow the ledger if it has changed."""
        now_s = self.clock.real_s()
        if self.ledger.version == self._version or now_s < self._read_again_s:
            return
        version = self.ledger.version
        owed = {one.key: one for one in await self.ledger.owed()}
        for key in self._known.keys() - owed.keys():
            self._forget(self._known[key])
        for key, one in owed.items():
            if one.is_sent:  # a crash came before its copy was marked
                await self.sender.finish(one)
            elif key not in self._known and self.sender.is_automatic(one):
                self._known[key] = one
                self.copies.add(one)
        self._version = version
        self._read_again_s = now_s + _COST_FACTOR * (self.clock.real_s() - now_s)

    async def _seen(self, one: Sighting) -> None:
        self._missing_us.pop(one.owed.key, None)
        kind = ReceiptKind.NOT_READ if one.is_deleted else None
        if one.is_read:
            kind = ReceiptKind.READ
        if kind is not None:
            await self._send(kind, one.owed)
        elif one.is_moved:
            await self.ledger.moved(one.owed.key, one.owed.folder)

    async def _gone(self, mailbox: str, missing: Sequence[Sighting], now_us: int) -> None:
        """Decide about the copies of a mailbox that are in none of its folders."""
        since = {one.owed.key: self._missing_us.setdefault(one.owed.key, now_us) for one in missing}
        due = [one for one in missing if now_us - since[one.owed.key] >= GONE_US]
        certain = [one for one in due if one.is_place_there and len(missing) < VANISHED_MAX]
        if len(certain) < len(due) and mailbox not in self._waiting:
            self._waiting.add(mailbox)
            _log.warning(
                "messages with read receipts are gone: no receipt says that they were deleted,"
                " because their folder is gone too, or many are",
                mailbox=mailbox, messages=len(missing),
            )  # fmt: skip
        if len(certain) < len(missing):
            self._again_us[mailbox] = (now_us + GONE_US, missing[0].owed)
        for one in certain:
            await self._send(ReceiptKind.NOT_READ, one.owed)

    async def _send(self, kind: ReceiptKind, owed: OwedReceipt) -> None:
        """Send a receipt, and watch its copy no longer."""
        await self.sender.send(kind, owed)
        self._forget(owed)

    def _forget(self, owed: OwedReceipt) -> None:
        self._known.pop(owed.key, None)
        self._missing_us.pop(owed.key, None)
        self.copies.remove(owed)
