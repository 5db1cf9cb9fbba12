"""Journal reports and notices of rules: what they say, whom they are about, and when there is none."""

import email
import email.policy
import tracemalloc

import pytest

from relay.base.message.content import LargeContent, read_all
from relay.base.message.envelope import Envelope, ForwardPath, Source
from relay.store.journeys.details import SentMail
from relay.store.spool.types import HoldsFullError, SpoolFullError
from relay.transport.ingress.data import Origin
from relay.transport.policy.rule_book import RuleBook, TenantRules
from relay.transport.policy.rule_files import read_rules
from tests.support.contents import as_large
from tests.support.ingress import FakeAccounts, Relay
from tests.unit.transport.ingress.test_acceptance import PICKUP, TRUSTED

ALICE = "alice@example.test"
RULES = """
[[rule]]
name = "a"
when = { recipient = ["*@a.test", "bob@example.test"] }
then = [ { subject_prefix = "[A]" }, { journal = "journal@archive.test" } ]

[[rule]]
name = "all"
when = { subject = "*all*" }
then = [ { journal = "Journal@archive.test" } ]

[[rule]]
name = "own"
when = { subject = "*own*" }
then = [ { journal = "nobody@example.test" } ]

[[rule]]
name = "looked at"
when = { subject = "*notice*" }
then = [ { notify = { to = ["it@b.test", "bob@example.test"], text = "Grüße\\nLook." } } ]

[[rule]]
name = "audited"
mode = "audit"
then = [ { journal = "audit@archive.test" }, { notify = { to = "audit@b.test", text = "x" } } ]

[[rule]]
name = "refused"
when = { subject = "*refused*", recipient = "x@a.test" }
then = [ { reject = "5.7.1 no" } ]

[[rule]]
name = "gone"
when = { subject = "*gone*" }
then = [ { discard = true } ]

[[rule]]
name = "odd"
when = { subject = "*odd*" }
then = [ { quarantine = true } ]

[[rule]]
name = "odder"
when = { subject = "*weird*" }
then = [ { quarantine = "look@b.test" } ]

[[rule]]
name = "moved"
when = { subject = "*moved*" }
then = [ { redirect = "legal@b.test" } ]

[[rule]]
name = "held"
when = { subject = "*held*" }
then = [ { hold = "a look" } ]
"""


@pytest.fixture
def relay(tmp_path) -> Relay:
    (tmp_path / "rules.toml").write_text(RULES)
    accounts = FakeAccounts(team=["bob@example.test", "y@a.test"], info=["bob@example.test"])
    return Relay(rules=RuleBook(read_rules(tmp_path)), accounts=accounts)


class Sender:
    """Sends to one acceptance, which remembers what it has sent."""

    def __init__(self, relay: Relay) -> None:
        self.relay, self.acceptance = relay, relay.acceptance()

    async def send(
        self,
        subject: str,
        *to: str,
        fields: str = "",
        envid: str = "",
        content=None,
        origin: Origin = TRUSTED,
    ) -> str:
        made = f"From: {ALICE}\r\nSubject: {subject}\r\nMessage-ID: <m@x.test>\r\n{fields}\r\nHello.\r\n"
        paths = tuple(map(ForwardPath, to))
        decision = await self.acceptance.accept(
            Envelope(ALICE, envid=envid), paths, content or made.encode(), origin=origin
        )
        return decision.reply[:3]


@pytest.fixture
def sender(relay: Relay):
    made = Sender(relay)
    yield made
    made.acceptance.close()


def journals(relay: Relay) -> dict[str, list[str]]:
    """The lines of each report that differ from message to message, by its address."""
    found = {}
    for one in relay.spool.reports:
        message = email.message_from_bytes(read_all(one.contents[0]), policy=email.policy.default)
        (entry,) = one.entries
        if "X-MS-Journal-Report" in message:
            text, original = message.iter_parts()
            assert original.get_content_type() == "message/rfc822"
            assert entry.extra.keep
            found[entry.recipients[0].path.address] = text.get_content().splitlines()[3:]
    return found


