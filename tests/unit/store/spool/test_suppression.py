"""Which replies of hosts say that an address does not exist."""

from pathlib import Path
from typing import Any

from relay.base.message.envelope import ForwardPath, Source
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import Outcome, Peer, Reply, SmtpStage, classify
from relay.delivery.provider_replies import load_provider_replies
from relay.store.spool.shared.suppression import heard
from relay.store.spool.types import ClaimedRecipient, ClaimResult
from tests.support.claims import a_claim
from tests.support.spools import changed_message, new_message
from tests.support.tables import each_row

ENTER = """
550 5.1.1 The email account that you tried to reach does not exist. https://support.google.com/mail/?p=NoSuchUser - gsmtp
550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup
550 5.1.1 <x@a.test>: Recipient address rejected: User unknown in virtual mailbox table
550 5.1.1 <full.quota@spam-policy.test>... User unknown
551 5.1.6 x@a.test has moved to another address
553 5.1.1 sorry, that domain has no such address
550 sorry, no mailbox here by that name (#5.1.1)
550 No Such User Here
553 x@a.test: unknown user account
550 5.1.1 The lists of blocked senders are elsewhere
"""
OTHERS = """
450 5.1.1 user unknown
450 4.1.1 <x@a.test>: Recipient address rejected: unverified address
452 4.2.2 the mailbox is full
421 4.7.0 try again later, no such user
550 5.2.1 The user you are trying to contact is receiving mail at a rate that prevents delivery. - gsmtp
550 5.7.1 Our system has detected that this message has a very low reputation of the sending domain. - gsmtp
550 5.4.1 Recipient address rejected: Access denied. [x.prod.protection.outlook.com]
550 5.1.1 The sender 192.0.2.1 is on our block list
550 5.1.1 Message refused as spam
550 5.1.1 policy_reject
550 5.1.1 Mailbox is over quota
550 5.1.1 The mailbox is full
550 5.1.1 You are sending too quickly
550 5.1.1 SPF_FAIL: no such user
550 5.1.1 rate_limited
550 5.1.1 No DKIM signature
550 5.1.1 DMARC: no such user
550 5.1.1 suppressed since 2026-11-28
550 5.1.1 The address is on the suppression list
550 5.7.1 user unknown
550 5.7.1: user unknown
550 5.1.2 no such host
550 5.1.3 bad syntax, unknown user
550 5.2.1 The account is disabled
550 Requested action not taken: mailbox unavailable
550 Administrative prohibition
552 no such user
554 delivery error: dd This user doesn't have a yahoo.com account
550 Rejected: nosuch user
"""


def said(outcome: Outcome, **claim: Any) -> tuple[list[str], list[str]]:
    """Return which recipients of a claim for mx:a.test are dead, and which alive."""
    claim = a_claim(**claim)
    dead, alive = heard(ClaimResult(claim, 5, {to.id: outcome for to in claim.recipients}))
    return list(dead), list(alive)


def outcome_of(text: str, stage: SmtpStage = SmtpStage.RCPT) -> Outcome:
    code, _, rest = text.partition(" ")
    outcome = classify(stage, Reply(int(code), rest), Peer("mx.a.test"))
    assert outcome is not None
    return outcome


@each_row("reply", ENTER.strip().splitlines())
def test_replies_that_count(reply: str) -> None:
    shipped = load_provider_replies(None, Path())
    assert said(shipped.judged(outcome_of(reply))) == (["1@a.test"], [])


@each_row("reply", OTHERS.strip().splitlines())
def test_replies_that_do_not_count(reply: str) -> None:
    assert said(outcome_of(reply)) == ([], [])


DEAD = "550 5.1.1 no such user"


@each_row(
    "outcome, claim",
    [
        (outcome_of(DEAD, SmtpStage.DOT), {}),
        (outcome_of(DEAD, SmtpStage.MAIL), {}),
        (outcome_of(DEAD, SmtpStage.DATA), {}),
        (outcome_of(DEAD, SmtpStage.BANNER), {}),
        (outcome_of(DEAD), {"next_hop": NextHop.parse("mx:other.test")}),
        (outcome_of(DEAD), {"next_hop": NextHop.parse("smtp://a.test:25")}),
        (outcome_of(DEAD), {"next_hop": NextHop.parse("lmtp://a.test:24")}),
        (outcome_of(DEAD), {"next_hop": NextHop.parse("graph://a.test:443")}),
        (
            outcome_of(DEAD),
            {"message": changed_message(new_message([]), source=Source.REPORT).facts},
        ),
        (
            outcome_of("250 2.0.0 ok", SmtpStage.DOT),
            {"next_hop": NextHop.parse("smtp://a.test:25")},
        ),
    ],
)
def test_replies_that_do_not_count_where_they_were_given(outcome, claim) -> None:
    assert said(outcome, **claim) == ([], [])


def test_a_reply_that_an_entry_of_the_operator_decided_does_not_count(tmp_path) -> None:
    own = tmp_path / "providers.toml"
    own.write_text('[[reply]]\nname = "x"\ntext = "no such user"\nclass = "failed"\n')
    judged = load_provider_replies(own, own).judged(outcome_of(DEAD))
    assert judged.evidence.provider == "x"
    assert said(judged) == ([], [])


def test_addresses_are_those_of_mailboxes_and_a_delivery_clears_them() -> None:
    people = (
        ClaimedRecipient(1, ForwardPath("Bob+Tag@a.test")),
        ClaimedRecipient(2, ForwardPath("x@b.test")),
    )
    assert said(outcome_of(DEAD), recipients=people) == (["bob+tag@a.test"], [])
    assert said(outcome_of("250 2.0.0 ok", SmtpStage.DOT), recipients=people) == (
        [],
        ["bob+tag@a.test"],
    )
