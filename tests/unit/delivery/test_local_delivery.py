"""A local delivery that the mailbox rejects: retried, or a bounce."""

from types import SimpleNamespace

import pytest

from relay.delivery.local_delivery import LocalDelivery
from relay.mailbox.types import MailboxFullError, MailboxTooSmallError, StoreUnavailableError
from relay.message.outcome import Deferred, Failed
from relay.message.verdict import Source


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
    message = SimpleNamespace(id="m", reverse_path="a@b.test", source=Source.SMTP)
    claim = SimpleNamespace(message=message, attempts=0, attempt=1)
    recipient = SimpleNamespace(id=1, address="bob@b.test", added_by="", attempts=0)
    outcome = await LocalDelivery(Refusing(), addresses).deliver(claim, [recipient], b"\r\n")
    assert isinstance(outcome, kind)
    assert outcome.evidence.status == status
    assert outcome.evidence.reply.startswith(f"{code} {status} ")
