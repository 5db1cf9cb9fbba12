"""A local delivery that the mailbox rejects: retried, or a bounce."""

from types import SimpleNamespace

import pytest

from relay.delivery.local_delivery import LocalDelivery
from relay.mailbox.types import MailboxFullError, MailboxTooSmallError, StoreUnavailableError
from relay.message.envelope import Envelope, ForwardPath, MessageFacts, Source
from relay.message.nexthop import LOCAL
from relay.message.outcome import Deferred, Failed
from relay.spool.types import ClaimedRecipient


@pytest.mark.parametrize(
    ("error", "kind", "status", "code"),
    [
        (MailboxFullError("full"), Deferred, "4.2.2", "452"),
        (MailboxTooSmallError("too small"), Failed, "5.2.2", "552"),
        (StoreUnavailableError("no disk"), Deferred, "4.3.0", "451"),
    ],
)
async def test_a_mailbox_error_defers_or_bounces(error, kind, status, code):
    class Refusing:
        async def deliver(self, *args, **more):
            raise error

    addresses = SimpleNamespace(mailbox_for=lambda address: address)
    message = MessageFacts("m", Envelope("a@b.test"), Source.SMTP, trusted=True, received_us=0)
    recipient = ClaimedRecipient(1, ForwardPath("bob@b.test"))
    claim = SimpleNamespace(
        message=message, recipients=(recipient,), attempts=0, attempt=1, next_hop=LOCAL
    )
    local = LocalDelivery(Refusing(), addresses)
    ((mailbox, group),) = local.by_mailbox(claim)
    outcome = await local.deliver(claim, mailbox, group, content=b"\r\n")
    assert isinstance(outcome, kind)
    assert outcome.evidence.status == status
    assert outcome.evidence.reply.startswith(f"{code} {status} ")
