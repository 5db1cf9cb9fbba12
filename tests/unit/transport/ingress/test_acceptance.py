"""Acceptance after the final dot: what is committed, replied and reported."""

import asyncio
import threading
from dataclasses import replace

import pytest
from msgspec import structs

from relay.base.message.envelope import Envelope, ForwardPath, Source
from relay.base.message.header import FIELDS_MAX
from relay.base.message.lifecycle import RecipientState
from relay.base.message.verdict import RecipientVerdict, RuleHit, Verdict, VerdictAction
from relay.store.journeys.events import Step
from relay.store.spool.types import Claim, PriorityLevel, SpoolUnavailableError
from relay.transport.ingress import listener_role
from relay.transport.ingress.data import Origin
from relay.transport.policy.engine import EvaluationStoppedError
from relay.transport.policy.message_parts import TooManyPartsError
from relay.transport.policy.message_view import UndecidedError
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_files import read_rules
from tests.support.contents import as_large
from tests.support.ingress import Relay
from tests.support.tables import each_row

CONTENT = (
    b"From: alice@example.test\r\nSubject: hello\r\nMessage-ID: <m@example.test>\r\n\r\ntext\r\n"
)
TRUSTED = Origin(ip="127.0.0.1", helo="client.test", trusted=True)
UNTRUSTED = structs.replace(TRUSTED, ip="192.0.2.1", trusted=False)
PICKUP = Origin(ip="", helo="relay", trusted=True, role=listener_role.PICKUP)


Sent = tuple[Envelope, tuple[ForwardPath, ...]]


def envelope(*addresses: str, sender: str = "alice@example.test", envid: str = "") -> Sent:
    return Envelope(sender, envid=envid), tuple(map(ForwardPath, addresses))


class Rules:
    """Rejects the given addresses; `additions` and `fault` as given."""

    def identity(self, *_):
        return None

    def __init__(self, *rejected: str, additions=(), fault: Exception | None = None):
        self.rejected, self.additions, self.fault = rejected, additions, fault
        self.evaluated, self.tenants = None, {}

    def begin(self, subject):
        self.evaluated = subject
        return self

    def run(self, *, in_thread: bool, stopped=None, **_) -> bool:
        return in_thread or self.evaluated.content.size < 65536

    def verdict(self) -> Verdict:
        subject = self.evaluated
        if self.fault:
            raise self.fault
        verdicts = tuple(
            RecipientVerdict(each, VerdictAction.REJECT, 0, "r", "5.7.1", "Not today")
            if each in self.rejected
            else RecipientVerdict(each)
            for each in subject.recipients
        )
        hits = (RuleHit("r", "enforce", "reject", self.rejected),) if self.rejected else ()
        return Verdict(verdicts, tuple(self.additions), (subject.content,), hits)


async def accept(relay: Relay, one: Sent, origin: Origin = TRUSTED, content: bytes = CONTENT):
    acceptance = relay.acceptance()
    try:
        return await acceptance.accept(*one, content, origin=origin)
    finally:
        acceptance.close()


@each_row(
    "origin, sender, account, by_sender",
    [
        (
            structs.replace(TRUSTED, login="alice@example.test"),
            "x@shared.test",
            "alice@example.test",
            False,
        ),
        (TRUSTED, "al@example.test", "alice@example.test", True),
        (TRUSTED, "someone@other.test", "", False),
        (UNTRUSTED, "alice@example.test", "", False),
        (PICKUP, "alice@example.test", "alice@example.test", False),
    ],
)
async def test_the_account_of_a_message(origin, sender, account, by_sender):
    relay = Relay()
    await accept(relay, envelope("bob@example.test", sender=sender), origin)
    facts = relay.spool.accepted[0].facts
    assert (facts.account, facts.extra.by_sender) == (account, by_sender)


@pytest.mark.parametrize(
    ("origin", "field", "priority"),
    [
        (TRUSTED, b"", PriorityLevel.NORMAL),
        (TRUSTED, b"Importance: high\r\n", PriorityLevel.HIGH),
        (PICKUP, b"Precedence: bulk\r\n", PriorityLevel.LOW),
        (UNTRUSTED, b"Importance: high\r\n", PriorityLevel.NORMAL),
    ],
)
async def test_only_trusted_clients_set_the_priority(origin, field, priority):
    relay = Relay()
    await accept(relay, envelope("bob@example.test"), origin, field + CONTENT)
    assert relay.spool.accepted[0].priority is priority