async def test_the_whole_report(relay, sender) -> None:
    await sender.send(
        "hello, all",
        "x@a.test",
        "bob@example.test",
        "z@c.test",
        fields="To: X <X@a.test>, Bob@Example.test\r\nBcc: z@c.test\r\n",
    )
    (report,) = relay.spool.reports
    (message,) = relay.spool.accepted
    assert (report.facts.source, report.facts.account) == (Source.REPORT, "")
    assert report.facts.envelope.reverse_path == ""
    raw = report.contents[0]
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert parsed["From"] == "Mail Delivery System <MAILER-DAEMON@relay.example.test>"
    assert (parsed["To"], parsed["Auto-Submitted"]) == ("journal@archive.test", "auto-generated")
    assert (parsed["Subject"], parsed["X-MS-Journal-Report"]) == ("Journal report: hello, all", "")
    text, _ = parsed.iter_parts()
    assert text.get_content().splitlines() == [
        f"Sender: {ALICE}",
        "Subject: hello, all",
        "Message-Id: <m@x.test>",
        "To: x@a.test",
        "To: bob@example.test",
        "Bcc: z@c.test",
        "Rule: a",
        "Rule: all",
    ]
    # octet for octet, before the rule has edited it
    boundary = parsed.get_boundary().encode()
    original = raw.split(b"\r\n--" + boundary)[2].split(b"\r\n\r\n", 1)[1]
    accepted, edited = map(read_all, message.contents)
    assert b"Subject: [A] hello" in edited
    assert original == accepted
    assert original.startswith(b"Received: ")
    sent = SentMail("journal", report.facts.id, "journal@archive.test", ("a", "all"))
    assert message.events[0].detail.mails == [sent]
    assert relay.metrics.reports.labels(kind="journal")._value.get() == 1


NAMED = {
    "no match": ("x", ["z@c.test"], "", None),
    "cc": ("x", ["x@a.test", "z@c.test"], "Cc: x@a.test\r\n", ["Cc: x@a.test", "Rule: a"]),
    "a list": (
        "x",
        ["team@example.test"],
        "To: team@example.test\r\n",
        [
            "To: bob@example.test, Expanded: team@example.test",
            "To: y@a.test, Expanded: team@example.test",
            "Rule: a",
        ],
    ),
    "an alias": (
        "x",
        ["info@example.test"],
        "",
        ["Bcc: bob@example.test, Forwarded: info@example.test", "Rule: a"],
    ),
    "moved": (
        "moved",
        ["x@a.test"],
        "To: x@a.test\r\n",
        ["To: x@a.test", "Recipient: legal@b.test, Redirected: x@a.test", "Rule: a"],
    ),
    "discarded": ("gone", ["x@a.test"], "To: x@a.test\r\n", ["To: x@a.test", "Rule: a"]),
    "junk": ("odd", ["bob@example.test"], "", ["Bcc: bob@example.test", "Rule: a"]),
    "elsewhere": (
        "weird",
        ["x@a.test"],
        "",
        ["Bcc: x@a.test", "Recipient: look@b.test, Quarantined: x@a.test", "Rule: a"],
    ),
    "held": ("held", ["x@a.test"], "To: x@a.test\r\n", ["To: x@a.test", "Rule: a"]),
    "rejected": ("refused", ["x@a.test", "z@c.test"], "", None),
    "one rejected": ("refused", ["x@a.test", "y@a.test"], "", ["Bcc: y@a.test", "Rule: a"]),
    "a long To": (
        "x",
        ["x@a.test"],
        f"To: {'a' * 900}@b.test\r\n" * 80,
        ["Recipient: x@a.test", "Rule: a"],
    ),
}


@pytest.mark.parametrize(("subject", "to", "fields", "expected"), NAMED.values(), ids=NAMED)
async def test_whom_a_report_names(relay, sender, subject, to, fields, expected) -> None:
    assert await sender.send(subject, *to, fields=fields) == "250"
    assert journals(relay) == ({} if expected is None else {"journal@archive.test": expected})


@pytest.mark.parametrize("subject", ["refused", "refused, notice"])
async def test_nothing_about_a_message_that_is_refused(relay, sender, subject) -> None:
    assert await sender.send(subject, "x@a.test") == "550"
    assert relay.spool.accepted == relay.spool.reports == []


