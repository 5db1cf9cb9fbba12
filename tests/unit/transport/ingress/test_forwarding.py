"""Forwarded mail: its senders and authors, the reports that come back, and loops."""

import asyncio

import pytest

from relay.base.message.verdict import AddedRecipient
from relay.base.settings.tree import Route
from relay.store.journeys.events import Step
from relay.store.spool.types import NewMessage, SpoolUnavailableError
from relay.transport.routing.route_table import RouteTable
from tests.support.ingress import Client, FakeAccounts, Relay
from tests.support.tables import each_row
from tests.unit.transport.ingress.test_acceptance import (
    PICKUP,
    TRUSTED,
    UNTRUSTED,
    Rules,
    accept,
    envelope,
)
from tests.unit.transport.ingress.test_expansion import aliases_of, begun, copies_of

__all__ = ["begun"]
DAY_US = 86_400_000_000
STRANGER = "ann@example.org"
CONTENT = b"From: ann@example.org\r\nSubject: hello\r\n\r\ntext\r\n"
ALIASES = {
    "away": ("x@b.test",),
    "mixed": ("alice@example.test", "x@b.test", "y@c.test"),
    "outer": ("away@example.test",),
    "bob": ("b@c.test",),  # who keeps a copy
    "via": ("bob@example.test", "alice@example.test"),
}


class CatchAll(Relay):
    """A relay that takes mail for every address of its domain."""

    @property
    def router(self):
        return RouteTable((), ["example.test"], self.accounts, catch_all="alice@example.test")


class TwoDomains(Relay):
    """A relay with further local domains: one for SRS addresses, one with a letter that IDNA 2003
    and 2008 write differently.
    """

    @property
    def router(self):
        domains = ["example.test", "srs.test", "xn--strae-oqa.test", "xn--bcher-kva.test"]
        return RouteTable((), domains, self.accounts)


class Elsewhere(Relay):
    """A relay with a route that sends the mail of its domain to another host."""

    @property
    def router(self):
        route = Route("example.test", "smtp://hub.internal.test:2525", name="hub")
        return RouteTable((route,), ["example.test"], self.accounts, catch_all="alice@example.test")


def relay_with(kind: type[Relay] = Relay, **more) -> Relay:
    return kind(accounts=FakeAccounts(**(ALIASES | more)))


def srs(relay: Relay, sender: str = STRANGER, *, days: float = 0) -> str:
    """The address that this relay writes for a sender."""
    now_us = relay.clock.queue_us() + int(days * DAY_US)
    return relay.srs.rewritten(sender, "example.test", now_us=now_us)


def senders_of(message: NewMessage) -> dict[str, str]:
    return {str(one.next_hop): one.extra.sender for one in message.entries}


async def accepted(relay: Relay, *named: str, **more) -> NewMessage:
    sent = envelope(*named, sender=more.pop("sender", STRANGER))
    decision = await accept(relay, sent, **({"origin": UNTRUSTED, "content": CONTENT} | more))
    assert decision.reply.startswith("250 "), decision.reply
    return relay.spool.accepted[-1]


@pytest.mark.parametrize("sender", ["", "alice@example.test", "nobody@EXAMPLE.test"])
async def test_the_null_sender_and_a_local_one_of_a_trusted_client_stay(sender):
    message = await accepted(relay_with(), "away@example.test", sender=sender, origin=TRUSTED)
    assert senders_of(message) == {"mx:b.test": ""}
    assert not message.events[0].detail.senders


async def test_a_copy_is_examined_by_itself_beside_other_mail_for_its_domain():
    relay, named = relay_with(), ("z@b.test", "away@example.test")
    message = await accepted(relay, *named)
    assert {one.extra.sender: copies_of(message)[at] for at, one in enumerate(message.entries)} == {
        "": "mx:b.test: z@b.test",
        srs(relay): "mx:b.test by away@example.test: x@b.test",
    }
    message = await accepted(relay, *named, content=b"From: alice@example.test\r\n\r\ntext\r\n")
    assert copies_of(message) == ["mx:b.test: z@b.test"]


async def test_a_local_sender_that_a_stranger_names_is_rewritten():
    relay = relay_with()
    message = await accepted(relay, "away@example.test", sender="alice@example.test")
    assert senders_of(message) == {"mx:b.test": srs(relay, "alice@example.test")}
    report = await accepted(relay, srs(relay, "alice@example.test"), sender="")
    assert copies_of(report) == ["local: alice@example.test"]


