"""Bounces: who gets one, and the message for the spool."""

import email
import email.policy
import email.utils

import pytest
from flufl.bounce import scan_message
from msgspec import to_builtins
from msgspec.structs import replace

from relay.base.accounts.account import DEAD_LETTER, AliasTarget, Expansion
from relay.base.clock import Ids
from relay.base.message.content import LargeContent, MemoryOctets
from relay.base.message.envelope import (
    OWN_REPORT,
    Envelope,
    ForwardPath,
    MessageExtra,
    MessageFacts,
    Notify,
    Source,
)
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import LOCAL, Destination, HopKind, NextHop
from relay.base.message.outcome import Evidence
from relay.base.message.receipt import ReceiptKind, ReceiptRequest
from relay.base.message.verdict import RuleMail
from relay.base.observe.metrics import Metrics
from relay.delivery.reports.bounces import NOTICES_MAX, Copies, Reporter, decide_reports
from relay.delivery.reports.texts import TextSource
from relay.formats.dsn import ReportedRecipient, ReportKind
from tests.support.logs import capture_logs
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

MX = NextHop(HopKind.MX, "example.com")
HOUR_US = 3600 * 1_000_000
MESSAGE = MessageFacts(
    "01jd3q8z6f000000",
    Envelope("alice@example.com"),
    Source.SMTP,
    trusted=True,
    received_us=1_700_000_000_000_000,
    account="alice@example.com",
)
CONTENT = b"Subject: Hello\r\nMessage-ID: <orig@example.com>\r\n\r\nHi\r\n"


def recipient(address="bob@example.net", notify=frozenset(), **about):
    path = ForwardPath(address, notify)
    return ReportedRecipient(path, Evidence("5.1.1", "550 5.1.1 no"), **about)


class CountedReporter:
    """A reporter with its clock and metrics; `hops` are the only addresses with a next hop."""

    def __init__(self, **more):
        self.clock = ManualClock()
        self.metrics = Metrics()
        to = Destination(MX)
        self.hops = {"alice@example.com": to, "älice@example.com": to}
        self.reporter = Reporter(
            hostname="relay.example.com",
            clock=self.clock,
            ids=Ids(self.clock, random_bytes=self._chance),
            destination_of=self._destination_of,
            expire_after_s=3600,
            metrics=self.metrics,
            **more,
        )
        self._made = 0
        self.asked: list[str] = []  # the reverse-path of each look-up

    def _destination_of(self, address, reverse_path):
        self.asked.append(reverse_path)
        return self.hops.get(address)

    def _chance(self, length):
        self._made += 1
        return self._made.to_bytes(length, "big")

    def failures(self, recipients, message=MESSAGE, content=CONTENT):
        return self.reporter.reports(ReportKind.FAILED, message, recipients, content=content)

    def counted(self):
        """How many reports by kind."""
        samples = self.metrics.reports.collect()[0].samples
        return {
            one.labels["kind"]: one.value
            for one in samples
            if one.name.endswith("_total") and one.value
        }


@pytest.fixture
def reporter():
    return CountedReporter()


def test_one_bounce_for_all_failed_recipients(reporter):
    reporter.reporter.copies = Copies("alice@example.com", frozenset({"failure"}))  # the sender
    plan = reporter.failures([recipient(), recipient("carol@example.net")])
    (report,) = plan.messages
    found = scan_message(email.message_from_bytes(report.contents[0]))
    assert found == {b"bob@example.net", b"carol@example.net"}
    assert reporter.counted() == {"failure": 1}


def test_a_bounce_is_routed_to_the_sender_with_the_null_reverse_path(reporter):
    (report,) = reporter.failures([recipient()]).messages
    assert report.facts.envelope == Envelope("")
    assert report.facts.source is Source.REPORT
    assert report.facts.trusted
    (entry,) = report.entries
    assert entry.next_hop == MX
    (to,) = entry.recipients
    assert to.path == ForwardPath("alice@example.com", frozenset({Notify.NEVER}))
    assert to.state is RecipientState.QUEUED
    assert report.final_recipients == ()
    assert report.facts.received_us == reporter.clock.time_us()
    assert report.facts.expires_us == report.facts.received_us + HOUR_US
    assert report.facts.account == "alice@example.com"
    assert report.facts.size == len(report.contents[0])