async def test_a_repeat_makes_no_second_report_and_uses_up_no_hour(relay, sender) -> None:
    for _ in range(2):
        assert await sender.send("notice", "x@a.test", envid="e1", origin=PICKUP) == "250"
    assert len(relay.spool.reports) == 3
    relay.clock.advance(3700)
    assert await sender.send("notice", "x@a.test", envid="e1", origin=PICKUP) == "250"
    assert len(relay.spool.reports) == 3
    assert await sender.send("notice", "z@c.test") == "250"
    assert len(relay.spool.reports) == 5


def notices(relay: Relay) -> list[str]:
    return [
        to.path.address
        for report in relay.spool.reports
        for one in report.entries
        for to in one.recipients
        if not one.extra.keep
    ]


async def test_a_notice(relay, sender) -> None:
    many = [f"{number}@c.test" for number in range(103)]
    await sender.send("notice", *many)
    first, second = relay.spool.reports
    parsed = email.message_from_bytes(first.contents[0], policy=email.policy.default)
    lines = parsed.get_content().splitlines()
    assert lines[:5] == ["Grüße", "Look.", "", "Rule: looked at", f"Sender: {ALICE}"]
    assert lines[5:8] == ["Subject: notice", "Message-Id: <m@x.test>", "Recipient: 0@c.test"]
    assert lines[-2:] == ["Recipient: 99@c.test", "Further recipients: 3"]
    assert (parsed["Auto-Submitted"], parsed["Subject"]) == ("auto-generated", "Notice: notice")
    assert [one.entries[0].extra.keep for one in (first, second)] == [False, False]
    assert first.facts.envelope.reverse_path == ""
    assert notices(relay) == ["it@b.test", "bob@example.test"]


@pytest.mark.parametrize("fault", [None, SpoolFullError("full"), HoldsFullError("")])
async def test_a_notice_in_an_hour(relay, sender, fault) -> None:
    relay.spool.fault = fault
    first = await sender.send("notice, held", "z@c.test")
    relay.spool.fault = None
    assert first == ("452" if fault else "250")
    await sender.send("notice", "z@c.test")  # what was not accepted has not used up the hour
    assert len(notices(relay)) == 2
    relay.clock.advance(3500)
    await sender.send("notice", "z@c.test")
    assert len(notices(relay)) == 2
    relay.clock.advance(200)
    await sender.send("notice", "z@c.test")
    assert len(notices(relay)) == 4


async def test_a_large_message_is_not_in_memory_twice(relay, sender) -> None:
    content = as_large(
        f"From: {ALICE}\r\nSubject: x\r\n\r\n".encode() + b"x" * 20_000_000 + b"\r\n"
    )
    tracemalloc.start()
    try:
        assert await sender.send("", "x@a.test", content=content) == "250"
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    (report,) = relay.spool.reports
    assert isinstance(report.contents[0], LargeContent)
    assert read_all(report.contents[0]).count(b"x" * 20_000_000) == 1
    assert report.facts.size == len(read_all(report.contents[0]))


async def test_a_tenant_learns_of_its_own_alone(relay, sender, tmp_path) -> None:
    """Neither the operator's redirect nor an alias of others is in its report; its redirect is."""
    first, _, others = RULES.partition("\n\n")
    redirect = "when = { recipient = 'z@a.test' }\nthen = [ { redirect = 'new@a.test' } ]"
    (tmp_path / "rules.toml").write_text(
        first.replace('"a"', '"acme/a"') + f"\n[[rule]]\nname = 'acme/b'\n{redirect}\n"
    )
    own = read_rules(tmp_path)
    (tmp_path / "rules.toml").write_text(others)
    acme = TenantRules("acme", frozenset({"a.test"}), own)
    relay.rules = RuleBook(read_rules(tmp_path), {"acme": acme})
    for subject, to, expected in (
        ("moved", "x@a.test", ["Bcc: x@a.test"]),
        ("x", "z@a.test", ["Bcc: z@a.test", "Recipient: new@a.test, Redirected: z@a.test"]),
        ("x", "team@example.test", ["Bcc: y@a.test"]),
    ):
        relay.spool.reports.clear()
        await sender.send(subject, to)
        assert journals(relay) == {"journal@archive.test": [*expected, "Rule: acme/a"]}
