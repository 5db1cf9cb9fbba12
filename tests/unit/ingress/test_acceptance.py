"""Step 5 as a whole, with the real routing and reports and a spool that remembers."""

import threading
from dataclasses import replace

import pytest

from relay.ingress import Origin
from relay.ingress.header_cleanup import clean_up
from relay.journeys.events import Step
from relay.message.envelope import Client, Envelope, ForwardPath
from relay.message.lifecycle import State
from relay.message.verdict import Addition, Fate, RecipientVerdict, RuleHit, Source, Verdict
from relay.mime import headers
from relay.policy import TooManyPartsError
from relay.spool.types import Claim
from relay.spool.waiting import Lane
from tests.dialogue.harness import NoRules, Relay

CONTENT = (
    b"From: alice@example.test\r\nSubject: hello\r\nMessage-ID: <m@example.test>\r\n\r\ntext\r\n"
)
TRUSTED = Origin(ip="127.0.0.1", helo="client.test", trusted=True)
STRANGER = replace(TRUSTED, ip="192.0.2.1", trusted=False)
PICKUP = Origin(ip="", helo="relay", trusted=True, pickup=True)


def envelope(*addresses: str, sender: str = "alice@example.test", envid: str = "") -> Envelope:
    return Envelope(sender, tuple(map(ForwardPath, addresses)), envid=envid)


class Rules:
    """Rejects the addresses named; `additions` and `fault` as given."""

    def __init__(self, *rejected: str, additions=(), fault: Exception | None = None):
        self.rejected, self.additions, self.fault = rejected, additions, fault
        self.asked_about = None

    def evaluate(self, subject) -> Verdict:
        self.asked_about = subject
        if self.fault:
            raise self.fault
        verdicts = tuple(
            RecipientVerdict(each.address, Fate.REJECT, 0, "r", "5.7.1", "Not today")
            if each.address in self.rejected
            else RecipientVerdict(each.address)
            for each in subject.recipients
        )
        hits = (RuleHit("r", "enforce", "reject", self.rejected),) if self.rejected else ()
        return Verdict(verdicts, tuple(self.additions), (subject.content,), hits)


async def accept(relay: Relay, one: Envelope, origin: Origin = TRUSTED, content: bytes = CONTENT):
    acceptance = relay.acceptance()
    try:
        return await acceptance.accept(one, content, origin)
    finally:
        acceptance.close()


async def test_what_the_spool_gets():
    relay = Relay()
    one = envelope("bob@example.test", "x@b.test", "y@b.test", envid="e1")
    decision = await accept(relay, one)
    (message,) = relay.spool.accepted
    assert decision.reply == f"250 2.0.0 Ok: queued as {message.id}"
    assert decision.queue_id == message.id
    assert message.source is Source.SMTP
    assert (message.account, message.submission_id, message.envid) == (
        "alice@example.test",
        "",
        "e1",
    )
    assert message.client == "client.test [127.0.0.1]"
    assert (message.subject, message.message_id) == ("hello", "<m@example.test>")
    assert message.expires_us - message.received_us == 3600_000_000
    assert {str(entry.next_hop): len(entry.recipients) for entry in message.entries} == {
        "local": 1,
        "mx:b.test": 2,
    }
    (event,) = message.events
    assert event.step is Step.POLICY_AND_ROUTING
    assert event.detail == {
        "client": Client("127.0.0.1", "client.test").as_json(),
        "rules": [],
        "next_hops": {"local": ["bob@example.test"], "mx:b.test": ["x@b.test", "y@b.test"]},
    }


@pytest.mark.parametrize(
    ("origin", "sender", "account"),
    [
        (replace(TRUSTED, login="alice@example.test"), "x@shared.test", "alice@example.test"),
        (TRUSTED, "al@example.test", "alice@example.test"),
        (TRUSTED, "someone@other.test", ""),
        (STRANGER, "alice@example.test", ""),
        (PICKUP, "alice@example.test", "alice@example.test"),
    ],
)
async def test_whose_message_it_is(origin, sender, account):
    relay = Relay()
    await accept(relay, envelope("bob@example.test", sender=sender), origin)
    assert relay.spool.accepted[0].account == account