def test_a_bounce_for_an_alias_goes_to_all_that_it_leads_to(reporter):
    """The sender's own forwarding too: who reads no mailbox here must hear of a failure."""
    to = ("bob@example.com", "carol@outside.test", "lost@nowhere.test", "dave@outside.test")
    targets = tuple(AliasTarget(one, ("team@example.com",)) for one in to)
    aliases = {"alice@example.com": Expansion(targets)}
    outside = NextHop(HopKind.MX, "outside.test")
    reporter.hops.update(
        {"bob@example.com": Destination(LOCAL)}
        | dict.fromkeys((to[1], to[3]), Destination(outside, held="route r"))
    )
    reporter.reporter.expand = lambda address, _: aliases.get(address)
    plan = reporter.failures([recipient()])
    (report,) = plan.messages
    found = [
        (one.next_hop, one.extra.delivered_to, [each.path.address for each in one.recipients])
        for one in report.entries
    ]
    assert found == [
        (LOCAL, "", ["bob@example.com"]),
        (outside, "team@example.com", ["carol@outside.test", "dave@outside.test"]),
    ]
    assert report.entries[1].extra.reason == "route r"
    (alias,) = report.final_recipients
    assert (alias.path.address, alias.state) == ("alice@example.com", RecipientState.EXPANDED)
    assert alias.successors == to
    assert plan.events[0].detail.to == "alice@example.com"
    assert b"\r\nTo: <alice@example.com>\r\n" in report.contents[0]
    assert report.events[0].detail.held == {"route r": ["carol@outside.test", "dave@outside.test"]}
    assert report.events[0].detail.next_hops == {
        "local": ["bob@example.com"],
        "mx:outside.test": ["carol@outside.test", "dave@outside.test"],
    }


@each_row(
    "mailbox, kind, to",
    [
        (DEAD_LETTER, "dead-letter", "postmaster"),  # not the Inbox of its address, which is none
        ("operator@example.com", "failure", "operator@example.com"),
    ],
)
def test_a_report_on_mail_of_this_host_is_where_its_event_says(mailbox, kind, to):
    reporter = CountedReporter(mailbox_for=lambda _address: mailbox)
    sender = "root@relay.example.com"
    reporter.hops[sender] = Destination(LOCAL)
    with capture_logs(reporter.clock) as logged:
        for pause_s in (0, 0, 3600):
            reporter.clock.advance(pause_s)
            plan = reporter.failures([recipient()], replace(MESSAGE, envelope=Envelope(sender)))
            (event,) = plan.events
            assert (event.detail.kind, event.detail.to) == (kind, to)
    assert reporter.counted() == {kind: 3}
    assert [one.get("times", 1) for one in logged] == [1, 2] * (mailbox == DEAD_LETTER)


def own_mail(reporter):
    """The mail that this relay makes about trusted mail, which is no delivery report."""
    request = ReceiptRequest("m", "alice@example.com", "r")
    yield reporter.receipt(ReceiptKind.READ, request, "q", is_manual=False).messages[0]
    about = replace(MESSAGE, source=Source.REPORT)
    yield reporter.reports(ReportKind.FAILED, about, [recipient()], content=CONTENT).messages[0]
    for text in ("", "text"):  # a journal report, and a notice
        mail = RuleMail("alice@example.com", "a rule", (), text)
        yield reporter.rule_mail(mail, about=MESSAGE, write=lambda _: CONTENT)


@each_row("trusted", [True, False])
def test_only_delivery_reports_about_trusted_mail_may_leave_by_graph(trusted):
    copies = Copies("älice@example.com", frozenset({"failure"}))
    reporter = CountedReporter(copies=copies)
    message = replace(MESSAGE, trusted=trusted, extra=MessageExtra(verified=True))
    report, copy = reporter.failures([recipient()], message).messages
    found = {report.facts.extra.of_trusted, copy.facts.extra.of_trusted}
    assert found == {trusted}
    assert reporter.asked[-2:] == [OWN_REPORT if trusted else ""] * 2, "as it is rerouted"
    others = [*own_mail(reporter.reporter)]
    reporter.hops.clear()  # the postmaster gets the rest
    reporter.reporter.copies = Copies()
    others += reporter.failures([recipient()], message).messages
    assert [other.facts.extra.of_trusted for other in others] == [False] * 5


