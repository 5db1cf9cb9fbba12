"""Local delivery: into the Maildirs of this relay.

On the path: the dispatcher hands entries for LOCAL over; the store makes them durable.
Holds: idempotent: the file's name comes from the queue id and the recipient's number.
Fails: never; trouble becomes an outcome.
Standards: RFC 5321 4.4 (Return-Path); RFC 3463 X.2.
"""

from collections.abc import Sequence
from typing import Protocol

from relay.mailbox.api import DeliveryResult, DeliveryStore
from relay.mailbox.types import (
    ContentUnreadableError,
    MailboxFullError,
    MailboxTooSmallError,
    StoreUnavailableError,
)
from relay.message.content import Content, edited
from relay.message.outcome import (
    INTERNAL_ERROR,
    DeferralClass,
    Deferred,
    Delivered,
    Evidence,
    Failed,
    Outcome,
)
from relay.message.verdict import Source
from relay.observe.logs import get_logger
from relay.spool.types import Claim, ClaimedRecipient

_log = get_logger("delivery")


class Addresses(Protocol):
    """The part of the route table that local delivery asks."""

    def mailbox_for(self, address: str) -> str | None:
        """The mailbox that takes mail for `address`, None if there is none."""
        ...


class LocalDelivery:
    """Delivers to mailboxes."""

    def __init__(self, store: DeliveryStore, addresses: Addresses) -> None:
        self._store = store
        self._addresses = addresses

    def by_mailbox(self, claim: Claim) -> list[list[ClaimedRecipient]]:
        """Return the recipients of a claim, those of one mailbox together.

        They get one copy and one outcome: `bob@`, `BOB@` and `bob+tag@` are one mailbox.
        """
        groups: dict[str | int, list[ClaimedRecipient]] = {}
        for recipient in claim.recipients:
            key = self._addresses.mailbox_for(recipient.address) or recipient.id
            groups.setdefault(key, []).append(recipient)
        return list(groups.values())

    async def deliver(
        self, claim: Claim, recipients: Sequence[ClaimedRecipient], content: Content
    ) -> Outcome:
        """Put one copy into the Inbox of `recipients`, a group of by_mailbox().

        The copy is named after the first of them, which is the same in every attempt, since they
        share each outcome.
        """
        recipient = min(recipients, key=lambda one: one.id)
        mailbox = self._addresses.mailbox_for(recipient.address)
        if mailbox is None:
            reply = f"550 5.1.1 <{recipient.address}>: no such user here"
            return Failed(Evidence("5.1.1", reply))
        head = (
            f"Return-Path: <{claim.message.reverse_path}>\r\nDelivered-To: {recipient.address}\r\n"
        ).encode()
        try:
            result = await self._store.deliver(
                mailbox,
                unique=f"{claim.message.id}-{recipient.id}",
                content=edited(content, head.__add__),
                over_quota=claim.message.source is Source.REPORT
                or any(one.added_by for one in recipients),
                is_repeat=claim.attempts > 0,
            )
        except MailboxTooSmallError as error:
            return Failed(Evidence("5.2.2", f"552 5.2.2 {error}"))
        except MailboxFullError as error:
            return Deferred(Evidence("4.2.2", f"452 4.2.2 {error}"), DeferralClass.MAILBOX)
        except ContentUnreadableError as error:
            return Deferred(Evidence("4.3.0", f"451 4.3.0 {error}"), DeferralClass.CONTENT)
        except StoreUnavailableError as error:
            return Deferred(Evidence("4.3.0", f"451 4.3.0 {error}"), DeferralClass.MAILBOX)
        except Exception:  # noqa: BLE001 - an internal fault defers, nothing is lost
            _log.exception("local delivery broken off", qid=claim.message.id)
            evidence = Evidence("4.3.0", f"451 4.3.0 {INTERNAL_ERROR}")
            return Deferred(evidence, DeferralClass.INTERNAL)
        note = " (it was there already)" if result is DeliveryResult.ALREADY_THERE else ""
        return Delivered(Evidence("2.1.5", f"250 2.1.5 delivered to {mailbox}{note}"))
