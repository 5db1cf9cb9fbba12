"""What acceptance does with the copies that rules hold: entries, notices, and the bound."""

import pytest

from relay.base.message.content import Content
from relay.base.message.envelope import Envelope, ForwardPath, Notify
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
    relay: Relay,
    subject: str,
    *to: ForwardPath | str,
    origin: Origin = TRUSTED,
    fields: str = "",
    sender: str = ALICE,
):
    content: Content = f"Subject: {subject}\r\n{fields}\r\nHello.\r\n".encode()
    paths = tuple(one if isinstance(one, ForwardPath) else ForwardPath(one) for one in to)
    acceptance = relay.acceptance()
    try:
        return await acceptance.accept(Envelope(sender), paths, content, origin=origin)
    finally:
        acceptance.close()


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
        (
            "first",
            {"x@a.test": ("first", "one"), "x@b.test": ("first", "one"), "copy@b.test": ("", "")},
        ),
        ("other", {"x@a.test": ("", ""), "x@b.test": ("second", "two")}),
        ("first, moved", {"new@c.test": ("first", "one"), "copy@b.test": ("", "")}),
    ],
    ids=["the first hold wins, copies leave", "a part is held", "the copy of a redirect is held"],
)
async def test_what_is_held(relay, subject, expected) -> None:
    await accepted(relay, subject, "x@a.test", "x@b.test")
    assert entries(relay) == expected


@pytest.mark.parametrize("origin", [TRUSTED, PICKUP], ids=["smtp", "pickup"])
async def test_one_notice_for_each_rule(relay, origin) -> None:
    await accepted(relay, "first", "x@a.test", "y@a.test", origin=origin)
    (report,) = relay.spool.reports
    assert report.facts.envelope.reverse_path == ""
    assert [to.path.address for to in report.entries[0].recipients] == [ALICE]
    (message,) = relay.spool.accepted
    assert [one.detail.kind for one in message.events[1:]] == ["held"]
    assert message.events[1].detail.recipients == ["x@a.test", "y@a.test"]


async def test_a_notice_is_about_the_recipient_that_the_sender_knows(relay) -> None:
    await accepted(relay, "first, moved", "x@a.test")
    (message,) = relay.spool.accepted
    assert message.events[1].detail.recipients == ["x@a.test"]


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