def test_a_report_on_trusted_mail_that_fails_is_a_dead_letter_with_one_warning():
    reporter = CountedReporter(graph_mailbox=lambda hop: "printer@a.test" if hop == MX else "")
    reporter.hops |= {"bob@example.net": Destination(MX), "carol@example.net": Destination(LOCAL)}
    marked = MessageExtra(of_trusted=True)
    report = replace(MESSAGE, source=Source.REPORT, envelope=Envelope(""), extra=marked)
    with capture_logs() as logged:
        reporter.failures([recipient("carol@example.net")], report)  # its route takes none now
        reporter.failures([recipient()], replace(report, extra=MessageExtra()))  # a receipt
        (letter,) = reporter.failures([recipient(), recipient("dave@x.test")], report).messages
    assert letter.entries[0].recipients[0].path.address == "postmaster"
    keys = ("log_level", "to", "mailbox", "reason")
    assert [[one.get(key) for key in keys] for one in logged] == [
        ["warning", "carol@example.net", None, "550 5.1.1 no"],
        ["warning", "bob@example.net", "printer@a.test", "550 5.1.1 no"],
    ]


@each_row("sent_report", [True, False])
def test_there_is_no_report_about_a_report_that_left_as_mail(reporter, sent_report):
    message = replace(MESSAGE, extra=MessageExtra(sent_report=sent_report))
    for kind in (ReportKind.FAILED, ReportKind.DELAYED):
        assert reporter.reporter.wants(kind, message, [recipient()]) is not sent_report
    stranger = replace(message, trusted=False)
    assert bool(reporter.failures([recipient()], stranger).messages) is not sent_report
    added = recipient("copy@example.net", added_by="a rule")
    assert len(reporter.failures([added], message).messages) == 1, "to the postmaster"


STRANGERS = replace(MESSAGE, envelope=Envelope("ann@sender.test"), trusted=False, account="")


def test_notices_on_strangers_mail_are_bounded(reporter):
    plans = [
        reporter.failures([recipient(f"u{n}@x.org")], replace(STRANGERS, id=str(n)))
        for n in range(NOTICES_MAX + 10)
    ]
    assert [len(one.messages) for one in plans] == [1] * NOTICES_MAX + [0] * 10
    assert all(len(one.events) == 1 for one in plans)
    assert reporter.counted() == {"postmaster": NOTICES_MAX}
    again = replace(STRANGERS, id="0")  # its notice may not have been committed
    assert len(reporter.failures([recipient("u0@x.org")], again).messages) == 1
    reporter.clock.advance(3600)
    assert len(reporter.failures([recipient()], STRANGERS).messages) == 1


def test_a_report_to_a_stranger_that_fails_ends_and_a_notice_reaches_the_postmaster(reporter):
    reporter.hops["ann@sender.test"] = Destination(MX)
    verified = replace(STRANGERS, extra=MessageExtra(verified=True))
    (report,) = reporter.failures([recipient()], verified).messages
    assert report.entries[0].recipients[0].path.address == "ann@sender.test"
    failed = reporter.failures([recipient("ann@sender.test")], report.facts, report.contents[0])
    assert failed.messages == ()
    assert failed.events[0].detail.kind == "dropped"
    (notice,) = reporter.failures([recipient()], STRANGERS).messages
    (letter,) = reporter.failures(  # its alias leads to an address that does not take it
        [recipient("admin@example.net")], notice.facts, notice.contents[0]
    ).messages
    assert letter.entries[0].recipients[0].path.address == "postmaster"


def test_a_verified_stranger_without_a_next_hop_makes_no_dead_letters(reporter):
    verified = replace(STRANGERS, extra=MessageExtra(verified=True))
    for number in range(3):
        reporter.failures([recipient()], replace(verified, id=str(number)))
    assert reporter.counted() == {"postmaster": 1}