@pytest.mark.parametrize("kind", [Relay, CatchAll, Elsewhere])
@pytest.mark.parametrize("origin", [UNTRUSTED, PICKUP], ids=["smtp", "pickup"])
async def test_an_srs_address_that_cannot_be_used_is_rejected(kind, origin, begun):
    relay = relay_with(kind)
    good = srs(relay)
    cases = [
        ("", good.replace("ann", "eve"), "550 5.1.1 ", "the SRS address is forged"),
        ("", good[:10] + good[11:], "550 5.1.1 ", "the SRS address is forged"),
        ("", srs(relay, days=-22), "550 5.1.1 ", "the SRS address is older than 21 days"),
        ("", "srs1=x@example.test", "550 5.1.1 ", "the SRS address is forged"),
        (STRANGER, good, "550 5.7.1 ", "takes only reports of mail that was forwarded"),
    ]
    client = await begun(relay)
    for sender, address, code, text in cases:
        await client.say_all("RSET", f"MAIL FROM:<{sender}>")
        reply = await client.say(f"RCPT TO:<{address}>")
        assert reply.startswith(code), address
        assert text in reply
        sent = envelope(address, "alice@example.test", sender=sender)
        assert (await accept(relay, sent, origin)).queue_id
        (failed,) = (
            one
            for one in relay.spool.accepted[-1].final_recipients
            if one.status and one.path.address == address
        )
        assert (str(failed.state), failed.reply) == ("failed", reply)


async def test_a_wall_clock_that_was_wrong_does_not_end_an_srs_address():
    relay = relay_with()
    relay.clock.jumped_us = -30 * DAY_US
    message = await accepted(relay, "away@example.test")
    (address,) = senders_of(message).values()
    relay.clock.jumped_us = 0
    message = await accepted(relay, address, sender="")
    assert aliases_of(message) == {address: ("redirected", (STRANGER,))}


def looping(*passed: str) -> bytes:
    return b"".join(f"Delivered-To: {one}\r\n".encode() for one in passed) + CONTENT


@pytest.mark.parametrize(
    "passed", ["away@example.test", "<AWAY@Example.TEST>", "away@example.test "]
)
@pytest.mark.parametrize(
    "named", ["away@example.test", "outer@example.test", "away+x@example.test"]
)
async def test_an_alias_rejects_what_it_has_forwarded(passed, named):
    relay = relay_with()
    sent = envelope(named, sender=STRANGER)
    decision = await accept(relay, sent, UNTRUSTED, looping("else@where.test", passed))
    assert decision.reply.startswith(f"554 5.4.6 <{named}>: mail loop: ")
    assert relay.spool.accepted == []
    message = await accepted(relay, "away@example.test", content=looping("other@example.test", "?"))
    assert copies_of(message) == ["mx:b.test by away@example.test: x@b.test"]


async def test_with_other_recipients_a_loop_is_reported_and_nothing_is_dropped():
    relay = relay_with()
    message = await accepted(
        relay,
        "away@example.test",
        "alice@example.test",
        sender="bob@example.test",
        origin=TRUSTED,
        content=looping("away@example.test"),
    )
    assert copies_of(message) == ["local: alice@example.test"]
    (failed,) = message.final_recipients
    assert (failed.path.address, failed.status) == ("away@example.test", "5.4.6")
    (report,) = relay.spool.reports
    assert [one.path.address for one in report.entries[0].recipients] == ["bob@example.test"]


@pytest.mark.parametrize(
    ("named", "aliases", "copies"),
    [
        ("bob@example.test", {}, ["bob@example.test"]),
        ("bob+tag@example.test", {}, ["bob+tag@example.test"]),
        (
            "via@example.test",
            {"via@example.test": ("expanded", ("bob@example.test", "alice@example.test"))},
            ["bob@example.test", "alice@example.test"],
        ),
    ],
)
async def test_an_account_keeps_what_it_has_forwarded(named, aliases, copies):
    relay = relay_with()
    message = await accepted(relay, named, content=looping("bob@example.test"))
    assert aliases_of(message) == aliases
    assert copies_of(message) == ["local: " + ", ".join(copies)]


async def test_an_alias_of_which_only_a_part_loops_rejects_the_whole():
    relay = relay_with(both=("alice@example.test", "away@example.test"))
    sent = envelope("both@example.test", sender=STRANGER)
    decision = await accept(relay, sent, UNTRUSTED, looping("away@example.test"))
    assert decision.reply.startswith("554 5.4.6 <both@example.test>: mail loop: ")


async def test_a_rule_adds_no_loop():
    relay = relay_with()
    relay.rules = Rules(additions=[AddedRecipient("away@example.test", "r", 0)])
    message = await accepted(relay, "alice@example.test", content=looping("away@example.test"))
    assert copies_of(message) == ["local: alice@example.test"]
    (failed,) = message.final_recipients
    assert (failed.path.address, str(failed.state)) == ("away@example.test", "failed")