@pytest.mark.parametrize(
    ("origin", "field", "priority"),
    [
        (TRUSTED, b"", Lane.NORMAL),
        (TRUSTED, b"Importance: high\r\n", Lane.HIGH),
        (PICKUP, b"Precedence: bulk\r\n", Lane.LOW),
        (STRANGER, b"Importance: high\r\n", Lane.NORMAL),
    ],
)
async def test_how_urgent_it_is_says_the_header_of_who_is_trusted(origin, field, priority):
    relay = Relay()
    await accept(relay, envelope("bob@example.test"), origin, field + CONTENT)
    assert relay.spool.accepted[0].priority is priority


async def test_a_rule_may_say_how_urgent_it_is():
    class Bulk(Rules):
        def evaluate(self, subject):
            verdict = super().evaluate(subject)
            content = headers.set_field(subject.content, "Precedence", "bulk")
            return replace(verdict, contents=(content,))

    relay = Relay(rules=Bulk())
    await accept(relay, envelope("bob@example.test"), TRUSTED, b"Importance: high\r\n" + CONTENT)
    assert relay.spool.accepted[0].priority is Lane.LOW


@pytest.mark.parametrize(
    ("origin", "sender", "after_s", "warned_s"),
    [
        (TRUSTED, "alice@example.test", 600.0, 600),
        (TRUSTED, "alice@example.test", 3599.5, 3599.5),
        (TRUSTED, "alice@example.test", 0.0, None),
        (TRUSTED, "alice@example.test", 3600.0, None),  # it expires then
        (TRUSTED, "", 600.0, None),
        (STRANGER, "alice@example.test", 600.0, None),
    ],
)
async def test_who_would_hear_of_a_delay_and_when(origin, sender, after_s, warned_s):
    relay = Relay()
    acceptance = replace(relay.acceptance(), delay_warning_after_s=after_s)
    await acceptance.accept(envelope("bob@example.test", sender=sender), CONTENT, origin)
    acceptance.close()
    (message,) = relay.spool.accepted
    expected = None if warned_s is None else message.received_us + warned_s * 1_000_000
    assert message.warn_us == expected


@pytest.mark.parametrize("origin", [TRUSTED, STRANGER])
async def test_when_rules_reject_all_the_client_hears_it_and_nothing_is_kept(origin):
    relay = Relay(rules=Rules("bob@example.test", additions=[Addition("x@b.test", "r")]))
    decision = await accept(relay, envelope("bob@example.test"), origin)
    assert (decision.reply, decision.queue_id) == ("550 5.7.1 Not today", "")
    assert relay.spool.accepted == []


@pytest.mark.parametrize(("origin", "reports"), [(TRUSTED, 1), (STRANGER, 0)])
async def test_when_rules_reject_some_only_the_trusted_get_a_report(origin, reports):
    relay = Relay(rules=Rules("bob@example.test"))
    decision = await accept(relay, envelope("bob@example.test", "alice@example.test"), origin)
    assert decision.reply.startswith("250 2.0.0 ")
    (message,) = relay.spool.accepted
    assert [each.state for each in message.final_recipients] == [State.FAILED]
    assert len(relay.spool.reports) == reports
    assert [event.step for event in message.events][1:] == [Step.REPORT] * reports
    assert message.events[0].detail["rules"][0]["rule"] == "r"


async def test_pickups_submission_is_accepted_and_its_failures_are_reported():
    relay = Relay(rules=Rules("x@b.test"))
    decision = await accept(relay, envelope("x@b.test", "nobody@example.test", envid="d.1"), PICKUP)
    assert decision.reply.startswith("250 2.0.0 ")
    (message,), (report,) = relay.spool.accepted, relay.spool.reports
    assert (message.source, message.submission_id) == (Source.GRAPH, "d.1")
    assert {each.address: each.reply for each in message.final_recipients} == {
        "x@b.test": "550 5.7.1 Not today",
        "nobody@example.test": "550 5.1.1 <nobody@example.test>: no such user here;"
        " check the spelling",
    }
    assert report.entries[0].recipients[0].address == "alice@example.test"
    assert b"x@b.test" in report.contents[0]
    assert relay.metrics.recipients.labels(outcome="failed")._value.get() == 2