@pytest.mark.parametrize(
    ("demand", "of_bounce", "has_text"),
    [
        ("requiretls", "requiretls if offered", False),
        ("requiretls if offered", "requiretls if offered", False),
        ("optional", "", True),
        ("", "", True),
    ],
)
def test_a_bounce_of_mail_with_requiretls_has_its_header_only(
    reporter, demand, of_bounce, has_text
):
    message = replace(MESSAGE, envelope=replace(MESSAGE.envelope, ret="FULL", tls=demand))
    (bounce,) = reporter.failures([recipient()], message).messages
    assert bounce.facts.envelope.tls == bounce.events[0].detail.tls == of_bounce
    assert (b"Message-ID: <orig@" in bounce.contents[0], b"\r\nHi\r\n" in bounce.contents[0]) == (
        True,
        has_text,
    )
    added, *letters = reporter.failures([recipient(added_by="a rule")], message).messages
    assert added.facts.envelope.tls == of_bounce
    # of a message of which the report has the header only, the postmaster gets a copy too
    assert [letter.contents for letter in letters] == [(CONTENT,)] * (not has_text)
    # a dead letter is a copy of the message
    (letter,) = reporter.failures([recipient()], replace(message, source=Source.REPORT)).messages
    of_copy = "" if demand == "optional" else demand
    assert letter.facts.envelope.tls == of_copy
    assert letter.contents == (CONTENT,)
    # so is a journal report; a notice is none
    for text, expected in (("", of_copy), ("look at it", of_bounce)):
        mail = RuleMail("alice@example.com", "a rule", (), text)
        made = reporter.reporter.rule_mail(mail, about=message, write=lambda _: CONTENT)
        assert made.facts.envelope.tls == expected
    request = ReceiptRequest("m", "alice@example.com", "r", requiretls=demand == "requiretls")
    plan = reporter.reporter.receipt(ReceiptKind.READ, request, "q", is_manual=False)
    asked = "requiretls if offered" if demand == "requiretls" else ""
    assert [one.facts.envelope.tls for one in plan.messages] == [asked]


def test_a_large_content_becomes_a_dead_letter_from_its_file(reporter):
    large = LargeContent(CONTENT[:-6], (MemoryOctets(b"\r\n\xff\r\n"),), eight_bit=True)
    about = replace(MESSAGE, source=Source.REPORT)
    (letter,) = reporter.failures([recipient()], about, content=large).messages
    assert letter.contents == (large,)
    assert letter.facts.envelope.eight_bit
    assert (letter.facts.message_id, letter.facts.subject) == ("<orig@example.com>", "Hello")


@pytest.mark.parametrize(
    ("languages", "found"),
    [
        ({}, "en"),
        ({"alice@example.com": "de"}, "de"),
        ({"app@example.com": "de"}, "de"),
        ({"alice@example.com": "en", "app@example.com": "de"}, "en"),
    ],
)
def test_the_language_is_the_readers_else_the_senders(languages, found):
    reporter = CountedReporter(texts=TextSource(language_of=lambda one: languages.get(one, "")))
    message = replace(MESSAGE, account="app@example.com")
    (report,) = reporter.failures([recipient()], message).messages
    parsed = email.message_from_bytes(report.contents[0], policy=email.policy.default)
    assert parsed.get_body(("html",))["content-language"] == found


BOB = recipient()
SILENT = recipient("silent@example.net", notify=frozenset({Notify.NEVER}))
SUCCESS_ONLY = recipient("happy@example.net", notify=frozenset({Notify.SUCCESS, Notify.DELAY}))
ASKED = recipient("asked@example.net", notify=frozenset({Notify.FAILURE}))
ADDED = recipient("copy@example.net", added_by="a rule", notify=frozenset({Notify.NEVER}))
POSTMASTER = recipient("postmaster")


def groups(
    recipients,
    *,
    reverse_path="alice@example.com",
    trusted=True,
    source=Source.SMTP,
    kind=ReportKind.FAILED,
):
    facts = MessageFacts("q", Envelope(reverse_path), source, trusted, 0)
    decision = decide_reports(kind, facts, recipients)
    assert not (decision.added and decision.dead_letters)
    return decision.reported, decision.added or decision.dead_letters, decision.dropped


@each_row(
    "strangers, verified, to",
    [
        ("verified", True, "sender"),
        ("verified", False, "postmaster"),
        ("postmaster", True, "postmaster"),
        ("sender", False, "sender"),
    ],
)
def test_who_hears_of_a_strangers_mail_that_fails(strangers, verified, to):
    everybody = [BOB, SILENT, SUCCESS_ONLY, ASKED, ADDED]
    message = replace(STRANGERS, extra=MessageExtra(verified=verified))
    found = decide_reports(ReportKind.FAILED, message, everybody, strangers=strangers)
    heard = (found.reported, found.noticed)
    assert heard == (((BOB, ASKED), ()) if to == "sender" else ((), (BOB, ASKED)))
    for kind in (ReportKind.DELAYED, ReportKind.DELIVERED, ReportKind.HELD):
        found = decide_reports(kind, message, everybody, strangers=strangers)
        assert (found.reported, found.noticed) == ((), ())