LENT = "550 5.7.1 From or Sender has a domain of this host"
AUTHORS = (
    "From: alice@example.test",
    'From: "Alice" <"a b"@example.test>',
    "From: =?utf-8?q?Alice?= <alice@example.test>",
    "From: ann@example.org, alice@example.test",
    "From: ann@example.org\r\nFrom: alice@example.test",
    "From: ann@example.org\r\nSender: alice@example.test",
    "From: friends: ann@example.org, alice@example.test;",
    "From: alice@example.test.",
    "From: alice@\r\n example.test",
    "From: <alice@example.test@example.org>",
    "From: <alice@example.test> <ann@example.org>",
    "From: alice@=?utf-8?q?example.test?=",
    "From: <=?utf-8?q?alice=40example.test?=@example.org>",
    "From: alice@\xf0\x9f\x84\xb4xample.test",  # U+1F134, which UTS 46 maps to e
    "From: alice@" + "\xc2\xad" * 64 + "example.test",
    "From: \xff\xfe@\xff",
    "From: a@b\xc3\xbccher.test",
    "From: a@stra\xc3\x9fe.test",
    "From: a@strasse.test, b@STRA\xc3\x9fE.test",
    "From: " + "ann@example.org,\r\n " * 300 + "alice@example.test",
)


def by(author: str) -> bytes:
    return author.encode("latin-1") + b"\r\nSubject: hello\r\n\r\ntext\r\n"


@pytest.mark.parametrize("sender", ["", STRANGER, "alice@example.test"])
@each_row("author", AUTHORS)
async def test_a_strangers_mail_in_the_name_of_a_local_domain_is_not_forwarded(author, sender):
    relay = relay_with(TwoDomains)
    sent = envelope("outer@example.test", sender=sender)
    reply = (await accept(relay, sent, UNTRUSTED, by(author))).reply
    assert reply.startswith(LENT), author
    assert relay.spool.accepted == relay.spool.reports == []
    for allowed in ({"origin": TRUSTED}, {"origin": PICKUP}):
        message = await accepted(
            relay, "outer@example.test", sender=sender, content=by(author), **allowed
        )
        assert [one.partition(" ")[0] for one in copies_of(message)] == ["mx:b.test"]


@each_row(
    "author",
    [
        "From: ann@example.org",
        "From: ann@sub.example.test, b@example.test.org",
        'From: "alice@example.test by way of" <ann@example.org>',
        "From: (alice@example.test) ann@example.org",
        "Reply-To: alice@example.test\r\nTo: alice@example.test",
        "From: undisclosed:;",
        "From: a@strasse.test",
    ],
)
async def test_other_mail_of_strangers_is_forwarded(author):
    message = await accepted(relay_with(TwoDomains), "away@example.test", content=by(author))
    assert [one.partition(" ")[0] for one in copies_of(message)] == ["mx:b.test"]


async def test_the_copies_that_stay_are_kept_and_the_sender_gets_no_report():
    relay = relay_with()
    named = "bob@example.test", "mixed@example.test"
    message = await accepted(relay, *named, sender="alice@example.test", content=by(AUTHORS[0]))
    assert copies_of(message) == ["local: bob@example.test, alice@example.test"]
    failed = [one.path.address for one in message.final_recipients if one.status == "5.7.1"]
    assert failed == ["b@c.test", "x@b.test", "y@c.test"]
    (notice,) = relay.spool.reports
    assert notice.entries[0].recipients[0].path.address == "postmaster"
    event, _ = message.events
    assert {one.reply[: len(LENT)] for one in event.detail.refused} == {LENT}


async def test_neither_a_rule_nor_an_srs_address_leads_such_mail_outside():
    relay = relay_with()
    reply = (await accept(relay, envelope(srs(relay), sender=""), UNTRUSTED, by(AUTHORS[0]))).reply
    assert reply.startswith(LENT)
    relay.rules = Rules(additions=[AddedRecipient("away@example.test", "r", 0)])
    message = await accepted(relay, "alice@example.test", content=by(AUTHORS[0]))
    assert copies_of(message) == ["local: alice@example.test"]
    (failed,) = message.final_recipients
    assert (failed.path.address, failed.status) == ("x@b.test", "5.7.1")