async def test_an_event_names_a_hundred_and_counts_the_rest():
    gone = [f"n{n}@example.test" for n in range(101)]
    there = [f"u{n}@b.test" for n in range(101)]
    relay = Relay(rules=Rules(*there[1:]))
    await accept(relay, envelope("bob@example.test", *gone, *there), PICKUP)
    detail = relay.spool.accepted[0].events[0].detail
    assert detail["counts"] == {"refused": 201}
    assert len(detail["refused"]) == 100
    assert "count" not in detail["rules"][0]
    relay.rules = NoRules()
    await accept(relay, envelope("bob@example.test", *there))
    detail = relay.spool.accepted[1].events[0].detail
    assert detail["counts"] == {"mx:b.test": 101}
    assert [len(people) for people in detail["next_hops"].values()] == [1, 100]
    hit = RuleHit("r", "enforce", "reject", tuple(there)).as_json()
    assert (hit["count"], len(hit["recipients"])) == (101, 100)


async def test_a_header_without_an_end_is_refused():
    line = b"X-Filling: " + b"x" * 500 + b"\r\n"
    decision = await accept(Relay(), envelope("bob@example.test"), content=line * 2100)
    assert decision.reply.startswith("554 5.6.0 The header is longer ")


async def test_what_the_trace_shows_of_a_header_is_bounded():
    relay = Relay()
    words = b"=?utf-8?B?8J+YgA==?= " * 300
    content = b"Message-ID: <" + b"m" * 2000 + b">\r\nSubject: " + words + b"\r\n\r\ntext\r\n"
    await accept(relay, envelope("bob@example.test"), content=content)
    (message,) = relay.spool.accepted
    assert message.subject == "\U0001f600" * 200
    assert len(message.message_id) == 998


async def test_added_recipients_are_not_in_the_senders_event():
    relay = Relay(rules=Rules(additions=[Addition("spy@c.test", "r")]))
    await accept(relay, envelope("x@b.test"))
    (message,) = relay.spool.accepted
    assert message.events[0].detail["next_hops"] == {"mx:b.test": ["x@b.test"]}
    assert [str(entry.next_hop) for entry in message.entries] == ["mx:b.test", "mx:c.test"]


async def test_rules_are_asked_about_valid_recipients_with_the_content_that_goes_on():
    rules = Rules()
    relay = Relay(rules=rules)
    await accept(relay, envelope("nobody@example.test", "bob@example.test", "x@b.test"), PICKUP)
    asked = rules.asked_about
    assert [(each.address, each.local) for each in asked.recipients] == [
        ("bob@example.test", True),
        ("x@b.test", False),
    ]
    assert (asked.sender_local, asked.source) == (True, Source.GRAPH)
    assert asked.content == relay.spool.accepted[0].contents[0]


@pytest.mark.parametrize(("origin", "is_ours"), [(TRUSTED, True), (STRANGER, False)])
async def test_a_stranger_who_claims_a_local_domain_stays_a_stranger(origin, is_ours):
    rules = Rules()
    await accept(Relay(rules=rules), envelope("bob@example.test"), origin)
    assert rules.asked_about.sender_local is is_ours


@pytest.mark.parametrize("padding", [0, 100_000], ids=["inline", "in a thread"])
@pytest.mark.parametrize(
    ("fault", "reply"),
    [
        (
            ZeroDivisionError("secret"),
            "451 4.7.1 The mail rules could not be applied, try again later",
        ),
        (TooManyPartsError("secret"), "554 5.6.0 The message has too many MIME parts,"),
    ],
)
async def test_rules_that_fail_let_nothing_past(fault, reply, padding):
    relay = Relay(rules=Rules(fault=fault))
    decision = await accept(relay, envelope("bob@example.test"), content=CONTENT + b"x" * padding)
    assert decision.reply.startswith(reply)
    assert relay.spool.accepted == []


async def test_rules_that_take_too_long():
    release = threading.Event()

    class Slow:
        def evaluate(self, subject):
            release.wait(10)
            return Verdict((), (), (), ())

    relay = Relay(rules=Slow())
    acceptance = relay.acceptance(policy_timeout_s=0.05)
    try:
        decision = await acceptance.accept(
            envelope("bob@example.test"), CONTENT + b"x" * 100_000, TRUSTED
        )
    finally:
        release.set()
        acceptance.close()
    assert decision.reply.startswith("451 4.7.1 ")


