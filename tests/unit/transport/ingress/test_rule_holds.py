"""What acceptance does with the copies that rules hold: entries, notices, and the bound."""

import asyncio

import pytest

from relay.base.message.content import Content
from relay.base.message.envelope import Envelope, ForwardPath, Notify
from relay.store.spool.types import HoldsFullError
from relay.transport.ingress.data import Origin
from relay.transport.policy.rule_files import read_rules
from tests.support.ingress import Relay
from tests.unit.transport.ingress.test_acceptance import PICKUP, TRUSTED, UNTRUSTED

RULES = """
[[rule]]
name = "first"
when = { subject = "*first*" }
then = [ { bcc = "copy@b.test" }, { hold = "one" } ]
expires = "1h"
expired = "silent"
notice = "It waits."

[[rule]]
name = "second"
when = { recipient = "*@b.test" }
then = [ { hold = "two" } ]
notice = "It waits too."

[[rule]]
name = "moved"
when = { subject = "*moved*" }
then = [ { redirect = "new@c.test" } ]

[[rule]]
name = "refused"
when = { subject = "*refused*" }
then = [ { reject = "5.7.1 no" } ]
"""
ALICE = "alice@example.test"
NEVER = frozenset({Notify.NEVER})


@pytest.fixture
def relay(tmp_path) -> Relay:
    (tmp_path / "rules.toml").write_text(RULES)
    return Relay(rules=read_rules(tmp_path))


async def accepted(
    relay: Relay, subject: str, *to: ForwardPath | str, origin: Origin = TRUSTED, fields: str = "",
    sender: str = ALICE,
):  # fmt: skip
    content: Content = f"Subject: {subject}\r\n{fields}\r\nHello.\r\n".encode()
    paths = tuple(one if isinstance(one, ForwardPath) else ForwardPath(one) for one in to)
    acceptance = relay.acceptance()
    try:
        return await acceptance.accept(Envelope(sender), paths, content, origin=origin)
    finally:
        acceptance.close()


@pytest.mark.parametrize(
    ("dates", "held"), [("until = 2000-01-01", False), ("from = 2000-01-02", True)]
)
async def test_a_rule_holds_only_on_its_days(tmp_path, dates, held) -> None:
    text = f"[[rule]]\nname = 'dated'\n{dates}\nthen = [ {{ hold = 'today' }} ]\n"
    (tmp_path / "rules.toml").write_text(text)
    relay = Relay(rules=read_rules(tmp_path))
    await accepted(relay, "x", "bob@b.test")
    assert entries(relay) == {"bob@b.test": ("dated", "today") if held else ("", "")}


def entries(relay: Relay) -> dict[str, tuple[str, str]]:
    """Rule and reason of each address."""
    (message,) = relay.spool.accepted
    return {
        to.path.address: (entry.extra.rule, entry.extra.reason)
        for entry in message.entries
        for to in entry.recipients
    }


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("first", {"x@a.test": ("first", "one"), "x@b.test": ("first", "one"), "copy@b.test": ("", "")}),
        ("other", {"x@a.test": ("", ""), "x@b.test": ("second", "two")}),
        ("first, moved", {"new@c.test": ("first", "one"), "copy@b.test": ("", "")}),
    ],
    ids=["the first hold wins, copies leave", "a part is held", "the copy of a redirect is held"],
)  # fmt: skip
async def test_what_is_held(relay, subject, expected) -> None:
    await accepted(relay, subject, "x@a.test", "x@b.test")
    assert entries(relay) == expected


async def test_the_fields_of_a_held_entry(relay) -> None:
    await accepted(relay, "first", "x@a.test")
    (message,) = relay.spool.accepted
    extra = next(one.extra for one in message.entries if one.extra.rule)
    received_us = message.facts.received_us
    assert (extra.expires_us, extra.lifetime_us) == (received_us + 3600_000_000, 3600_000_000)
    assert extra.silent
    assert message.events[0].detail["held"] == {'rule "first": one': ["x@a.test"]}
    assert message.held_max == 10_000


async def test_a_later_rejection_wins(relay) -> None:
    found = await accepted(relay, "first, refused", "x@a.test")
    assert found.reply == "550 5.7.1 no"
    assert relay.spool.accepted == relay.spool.reports == []


@pytest.mark.parametrize("origin", [TRUSTED, PICKUP], ids=["smtp", "pickup"])
async def test_one_notice_for_each_rule(relay, origin) -> None:
    await accepted(relay, "first", "x@a.test", "y@a.test", origin=origin)
    (report,) = relay.spool.reports
    assert report.facts.envelope.reverse_path == ""
    assert [to.path.address for to in report.entries[0].recipients] == [ALICE]
    (message,) = relay.spool.accepted
    assert [one.detail.get("kind") for one in message.events] == [None, "held"]
    assert message.events[1].detail["recipients"] == ["x@a.test", "y@a.test"]


async def test_a_notice_is_about_the_recipient_that_the_sender_knows(relay) -> None:
    await accepted(relay, "first, moved", "x@a.test")
    (message,) = relay.spool.accepted
    assert message.events[1].detail["recipients"] == ["x@a.test"]


NO_NOTICE = {
    "a stranger": {"origin": UNTRUSTED, "to": "bob@example.test"},
    "the null sender": {"sender": ""},
    "a list": {"fields": "Precedence: bulk\r\n"},
    "a program": {"fields": "Auto-Submitted: auto-generated\r\n"},
    "NOTIFY=NEVER": {"to": ForwardPath("x@a.test", NEVER)},
}


@pytest.mark.parametrize("case", NO_NOTICE.values(), ids=NO_NOTICE)
async def test_who_gets_no_notice(relay, case) -> None:
    more = {name: value for name, value in case.items() if name != "to"}
    await accepted(relay, "first", case.get("to", "x@a.test"), **more)
    assert len(relay.spool.accepted) == 1
    assert relay.spool.reports == []


async def test_beyond_the_bound_it_is_deferred_and_the_log_says_so_once_a_minute(
    relay, capfd
) -> None:
    relay.spool.fault = HoldsFullError("")
    acceptance = relay.acceptance()
    for number in range(4):
        if number == 3:
            relay.clock.advance(60)
        content = b"Subject: first\r\n\r\n"
        paths = (ForwardPath("x@a.test"),)
        found = await acceptance.accept(Envelope(ALICE), paths, content, origin=TRUSTED)
        assert (found.reply[:9], found.rule) == ("452 4.3.1", "first")
    acceptance.close()
    assert relay.spool.accepted == []
    await asyncio.sleep(0)  # the log is written at the end of a turn
    lines = [one for one in capfd.readouterr().err.splitlines() if "rules hold" in one]
    assert ["messages=1" in lines[0], "messages=3" in lines[1], len(lines)] == [True, True, 2]