NO = b"TLS-Required: No\r\n"


@each_row(
    "origin, fields, given, demand",
    [
        (TRUSTED, NO, "", "optional"),
        (TRUSTED, b"tls-required:\r\n\tnO  \r\n", "", "optional"),
        (PICKUP, NO, "", "optional"),
        (structs.replace(UNTRUSTED, trusted=True, login="alice@example.test"), NO, "", "optional"),
        (UNTRUSTED, NO, "", ""),
        (TRUSTED, NO, "requiretls", "requiretls"),
        (UNTRUSTED, b"", "requiretls", "requiretls"),
        (TRUSTED, NO, "requiretls if offered", "requiretls if offered"),
        (TRUSTED, NO + NO, "", ""),
        (TRUSTED, b"TLS-Required: Yes\r\n", "", ""),
        (TRUSTED, b"", "", ""),
    ],
)
async def test_what_mail_and_header_demand_of_tls(origin, fields, given, demand):
    relay = Relay()
    mail, paths = envelope("bob@example.test")
    await accept(relay, (structs.replace(mail, tls=given), paths), origin, fields + CONTENT)
    (message,) = relay.spool.accepted
    assert message.facts.envelope.tls == message.events[0].detail.tls == demand
    assert fields in message.contents[0]


@each_row(
    "origin, sender, after_s, warned_s",
    [
        (TRUSTED, "alice@example.test", 600.0, 600),
        (TRUSTED, "alice@example.test", 3599.5, 3599.5),
        (TRUSTED, "alice@example.test", 0.0, None),
        (TRUSTED, "alice@example.test", 3600.0, None),  # it expires at that time
        (TRUSTED, "", 600.0, None),
        (UNTRUSTED, "alice@example.test", 600.0, None),
    ],
)
async def test_when_a_delay_report_is_due(origin, sender, after_s, warned_s):
    relay = Relay()
    acceptance = replace(relay.acceptance(), delay_warning_after_s=after_s)
    await acceptance.accept(*envelope("bob@example.test", sender=sender), CONTENT, origin=origin)
    acceptance.close()
    (message,) = relay.spool.accepted
    expected = None if warned_s is None else message.facts.received_us + warned_s * 1_000_000
    assert message.warn_us == expected


@pytest.mark.parametrize(
    ("origin", "to"), [(TRUSTED, "alice@example.test"), (UNTRUSTED, "postmaster")]
)
async def test_rules_that_reject_some_recipients_bounce_to_trusted_senders_only(origin, to):
    relay = Relay(rules=Rules("bob@example.test"))
    decision = await accept(relay, envelope("bob@example.test", "alice@example.test"), origin)
    assert decision.reply.startswith("250 2.0.0 ")
    (message,) = relay.spool.accepted
    assert [each.state for each in message.final_recipients] == [RecipientState.FAILED]
    (report,) = relay.spool.reports
    assert report.entries[0].recipients[0].path.address == to
    assert [event.detail.step for event in message.events][1:] == [Step.REPORT]
    assert message.events[0].detail.rules[0].rule == "r"


async def test_a_repeated_submission_is_accepted_whatever_the_rules_say_now():
    relay, one = Relay(rules=Rules()), envelope("x@b.test", envid="d.1")
    first = await accept(relay, one, PICKUP)
    relay.rules = Rules(fault=RuntimeError("broken"))
    assert await accept(relay, one, PICKUP) == first
    assert (await accept(relay, one)).queue_id == ""  # a client may choose any ENVID
    other = envelope("x@b.test", envid="d.2")
    assert (await accept(relay, other, PICKUP)).reply.startswith("451 4.7.1 ")
    relay.spool.fault = SpoolUnavailableError("broken")
    assert (await accept(relay, one, PICKUP)).reply.startswith("451 4.7.1 ")
    assert len(relay.spool.accepted) == 1