@pytest.mark.parametrize("source", [Source.GRAPH, Source.SMTP, Source.SENDMAIL])
def test_a_trusted_sender_gets_a_bounce_by_notify(source):
    everybody = [BOB, SILENT, SUCCESS_ONLY, ASKED, ADDED]
    assert groups(everybody, source=source) == ((BOB, ASKED), (ADDED,), ())


@each_row(
    "kind, reported",
    [
        (ReportKind.DELAYED, (BOB, SUCCESS_ONLY)),
        (ReportKind.DELIVERED, (SUCCESS_ONLY,)),
        (ReportKind.RELAYED, (SUCCESS_ONLY,)),
        (ReportKind.EXPANDED, (SUCCESS_ONLY,)),
    ],
)
def test_other_reports_by_notify_and_none_about_recipients_of_rules_or_reports(kind, reported):
    everybody = [BOB, SILENT, SUCCESS_ONLY, ASKED, ADDED]
    assert groups(everybody, kind=kind) == (reported, (), ())
    assert groups(everybody, kind=kind, trusted=False) == ((), (), ())
    assert groups(everybody, kind=kind, source=Source.REPORT) == ((), (), ())


@pytest.mark.parametrize("source", [Source.SMTP, Source.REPORT])
def test_what_ends_without_an_answer_is_reported_as_a_failure_is(source):
    everybody = [BOB, SILENT, SUCCESS_ONLY, ASKED, ADDED]
    failed = groups(everybody, source=source)
    assert groups(everybody, kind=ReportKind.UNKNOWN, source=source) == failed != ((), (), ())


@pytest.mark.parametrize(
    "sender", [{"reverse_path": ""}, {"trusted": False}, {"reverse_path": "", "trusted": False}]
)
def test_no_bounce_for_the_null_reverse_path_or_untrusted_senders(sender):
    assert groups([BOB, ASKED], **sender) == ((), (), ())


def test_failed_recipients_of_a_rule_go_to_the_postmaster():
    assert groups([BOB, ADDED], trusted=False) == ((), (ADDED,), ())
    assert groups([BOB, ADDED], reverse_path="") == ((), (ADDED,), ())


def test_a_bounce_causes_no_bounce_and_ends_at_the_postmaster():
    assert groups([BOB, ASKED], source=Source.REPORT, reverse_path="") == ((), (BOB, ASKED), ())
    assert groups([POSTMASTER], source=Source.REPORT, reverse_path="") == ((), (), (POSTMASTER,))


@pytest.mark.parametrize(
    ("kind", "action", "notify"),
    [
        (ReportKind.DELAYED, "delayed", frozenset()),
        (ReportKind.DELAYED, "delayed", frozenset({Notify.DELAY})),
        (ReportKind.DELIVERED, "delivered", frozenset({Notify.SUCCESS})),
        (ReportKind.RELAYED, "relayed", frozenset({Notify.SUCCESS})),
    ],
)
def test_a_report_of_each_kind_goes_to_the_sender_and_is_counted(reporter, kind, action, notify):
    message = replace(MESSAGE, expires_us=MESSAGE.received_us + 48 * HOUR_US)
    people = [recipient(notify=notify), recipient("never@x.test", frozenset({Notify.NEVER}))]
    plan = reporter.reporter.reports(kind, message, people, content=CONTENT)
    (report,), (event,) = plan.messages, plan.events
    assert report.entries[0].recipients[0].path.address == "alice@example.com"
    assert f"\r\nAction: {action}\r\n".encode() in report.contents[0]
    times = {"since": "2023-11-14T22:13:20.000000Z", "until": "2023-11-16T22:13:20.000000Z"}
    assert to_builtins(event.detail) == {
        "report_id": report.facts.id,
        "to": "alice@example.com",
        "kind": str(kind),
        "recipients": ["bob@example.net"],
        **(times if kind is ReportKind.DELAYED else {}),
    }
    assert reporter.counted() == {str(kind): 1}


@pytest.mark.parametrize("kind", [ReportKind.DELAYED, ReportKind.DELIVERED, ReportKind.RELAYED])
def test_a_report_of_no_failure_that_has_no_next_hop_is_left_out(reporter, kind):
    reporter.hops.clear()
    people = [recipient(notify=frozenset({Notify.SUCCESS, Notify.DELAY}))]
    plan = reporter.reporter.reports(kind, MESSAGE, people, content=CONTENT)
    assert plan.messages == ()
    (event,) = plan.events
    assert event.detail.left_out == "the address of the sender has no next hop"
    assert reporter.counted() == {}
