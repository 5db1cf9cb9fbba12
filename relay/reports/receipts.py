"""Read receipts of this relay's own mailboxes: which are sent, and when (RFC 8098).

ReceiptSender hears that a copy was read or deleted unread, decides by the account's setting, and
has the notification accepted by the spool: in one transaction with the end of what is owed, and
under a submission key, so that a crash at any moment leaves exactly one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from relay.accounts.account import AccountDirectory, ReceiptSetting
from relay.crashpoints import CrashPoint, CrashPoints
from relay.mailbox.owed_copies import OwedCopies
from relay.mailbox.types import StoreError
from relay.message.receipt import OwedReceipt, ReceiptKind
from relay.observe.logs import get_logger
from relay.reports.bounces import Reporter
from relay.spool.engine import SpoolEngine
from relay.spool.types import Claim, SentReceipt, SpoolError

_log = get_logger("reports")


def is_due(setting: ReceiptSetting, owed: OwedReceipt, *, is_wanted: bool, is_own: bool) -> bool:
    """Return whether a receipt is sent.

    `is_wanted`: the reader said so. `is_own`: the asker is an account of this relay. Only trusted
    clients prove who asks: others could have Relay write to an account.
    """
    match setting:
        case ReceiptSetting.NEVER:
            return False
        case ReceiptSetting.ASK:
            return is_wanted
        case ReceiptSetting.ALWAYS:
            return True
        case ReceiptSetting.AUTO:
            return is_wanted or (is_own and owed.is_trusted)
        case _:
            assert_never(setting)


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

    async def read(
        self, account: str, message_ids: Sequence[str], *, is_wanted: bool = False
    ) -> bool:
        """A client has marked messages as read; return whether a notification was sent.

        `is_wanted`: the client said that it is to be sent. Raises SpoolError, StoreError if it then
        cannot be; without it the error is logged, and ReceiptWatcher sends it.
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
        if owed.is_sent or not self._is_due(owed, is_wanted=is_wanted):
            return False
        ledger = self.spool.receipts
        request = await ledger.request(owed.key)
        if request is None:  # it was sent
            return False
        plan = self.reporter.receipt(kind, request, owed.key[0], is_manual=is_wanted)
        is_marked = await self.copies.is_marked(owed.mailbox, owed.copy_id)
        if is_marked or plan is None:  # another program has sent it, or nobody can get it any more
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
                "read receipt", kind=str(kind), about=owed.key[0], qid=accepted.queue_id,
                sender=owed.mailbox, to=owed.to,
            )  # fmt: skip
        self.offer(accepted.claims)
        if sent.is_kept:
            await self.finish(owed)
        return True

    async def finish(self, owed: OwedReceipt) -> None:
        """Mark the copy of a receipt that was sent, if its folder has a letter for the keyword, and
        forget the receipt. Raises SpoolError, StoreError.
        """
        await self.copies.mark(owed.mailbox, owed.copy_id)
        self.crash.reached(CrashPoint.RECEIPT_MARKED)
        await self.spool.receipts.end([owed.key])

    def is_automatic(self, owed: OwedReceipt) -> bool:
        """Return whether a receipt is sent without being asked for."""
        return self._is_due(owed, is_wanted=False)

    def _is_due(self, owed: OwedReceipt, *, is_wanted: bool) -> bool:
        account = self.accounts.by_address(owed.mailbox)
        setting = account.read_receipts if account else ReceiptSetting.AUTO
        if self.is_development and setting is ReceiptSetting.AUTO:
            setting = ReceiptSetting.ALWAYS
        is_own = self.accounts.by_address(owed.to) is not None
        return is_due(setting, owed, is_wanted=is_wanted, is_own=is_own)