async def test_an_event_lists_100_addresses_and_counts_the_others():
    gone = [f"n{n}@example.test" for n in range(101)]
    there = [f"u{n}@b.test" for n in range(101)]
    relay = Relay(rules=Rules(*there[1:]))
    await accept(relay, envelope("bob@example.test", *gone, *there), PICKUP)
    detail = relay.spool.accepted[0].events[0].detail
    assert detail.counts == {"refused": 201}
    assert len(detail.refused) == 100
    assert not detail.rules[0].count
    relay.rules = RuleBook()
    await accept(relay, envelope("bob@example.test", *there))
    detail = relay.spool.accepted[1].events[0].detail
    assert detail.counts == {"mx:b.test": 101}
    assert [len(addresses) for addresses in detail.next_hops.values()] == [1, 100]
    hit = RuleHit("r", "enforce", "reject", tuple(there)).as_recorded()
    assert (hit.count, len(hit.recipients)) == (101, 100)


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@each_row(
    "origin, more, reply",
    [
        (UNTRUSTED, 0, "250 "),
        (UNTRUSTED, 1, "554 5.6.0 The header has more than 10000 fields"),
        (TRUSTED, 1, "554 5.6.0 "),
        (PICKUP, 1, "250 "),
    ],
)
async def test_a_header_with_too_many_fields_is_rejected(origin, more, reply, large):
    relay = Relay()
    filling = FIELDS_MAX - 3 + more  # CONTENT has three
    content = b"A:\r\n" * (filling // 2) + b"b:\r\n c\r\n" * (filling - filling // 2) + CONTENT
    decision = await accept(
        relay, envelope("bob@example.test"), origin, as_large(content) if large else content
    )
    assert decision.reply.startswith(reply)
    assert len(relay.spool.accepted) == reply.startswith("250")


async def test_subject_and_message_id_in_the_trace_are_bounded():
    relay = Relay()
    words = b"=?utf-8?B?8J+YgA==?= " * 300
    content = b"Message-ID: <" + b"m" * 2000 + b">\r\nSubject: " + words + b"\r\n\r\ntext\r\n"
    await accept(relay, envelope("bob@example.test"), content=content)
    (message,) = relay.spool.accepted
    assert message.facts.subject == "\U0001f600" * 200
    assert len(message.facts.message_id) == 998


async def test_rules_see_valid_recipients_and_the_cleaned_up_content():
    rules = Rules()
    relay = Relay(rules=rules)
    await accept(relay, envelope("nobody@example.test", "bob@example.test", "x@b.test"), PICKUP)
    asked = rules.evaluated
    assert asked.recipients == ("bob@example.test", "x@b.test")
    assert asked.local == {"bob@example.test"}
    assert (asked.sender_local, asked.source) == (True, Source.GRAPH)
    assert asked.content.joined() == relay.spool.accepted[0].contents[0]


@pytest.mark.parametrize(("origin", "is_local"), [(TRUSTED, True), (UNTRUSTED, False)])
async def test_an_untrusted_client_with_a_local_sender_is_not_internal(origin, is_local):
    rules = Rules()
    await accept(Relay(rules=rules), envelope("bob@example.test"), origin)
    assert rules.evaluated.sender_local is is_local


@pytest.mark.parametrize("padding", [0, 100_000], ids=["inline", "in a thread"])
@pytest.mark.parametrize(
    ("fault", "reply"),
    [
        (
            ZeroDivisionError("secret"),
            "451 4.7.1 The mail rules could not be applied, try again later",
        ),
        (
            UndecidedError("secret"),
            "451 4.7.1 The mail rules could not be applied, try again later",
        ),
        (TooManyPartsError("secret"), "554 5.6.0 The message has too many MIME parts,"),
    ],
)
async def test_rules_that_fail_defer_the_message_with_451(fault, reply, padding):
    relay = Relay(rules=Rules(fault=fault))
    decision = await accept(relay, envelope("bob@example.test"), content=CONTENT + b"x" * padding)
    assert decision.reply.startswith(reply)
    assert relay.spool.accepted == []


async def test_rules_that_time_out_are_stopped_and_defer_the_message_with_451():
    pauses, ended, reported = threading.Event(), threading.Event(), []

    class Slow(Rules):
        def run(self, *, in_thread: bool, stopped=None, **_) -> bool:
            if in_thread and not ended.is_set():
                while not stopped():
                    pauses.wait(0.001)
                ended.set()
                raise EvaluationStoppedError
            return in_thread

    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    sent = (*envelope("bob@example.test"), CONTENT + b"x" * 100_000)
    acceptance = Relay(rules=Slow()).acceptance(policy_timeout_s=0.05)
    try:
        decision = await acceptance.accept(*sent, origin=TRUSTED)
        acceptance.policy_timeout_s = 120  # the next waits until the first has ended
        assert (await acceptance.accept(*sent, origin=TRUSTED)).queue_id
    finally:
        acceptance.close()
    assert decision.reply.startswith("451 4.7.1 ")
    assert reported == []  # with Python 3.14, shield() reports what is raised after the time-out


async def test_clients_of_one_ipv6_network_take_turns_with_rules_that_take_long():
    release, order = threading.Event(), []

    class Slow(Rules):
        def begin(self, subject):
            return Rules.begin(Slow(), subject)  # several at once

        def run(self, *, in_thread: bool, stopped=None, **_) -> bool:
            if in_thread:
                order.append(self.evaluated.client)
            return in_thread and (self.evaluated.client != "2001:db8::1" or release.wait(10))

    acceptance = Relay(rules=Slow()).acceptance()

    def sent(client: str):
        origin = structs.replace(UNTRUSTED, ip=client)
        return acceptance.accept(*envelope("bob@example.test"), CONTENT * 1000, origin=origin)

    try:
        first = [asyncio.create_task(sent(f"2001:db8::{number}")) for number in (1, 2)]
        while not order:  # real time: a thread
            await asyncio.sleep(0.001)
        for client in ("2001:db8:0:1::1", "192.0.2.1"):
            assert (await sent(client)).queue_id
        assert order == ["2001:db8::1", "2001:db8:0:1::1", "192.0.2.1"]
        release.set()
        assert all([(await one).queue_id for one in first])
    finally:
        release.set()
        acceptance.close()


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("4.7.1 Not now", "451 4.7.1 Not now"),
        ("4.7.0 Not now", "451 4.7.0 Not now"),  # not 421, which would close the connection
        ("4.3.1 Full", "452 4.3.1 Full"),
    ],
)
@pytest.mark.parametrize("origin", [TRUSTED, UNTRUSTED, PICKUP])
async def test_one_deferred_recipient_defers_the_whole_message(tmp_path, text, reply, origin):
    relay = Relay(rules=rules_in(tmp_path, "recipient = 'bob@*'", f"{{ defer = '{text}' }}"))
    decision = await accept(relay, envelope("alice@example.test", "bob@example.test"), origin)
    assert (decision.reply, decision.rule, decision.queue_id) == (reply, "r", "")
    assert relay.spool.accepted == []
    other = await accept(relay, envelope("alice@example.test"), origin)
    assert other.reply.startswith("250 ")


