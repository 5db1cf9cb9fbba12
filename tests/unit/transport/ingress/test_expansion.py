"""Aliases in step 5: who gets the message, with what parameters, and what the sender is told."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from relay.base.accounts.account import AliasTarget, Expansion
from relay.base.message.envelope import Envelope, ForwardPath, Notify
from relay.base.message.verdict import AddedRecipient
from relay.store.spool.types import NewMessage
from relay.transport.ingress.forwarding import EXPANDED_MAX, expand_recipients
from tests.support.ingress import Client, FakeAccounts, Relay
from tests.support.tables import each_row, rows_of
from tests.unit.transport.ingress.test_acceptance import Rules, accept, envelope

ALIASES = {
    "one": ("alice@example.test",),
    "away": ("x@b.test",),
    "team": ("alice@example.test", "Bob@example.test", "x@b.test", "y@b.test"),
    "both": ("team@example.test", "away@example.test", "z@c.test"),
    "bob": ("b@c.test",),  # who keeps a copy
    "gone": ("nobody@example.test", "x@refused.test"),
    "half": ("nobody@example.test", "alice@example.test"),
    "stuffed": ("full@example.test",),
}
NEVER, SUCCESS, FAILURE = (
    frozenset({one}) for one in (Notify.NEVER, Notify.SUCCESS, Notify.FAILURE)
)


def relay_with(**more) -> Relay:
    return Relay(accounts=FakeAccounts(**(ALIASES | more)))


def aliases_of(message: NewMessage) -> dict:
    return {
        one.path.address: (str(one.state), one.successors)
        for one in message.final_recipients
        if one.successors
    }


def copies_of(message: NewMessage) -> list[str]:
    """Next hop, the alias that the copy is by, and the addresses of each."""
    by = [f" by {one.extra.delivered_to}" * bool(one.extra.delivered_to) for one in message.entries]
    return [
        f"{entry.next_hop}{alias}: {', '.join(one.path.address for one in entry.recipients)}"
        for entry, alias in zip(message.entries, by, strict=True)
    ]


@each_row(
    "named, aliases, copies",
    rows_of(  # the mailbox is one more address; who names Bob and his alias sends him one copy
        """
        alice@example.test | none | local: alice@example.test
        One+tag@example.test | One+tag@example.test redirected alice@example.test | local: alice@example.test
        away@example.test | away@example.test redirected x@b.test | mx:b.test by away@example.test: x@b.test
        bob@example.test | bob@example.test expanded bob@example.test, b@c.test | local: bob@example.test; mx:c.test by bob@example.test: b@c.test
        team@example.test, X@b.test | team@example.test expanded alice@example.test, Bob@example.test, b@c.test, x@b.test, y@b.test | \
mx:b.test: X@b.test; local: alice@example.test, Bob@example.test; mx:c.test by bob@example.test: b@c.test; mx:b.test by team@example.test: y@b.test
        away@example.test, both@example.test, one@example.test | \