@pytest.mark.parametrize("client", ["stranger", "trusted"])
async def test_a_sender_gets_20_reports_an_hour_by_whichever_address(client, begun):
    relay = relay_with(TwoDomains)
    smtp = await begun(relay, trusted_networks=() if client == "stranger" else ("127.0.0.1",))
    twice = relay.srs.rewritten(srs(relay), "srs.test", now_us=relay.clock.queue_us())
    spellings = [
        srs(relay),
        srs(relay, days=-3),
        srs(relay).upper(),
        twice,
        relay.srs.rewritten(STRANGER.upper(), "srs.test", now_us=relay.clock.queue_us()),
    ]
    replies = [await reported(smtp, spellings[number % 5]) for number in range(22)]
    assert [reply[:3] for reply in replies] == ["250"] * 20 + ["450"] * 2, replies
    assert replies[-1].startswith("450 4.7.1 The sender gets 20 reports in an hour")
    assert (await reported(smtp, srs(relay, "eve@example.org"))).startswith("250 ")
    relay.clock.advance(3700)
    assert (await reported(smtp, twice)).startswith("250 ")


async def reported(smtp: Client, address: str) -> str:
    """Send a report to an SRS address, and return the reply that ends it."""
    await smtp.say_all("RSET", "MAIL FROM:<>")
    reply = await smtp.say(f"RCPT TO:<{address}>")
    if not reply.startswith("250 "):
        return reply
    await smtp.say("DATA")
    return await smtp.say("From: mailer-daemon@away.test\r\n\r\nno\r\n.")


async def test_reports_that_arrive_together_are_counted_too():
    relay = relay_with()
    relay.spool.gate = asyncio.Event()
    acceptance, sent = relay.acceptance(), envelope(srs(relay), sender="")
    content = b"From: mailer-daemon@away.test\r\n\r\nno\r\n"
    together = [
        asyncio.ensure_future(acceptance.accept(*sent, content, origin=UNTRUSTED))
        for _ in range(25)
    ]
    await relay.spool.committing.wait()
    relay.spool.gate.set()
    replies = [one.reply[:9] for one in await asyncio.gather(*together)]
    assert sorted(set(replies)) == ["250 2.0.0", "450 4.7.1"]
    assert replies.count("250 2.0.0") == len(relay.spool.accepted) == 20
    acceptance.close()


async def test_a_report_that_is_not_accepted_does_not_count():
    relay = relay_with()
    acceptance, sent = relay.acceptance(), envelope(srs(relay), sender="")
    relay.spool.fault = SpoolUnavailableError("no disk")
    for _ in range(25):
        assert (await acceptance.accept(*sent, CONTENT, origin=UNTRUSTED)).reply.startswith("451 ")
    relay.spool.fault = None
    assert (await acceptance.accept(*sent, CONTENT, origin=UNTRUSTED)).queue_id
    acceptance.close()


async def test_a_report_of_more_than_1_mb_is_refused(begun):
    relay = relay_with()
    smtp, address = await begun(relay), srs(relay)
    await smtp.say_all("RSET", "MAIL FROM:<> SIZE=1000001")
    assert (await smtp.say(f"RCPT TO:<{address}>")).startswith("552 5.3.4 ")
    for named in ([address], [address, "alice@example.test"]):  # a size that was not declared
        await smtp.say_all("RSET", "MAIL FROM:<>", *(f"RCPT TO:<{one}>" for one in named), "DATA")
        reply = await smtp.say("From: a@b.test\r\n\r\n" + ("x" * 998 + "\r\n") * 1000 + ".")
        assert reply.startswith("552 5.3.4 "), named
    assert relay.spool.accepted == []


class Routed(Relay):
    """A relay with a route for the mail of one sender."""

    @property
    def router(self):
        route = Route("by-sender.test", "smtp://of-ann.test:2525", name="of ann", sender=STRANGER)
        return RouteTable((route,), ["example.test"], self.accounts)


async def test_a_copy_for_another_domain_gets_a_sender_of_the_domain_of_its_alias():
    relay = relay_with()
    message = await accepted(relay, "mixed@example.test", "q@d.test", "outer@example.test")
    assert senders_of(message) == {
        "local": "",
        "mx:b.test": srs(relay),
        "mx:c.test": srs(relay),
        "mx:d.test": "",
    }
    assert message.facts.envelope.reverse_path == STRANGER
    (event,) = (one for one in message.events if one.detail.step == Step.POLICY_AND_ROUTING)
    assert event.detail.senders == {"mixed@example.test": srs(relay)}


async def test_a_route_is_chosen_by_the_sender_of_the_message():
    relay = relay_with(Routed, routed=("x@by-sender.test",))
    message = await accepted(relay, "routed@example.test")
    (hop,) = senders_of(message)
    assert hop == "smtp://of-ann.test:2525"
    assert senders_of(message)[hop] == srs(relay)