def rules_in(directory, when, then):
    text = f"[[rule]]\nname = 'r'\nwhen = {{ {when} }}\nthen = [ {then} ]\n"
    (directory / "10.toml").write_text(text)
    return RuleBook(read_rules(directory))


async def test_an_error_in_passing_on_claims_does_not_change_the_250():
    relay = Relay()
    passed_on = []
    claim = Claim(1, 1, None, None, (), 0, 1, 1)
    accept_really = relay.spool.accept

    async def accept_with_claims(message, **options):
        return structs.replace(
            await accept_really(message, **options),
            claims=(structs.replace(claim, message=message),),
        )

    relay.spool.accept = accept_with_claims

    def take(claims):
        passed_on.extend(claims)
        raise ZeroDivisionError

    acceptance = relay.acceptance(on_accepted=take)
    decision = await acceptance.accept(*envelope("bob@example.test"), CONTENT, origin=TRUSTED)
    acceptance.close()
    assert decision.reply.startswith("250 ")
    assert len(passed_on) == 1


@pytest.mark.parametrize(("domains", "claimed"), [(100, True), (101, False)])
async def test_a_message_with_many_next_hops_is_committed_without_claims(domains, claimed):
    relay, asked, waiting = Relay(), [], []
    accept_really = relay.spool.accept

    async def accept_watched(message, **options):
        asked.append(options["claim"])
        return await accept_really(message, **options)

    relay.spool.accept = accept_watched
    acceptance = relay.acceptance(on_waiting=waiting.extend)
    one = envelope(*(f"x@{number}.test" for number in range(domains)))
    await acceptance.accept(*one, CONTENT, origin=TRUSTED)
    acceptance.close()
    assert asked == [claimed]
    assert [len(message.entries) for message in waiting] == ([] if claimed else [domains])