away@example.test redirected x@b.test; both@example.test expanded alice@example.test, Bob@example.test, b@c.test, x@b.test, y@b.test, z@c.test; one@example.test redirected alice@example.test | \
mx:b.test by away@example.test: x@b.test; local: alice@example.test, Bob@example.test; \
mx:c.test by bob@example.test: b@c.test; mx:b.test by team@example.test: y@b.test; mx:c.test by both@example.test: z@c.test
        """
    ),
)
async def test_each_address_gets_one_copy(named, aliases, copies):
    relay, named = relay_with(), named.split(", ")
    assert (await accept(relay, envelope(*named))).reply.startswith("250 ")
    (message,) = relay.spool.accepted
    found = aliases_of(message)
    told = [f"{one} {state} {', '.join(to)}" for one, (state, to) in found.items()]
    assert ("; ".join(told) or "none", "; ".join(copies_of(message))) == (aliases, copies)
    assert message.events[0].detail.aliases == list(found)
    numbers = {one.path.address: one.position for one in message.final_recipients}
    numbers |= {
        one.path.address: one.position for entry in message.entries for one in entry.recipients
    }
    addresses = {to for copy in copies_of(message) for to in copy.partition(": ")[2].split(", ")}
    shared = set(found) & addresses
    assert [numbers[one] for one in named if one not in shared] == [
        number for number, one in enumerate(named, 1) if one not in shared
    ]


def expansion(*addresses: str) -> Expansion:
    return Expansion(tuple(AliasTarget(one, ("list@here.test",)) for one in addresses))


@each_row(
    "path, count, expected",
    [
        (ForwardPath("L@here.test"), 1, ForwardPath("t0@b.test", orcpt="rfc822;L@here.test")),
        (
            ForwardPath("L@here.test", SUCCESS, "rfc822;O@x"),
            1,
            ForwardPath("t0@b.test", SUCCESS, "rfc822;O@x"),
        ),
        (ForwardPath("ü@here.test"), 1, ForwardPath("t0@b.test", orcpt="utf-8;ü@here.test")),
        (
            ForwardPath("L@here.test", SUCCESS),
            2,
            ForwardPath("t0@b.test", NEVER, "rfc822;L@here.test"),
        ),
        (
            ForwardPath("L@here.test", SUCCESS | FAILURE, "rfc822;O@x"),
            2,
            ForwardPath("t0@b.test", FAILURE, "rfc822;O@x"),
        ),
        (
            ForwardPath("L@here.test", NEVER),
            2,
            ForwardPath("t0@b.test", NEVER, "rfc822;L@here.test"),
        ),
        (ForwardPath("L@here.test"), 2, ForwardPath("t0@b.test", orcpt="rfc822;L@here.test")),
    ],
)
def test_what_an_alias_passes_on(path, count, expected):
    """RFC 3461 5.2.7.2 and 5.2.7.3."""
    to = expansion(*(f"t{number}@b.test" for number in range(count)))
    found = expand_recipients([path], lambda _: to)
    assert found.paths[0] == expected
    assert found.aliases[0].path == path  # reports about the alias have what the sender gave


@each_row(
    "notify, of_list, expected",
    [
        (NEVER, FAILURE, FAILURE),
        (FAILURE, NEVER, FAILURE),
        (NEVER, SUCCESS, NEVER),  # the list has the report of success
        (SUCCESS, FAILURE, SUCCESS | FAILURE),
        (SUCCESS, frozenset(), SUCCESS | FAILURE | {Notify.DELAY}),
        (FAILURE, frozenset(), frozenset()),
    ],
)
def test_who_is_named_beside_an_alias_gets_one_copy_with_the_reports_of_both(
    notify, of_list, expected
):
    paths = [ForwardPath("list@here.test", of_list), ForwardPath("T@b.test", notify, "rfc822;o@x")]
    to = {"list@here.test": expansion("t@b.test", "u@b.test")}
    found = expand_recipients(paths, to.get)
    assert found.paths[0] == ForwardPath("T@b.test", expected, "rfc822;o@x")
    assert (found.positions, found.forwarded_by) == ([2, 0], ["", "list@here.test"])


def test_aliases_beyond_the_limit_fail():
    many = expansion(*(f"t{number}@b.test" for number in range(EXPANDED_MAX)))
    to = {"a@here.test": many, "b@here.test": expansion("u@b.test"), "c@here.test": None}
    paths = [ForwardPath(one) for one in to]
    found = expand_recipients(paths, to.get)
    assert len(found.paths) == EXPANDED_MAX + 1
    assert [str(one.state) for one in found.aliases] == ["expanded", "failed"]
    assert found.aliases[1].reply.startswith("550 5.5.3 <b@here.test>: 1 address and those of")


async def test_a_list_has_one_report_where_success_is_asked_for():
    relay = relay_with()
    asked = ForwardPath("team@example.test", SUCCESS, "rfc822;Team@example.test")
    paths = (asked, ForwardPath("away@example.test", SUCCESS), ForwardPath("both@example.test"))
    await accept(relay, (Envelope("alice@example.test", ret="HDRS", envid="e 1"), paths))
    (message,), (report,) = relay.spool.accepted, relay.spool.reports
    text = bytes(report.contents[0]).decode()
    assert "Subject: Expanded: hello" in text
    assert "Original-Envelope-Id: e 1" in text
    blocks = [block for block in text.split("\r\n\r\n") if "Final-Recipient" in block]
    assert [block.split("\r\n") for block in blocks] == [
        [
            "Original-Recipient: rfc822;Team@example.test",
            "Final-Recipient: rfc822;team@example.test",
            "Action: expanded",
            "Status: 2.1.5",
            "Diagnostic-Code: smtp; 250 2.1.5 expanded to 5 addresses",
        ]
    ]
    assert [event.detail.kind for event in message.events[1:]] == ["expanded"]
    sent = {one.path.address: one.path for entry in message.entries for one in entry.recipients}
    assert sent["y@b.test"].notify == frozenset()  # `both` asks for it too
    assert sent["x@b.test"].notify == SUCCESS | FAILURE | {Notify.DELAY}  # all three
    assert sent["z@c.test"].orcpt == "rfc822;both@example.test"


async def test_rules_see_the_addresses_and_may_add_aliases():
    rules = Rules("x@b.test", additions=[AddedRecipient("both@example.test", "r")])
    relay = relay_with()
    relay.rules = rules
    await accept(relay, envelope("away@example.test", "alice@example.test"))
    assert rules.evaluated.recipients == ("alice@example.test", "x@b.test")
    (message,), (report,) = relay.spool.accepted, relay.spool.reports
    assert b"Original-Recipient: rfc822;away@example.test" in bytes(report.contents[0])
    assert copies_of(message) == [
        "local: alice@example.test, Bob@example.test",
        "mx:c.test by bob@example.test: b@c.test",
        "mx:b.test by team@example.test: x@b.test, y@b.test",
        "mx:c.test by both@example.test: z@c.test",
    ]
    added = [one for entry in message.entries for one in entry.recipients if one.added_by]
    assert {one.path.notify for one in added} == {NEVER}
    assert len(added) == 5


@pytest.mark.parametrize("named", ["away@example.test", "team@example.test"])
async def test_an_alias_is_rejected_if_all_that_it_leads_to_is(named):
    relay = relay_with(team=("x@b.test", "y@refused.test"))
    relay.rules = Rules("x@b.test")
    decision = await accept(relay, envelope(named))
    assert decision.reply.startswith("550 5.7.1 ")
    assert relay.spool.accepted == []


@pytest.fixture
async def begun() -> AsyncIterator[Callable[[Relay], Awaitable[Client]]]:
    """Open a session of a client that may not relay, up to MAIL."""
    servers = []

    async def begin(relay: Relay, *, trusted_networks: tuple[str, ...] = ()) -> Client:
        server = relay.server(trusted_networks=trusted_networks)
        servers.append(server)
        await server.start()
        client = await Client.connect(server.address)
        await client.reply()
        await client.say_all("EHLO client.test", "MAIL FROM:<someone@b.test>")
        return client

    yield begin
    for client in Client.opened:
        client.writer.close()
    Client.opened.clear()
    for server in servers:
        server.stop_listening()
        await server.drain(0)


@each_row(
    "recipient, reply",
    [
        ("x@b.test", "550 5.7.1 Relaying denied"),
        ("away@example.test", "250 2.1.5 Ok"),
        ("team+x@example.test", "250 2.1.5 Ok"),
        ("half@example.test", "250 2.1.5 Ok"),
        ("gone@example.test", "550 5.1.1 <gone@example.test>: no such user here"),
        ("stuffed@example.test", "452 4.2.2 <stuffed@example.test>: the mailbox is full"),
    ],
)
async def test_anybody_may_send_to_an_alias(begun, recipient, reply):
    """A client that may not relay, to addresses outside as well; the reply names none of them."""
    client = await begun(relay_with())
    assert (await client.say(f"RCPT TO:<{recipient}>")).startswith(reply)


HUGE = {
    f"huge{number}": tuple(f"h{number}-{one}@b.test" for one in range(1000))
    for number in range(1, EXPANDED_MAX // 1000 + 1)
}


async def test_the_aliases_of_a_message_lead_to_so_many_addresses(begun):
    client = await begun(relay_with(**HUGE))
    for alias in HUGE:
        assert (await client.say(f"RCPT TO:<{alias}@example.test>")) == "250 2.1.5 Ok"
    refused = "452 4.5.3 Too many recipients of aliases, send the rest in another transaction"
    assert await client.say("RCPT TO:<away@example.test>") == refused
    assert await client.say("RCPT TO:<alice@example.test>") == "250 2.1.5 Ok"
    await client.say_all("RSET", "MAIL FROM:<someone@b.test>")
    assert await client.say("RCPT TO:<away@example.test>") == "250 2.1.5 Ok"