async def test_claims_are_handed_on_and_a_fault_there_does_not_unsay_the_250():
    relay = Relay()
    handed = []
    claim = Claim(1, 1, None, None, (), 0, 1, 1)
    accept_really = relay.spool.accept

    async def accept_with_claims(message, **options):
        return replace(
            await accept_really(message, **options), claims=(replace(claim, message=message),)
        )

    relay.spool.accept = accept_with_claims

    def take(claims):
        handed.extend(claims)
        raise ZeroDivisionError

    acceptance = relay.acceptance(on_accepted=take)
    decision = await acceptance.accept(envelope("bob@example.test"), CONTENT, TRUSTED)
    acceptance.close()
    assert decision.reply.startswith("250 ")
    assert len(handed) == 1


@pytest.mark.parametrize(("domains", "claimed"), [(100, True), (101, False)])
async def test_a_message_for_very_many_next_hops_does_not_come_as_claims(domains, claimed):
    relay, asked, waiting = Relay(), [], []
    accept_really = relay.spool.accept

    async def accept_watched(message, **options):
        asked.append(options["claim"])
        return await accept_really(message, **options)

    relay.spool.accept = accept_watched
    acceptance = relay.acceptance(on_waiting=waiting.extend)
    one = envelope(*(f"x@{number}.test" for number in range(domains)))
    decision = await acceptance.accept(one, CONTENT, TRUSTED)
    acceptance.close()
    assert decision.reply.startswith("250 ")
    assert asked == [claimed]
    assert [len(message.entries) for message in waiting] == ([] if claimed else [domains])


def prepared(content: bytes, origin: Origin = TRUSTED, *addresses: str) -> bytes:
    one = envelope(*(addresses or ("x@b.test",)))
    return clean_up(
        content, one, origin, hostname="relay.test", queue_id="q1", time_us=1_700_000_000_000_000
    )


@pytest.mark.parametrize(
    ("origin", "start"),
    [
        (TRUSTED, b"Received: from client.test ([127.0.0.1])\r\n\tby relay.test with ESMTP id q1"),
        (replace(TRUSTED, tls="TLSv1.3", login="a"), b"Received: from client.test ([127.0.0.1])\r\n\tby relay.test with ESMTPSA id q1"),
        (replace(TRUSTED, extended=False), b"Received: from client.test ([127.0.0.1])\r\n\tby relay.test with SMTP id q1"),
        (PICKUP, b"Received: from relay\r\n\tby relay.test with ESMTP id q1"),
    ],
)  # fmt: skip
def test_the_trace_field(origin, start):
    assert prepared(CONTENT, origin).startswith(start)


def test_for_is_named_only_when_there_is_one_recipient():
    assert b"for <x@b.test>" in prepared(CONTENT)
    assert b"for <" not in prepared(CONTENT, TRUSTED, "x@b.test", "y@b.test")


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"X-Relay-Draft: 1\r\nSubject: a\r\nx-relay-b:\r\n folded\r\n\r\nb\r\n", b"Subject: a\r\n\r\nb\r\n"),
        (b"Return-Path: <a@b.test>\r\nSubject: a\r\n\r\nb\r\n", b"Subject: a\r\n\r\nb\r\n"),
        (b"Subject: a\r\n\r\nX-Relay-In-Body: 1\r\n", b"Subject: a\r\n\r\nX-Relay-In-Body: 1\r\n"),
        (b"\r\nonly a body\r\n", b"\r\nonly a body\r\n"),
        (b"no header at all\r\n", b"\r\nno header at all\r\n"),
        (b"", b"\r\n"),
    ],
)  # fmt: skip
def test_what_is_removed_and_what_stays(content, kept):
    ours, received, rest = prepared(content, STRANGER).partition(b"+0000\r\n")
    assert ours.startswith(b"Received: ")
    assert received
    assert rest == kept


def test_submissions_get_what_they_lack_and_strangers_mail_does_not():
    bare = b"Subject: a\r\n\r\n"
    assert (
        b"\r\nDate: Tue, 14 Nov 2023 22:13:20 +0000\r\nMessage-ID: <q1@relay.test>\r\n"
        in prepared(bare)
    )
    assert b"\r\nDate:" not in prepared(bare, STRANGER)
    assert prepared(CONTENT).count(b"Message-ID:") == 1
