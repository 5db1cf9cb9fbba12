"""Read receipts of this relay's own mailboxes: which are sent, and when (RFC 8098).

ReceiptSender hears that a copy was read or deleted unread, decides by the account's setting, and
has the notification accepted by the spool: in one transaction with the end of what is owed, and
under a submission key, so that a crash at any moment leaves exactly one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from relay.accounts.account import AccountDirectory, ReceiptSetting
from relay.message.receipt import OwedReceipt, ReceiptKind, ReceiptRequest
from relay.observe.logs import get_logger
from relay.reports.bounces import Reporter
from relay.spool.engine import SpoolEngine
from relay.spool.types import Claim, SentReceipt, SpoolError

_log = get_logger("reports")


def is_due(
    setting: ReceiptSetting, request: ReceiptRequest, *, is_wanted: bool, is_own: bool
) -> bool:
    """Return whether a receipt is sent.

    `is_wanted`: the reader said so. `is_own`: the asker is an account of this relay, or anybody in
    a development relay. Only trusted clients prove who asks: others could write to an account.
    """
    match setting:
        case ReceiptSetting.NEVER:
            return False
        case ReceiptSetting.ASK:
            return is_wanted
        case ReceiptSetting.ALWAYS:
            return True
        case ReceiptSetting.AUTO:
            return is_wanted or (is_own and request.is_trusted)
        case _:
            assert_never(setting)


@dataclass(kw_only=True, eq=False, repr=False)
class ReceiptSender:
    """Sends the receipts that are due."""

    spool: SpoolEngine  # knows what is owed, and accepts the notifications
    reporter: Reporter  # writes and routes them
    accounts: AccountDirectory  # who decides
    offer: Callable[[Sequence[Claim]], None]  # gets the claims of the notifications
    is_development: bool = False

    async def read(
        self, account: str, message_ids: Sequence[str], *, is_wanted: bool = False
    ) -> bool:
        """A client has marked messages as read; return whether a notification was sent.

        `is_wanted`: the client said that it is to be sent. Raises SpoolError if it is then not
        accepted; without it the error is logged.
        """
        if not self.spool.receipts.has_any:
            return False
        sent = False
        try:
            for owed in await self.spool.receipts.find(account, message_ids):
                sent |= await self.send(ReceiptKind.READ, owed, is_wanted=is_wanted)
        except SpoolError as error:
            if is_wanted:
                raise
            _log.warning("read receipt not sent", mailbox=account, error=str(error))
        return sent

    async def send(self, kind: ReceiptKind, owed: OwedReceipt, *, is_wanted: bool = False) -> bool:
        """Send the notification if it is due; return whether it is sent. Raises SpoolError."""
        request = await self.spool.receipts.request(owed.key)
        if request is None or owed.is_sent or not self._is_due(request, is_wanted=is_wanted):
            return False
        plan = self.reporter.receipt(kind, request, owed.key[0], is_manual=is_wanted)
        if plan is None:  # the asker's address has no next hop any more
            await self.spool.receipts.end([owed.key])
            return False
        (message,), (event,) = plan.messages, plan.events
        accepted = await self.spool.accept(
            message, submission_key=owed.submission_key, receipt=SentReceipt(owed.key, event)
        )
        if not accepted.repeated:
            self.reporter.count(kind)
            _log.info(
                "read receipt", kind=str(kind), about=owed.key[0], qid=accepted.queue_id,
                sender=owed.mailbox, to=request.to,
            )  # fmt: skip
        self.offer(accepted.claims)
        return True

    def _is_due(self, request: ReceiptRequest, *, is_wanted: bool) -> bool:
        account = self.accounts.by_address(request.mailbox)
        setting = account.read_receipts if account else ReceiptSetting.AUTO
        is_own = self.is_development or self.accounts.by_address(request.to) is not None
        return is_due(setting, request, is_wanted=is_wanted, is_own=is_own)
