"""Forwarded mail: its senders, the reports that come back to them, and loops."""

import pytest

from relay.journeys.events import Step
from relay.message.verdict import AddedRecipient
from relay.routing.route_table import RouteTable
from relay.settings.tree import Route
from relay.spool.types import NewMessage
from tests.support.ingress import FakeAccounts, Relay
from tests.unit.ingress.test_acceptance import (
    CONTENT,
    PICKUP,
    TRUSTED,
    UNTRUSTED,
    Rules,
    accept,
    envelope,
)
from tests.unit.ingress.test_expansion import aliases_of, begun, copies_of

__all__ = ["begun"]
DAY_US = 86_400_000_000
STRANGER = "ann@example.org"
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


class Routed(Relay):
    """A relay with a route for the mail of one sender."""

    @property
    def router(self):
        route = Route("by-sender.test", "smtp://of-ann.test:2525", name="of ann", sender=STRANGER)
        return RouteTable((route,), ["example.test"], self.accounts)


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
    decision = await accept(relay, sent, **({"origin": UNTRUSTED} | more))
    assert decision.reply.startswith("250 "), decision.reply
    return relay.spool.accepted[-1]


async def test_a_copy_for_another_domain_gets_a_sender_of_the_domain_of_its_alias():
    relay = relay_with()
    message = await accepted(relay, "mixed@example.test", "q@d.test", "outer@example.test")
    assert senders_of(message) == {
        "local": "", "mx:b.test": srs(relay), "mx:c.test": srs(relay), "mx:d.test": "",
    }  # fmt: skip
    assert message.facts.envelope.reverse_path == STRANGER
    (event,) = (one for one in message.events if one.step is Step.POLICY_AND_ROUTING)
    assert event.detail["senders"] == {"mixed@example.test": srs(relay)}


@pytest.mark.parametrize("sender", ["", "alice@example.test", "nobody@EXAMPLE.test"])
async def test_a_null_or_local_sender_stays(sender):
    message = await accepted(relay_with(), "away@example.test", sender=sender, origin=TRUSTED)
    assert senders_of(message) == {"mx:b.test": ""}
    assert "senders" not in message.events[0].detail


async def test_another_forwarder_is_named_in_the_sender():
    relay = relay_with()
    other = "SRS0=HHHH=TT=example.org=ann@first.test"
    message = await accepted(relay, "away@example.test", sender=other)
    (sender,) = senders_of(message).values()
    assert sender.startswith("SRS1=")
    report = await accepted(relay, sender, sender="")
    assert aliases_of(report) == {sender: ("redirected", (other,))}
    assert copies_of(report) == [("mx:first.test", "", [other])]


async def test_a_route_is_chosen_by_the_sender_of_the_message():
    relay = relay_with(Routed, routed=("x@by-sender.test",))
    message = await accepted(relay, "routed@example.test")
    (hop,) = senders_of(message)
    assert hop == "smtp://of-ann.test:2525"
    assert senders_of(message)[hop] == srs(relay)


async def test_what_a_rule_adds_by_an_alias_gets_a_sender_too():
    relay = relay_with()
    relay.rules = Rules(additions=[AddedRecipient("away@example.test", "r", 0)])
    message = await accepted(relay, "alice@example.test")
    assert senders_of(message) == {"local": "", "mx:b.test": srs(relay)}


@pytest.mark.parametrize("kind", [Relay, CatchAll])
@pytest.mark.parametrize("change", [str, str.lower, str.upper])
async def test_a_report_comes_back_to_the_sender(kind, change, begun):
    relay = relay_with(kind)
    address = change(srs(relay)).replace("@EXAMPLE.TEST", "@example.test")
    client = await begun(relay)
    await client.say_all("RSET", "MAIL FROM:<>")
    assert await client.say(f"RCPT TO:<{address}>") == "250 2.1.5 Ok"
    message = await accepted(relay, address, sender="")
    original = (
        STRANGER.upper().replace("@EXAMPLE.ORG", "@example.org")
        if change is str.upper
        else STRANGER
    )
    assert aliases_of(message) == {address: ("redirected", (original,))}
    assert copies_of(message) == [("mx:example.org", "", [original])]
    assert senders_of(message) == {"mx:example.org": ""}


@pytest.mark.parametrize("kind", [Relay, CatchAll])
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
        decision = await accept(relay, envelope(address, "bob@example.test", sender=sender), origin)
        assert decision.queue_id
        (failed,) = (
            one for one in relay.spool.accepted[-1].final_recipients if one.status
            and one.path.address == address
        )  # fmt: skip
        assert (str(failed.state), failed.reply) == ("failed", reply)


async def test_a_wall_clock_that_was_wrong_does_not_end_an_srs_address():
    relay = relay_with()
    relay.clock.jumped_us = -30 * DAY_US
    message = await accepted(relay, "away@example.test")
    (address,) = senders_of(message).values()
    relay.clock.jumped_us = 0
    message = await accepted(relay, address, sender="")
    assert aliases_of(message) == {address: ("redirected", (STRANGER,))}


async def test_an_srs_address_of_another_domain_is_an_address_like_any_other():
    relay = relay_with()
    address = srs(relay).replace("example.test", "first.test")
    message = await accepted(relay, address)
    assert copies_of(message) == [("mx:first.test", "", [address])]


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
    assert copies_of(message) == [("mx:b.test", "away@example.test", ["x@b.test"])]


async def test_with_other_recipients_a_loop_is_reported_and_nothing_is_dropped():
    relay = relay_with()
    message = await accepted(
        relay, "away@example.test", "alice@example.test", sender="bob@example.test",
        origin=TRUSTED, content=looping("away@example.test"),
    )  # fmt: skip
    assert copies_of(message) == [("local", "", ["alice@example.test"])]
    (failed,) = message.final_recipients
    assert (failed.path.address, failed.status) == ("away@example.test", "5.4.6")
    (report,) = relay.spool.reports
    assert [one.path.address for one in report.entries[0].recipients] == ["bob@example.test"]


@pytest.mark.parametrize(
    ("named", "aliases", "copies"),
    [
        ("bob@example.test", {}, ["bob@example.test"]),
        ("bob+tag@example.test", {}, ["bob+tag@example.test"]),
        ("via@example.test",
         {"via@example.test": ("expanded", ("bob@example.test", "alice@example.test"))},
         ["bob@example.test", "alice@example.test"]),
    ],
)  # fmt: skip
async def test_an_account_keeps_what_it_has_forwarded(named, aliases, copies):
    relay = relay_with()
    message = await accepted(relay, named, content=looping("bob@example.test"))
    assert aliases_of(message) == aliases
    assert copies_of(message) == [("local", "", copies)]


async def test_an_alias_of_which_only_a_part_loops_rejects_the_whole():
    relay = relay_with(both=("alice@example.test", "away@example.test"))
    sent = envelope("both@example.test", sender=STRANGER)
    decision = await accept(relay, sent, UNTRUSTED, looping("away@example.test"))
    assert decision.reply.startswith("554 5.4.6 <both@example.test>: mail loop: ")


async def test_a_rule_adds_no_loop():
    relay = relay_with()
    relay.rules = Rules(additions=[AddedRecipient("away@example.test", "r", 0)])
    message = await accepted(relay, "alice@example.test", content=looping("away@example.test"))
    assert copies_of(message) == [("local", "", ["alice@example.test"])]
    (failed,) = message.final_recipients
    assert (failed.path.address, str(failed.state)) == ("away@example.test", "failed")
