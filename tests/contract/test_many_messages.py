"""What lists, searches and counts say of generated messages is what plain Python computes."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest
from msgspec import Struct

from relay.base.message.envelope import Source
from relay.base.message.lifecycle import RecipientState, message_state
from relay.base.message.outcome import Evidence, Failed
from relay.store.journeys.message_list import MessageSearch, position_of
from relay.store.spool.types import ClaimResult, EntrySchedule, NewMessage, Selector
from tests.support.long_tests import long
from tests.support.operator import ALL, HOUR_US, LATER, OK, command

AT_ONCE = 250
WORDS = ("Invoice", "invoice", "Grüße", "100% off", "a_b", "report", "")
ACCOUNTS = ("alice@example.test", "bob@example.test", "carol@example.test", "")
SENDERS = (*ACCOUNTS, "Alice@Example.test", "list+1@b.test")
PEOPLE = ("dan", "Dan", "eve", "x_y", "müller")
HOPS = ("mx:a.test", "mx:b.test", "mx:c.test", "smtp://[::1]:25", "local")
NO = Failed(Evidence("5.1.1", "550 5.1.1 no"))
LIVE = ("queued", "deferred", "held", "captured")


class Generated(Struct):
    """A message as it should be found."""

    message: NewMessage
    fates: list[str]  # of the recipients, in the order of their numbers

    @property
    def id(self) -> str:
        return self.message.facts.id

    @property
    def entries(self) -> Iterator[tuple[int, str, str]]:
        """Yield number, next hop and state of each live entry."""
        fates = iter(self.fates)
        for number, entry in enumerate(self.message.entries, start=1):
            states = {next(fates) for _ in entry.recipients} & set(LIVE)
            if states:
                yield number, entry.next_hop.key, states.pop()

    @property
    def addresses(self) -> list[str]:
        return [one.path.address for entry in self.message.entries for one in entry.recipients]


def generate(make, clock, rng: random.Random, count: int) -> list[Generated]:
    """Return messages, the oldest first, in all states and with reports among them."""
    generated = []
    for _ in range(count):
        clock.now_us += rng.choice((1000, 20_000, 3_000_000))
        hops = {
            hop: [
                f"{rng.choice(PEOPLE)}@{rng.choice('abc')}.test"
                for _ in range(rng.choice((1, 1, 2)))
            ]
            for hop in rng.sample(HOPS, rng.choice((1, 1, 1, 2)))
        }
        if rng.random() < 0.05:
            hops = {"capture": ["kept@c.test"]}
        message = make(
            hops,
            subject=f"{rng.choice(WORDS)} {rng.choice(WORDS)}",
            account=rng.choice(ACCOUNTS),
            reverse_path=rng.choice(SENDERS),
            content=b"Subject: s\r\n\r\n" + b"x" * rng.randrange(900),
            source=Source.REPORT if rng.random() < 0.05 else Source.SMTP,
        )
        fates = []
        for entry in message.entries:
            kind = rng.choice(("queued", "deferred", "final", "final", "final"))
            is_captured = entry.next_hop.key == "capture"
            for number in range(len(entry.recipients)):
                final = rng.choice(("relayed", "failed"))
                fate = final if kind == "final" or (kind == "deferred" and number) else kind
                fates.append("captured" if is_captured else fate)
        generated.append(Generated(message, fates))
    return generated


async def put(spool, clock, one: Generated) -> None:
    """Accept a message, and record its entries but those that wait."""
    accepted = await spool.accept(one.message)
    fates = iter(one.fates)
    for claim in accepted.claims:
        outcome = {"relayed": OK, "failed": NO, "deferred": LATER}
        its_own = {each.id: next(fates) for each in claim.recipients}
        if "queued" in its_own.values():
            await spool.release([claim])
            continue
        later_us = clock.queue_us() + HOUR_US
        waits = EntrySchedule(later_us, later_us) if "deferred" in its_own.values() else None
        outcomes = {number: outcome[fate] for number, fate in its_own.items()}
        recorded, _ = await spool.record(ClaimResult(claim, 5, outcomes, waits))
        assert recorded


@pytest.fixture(params=[2000, pytest.param(10_000, marks=long)])
async def generated(spool, make, clock, request) -> list[Generated]:
    """Messages that the spool has, the newest first."""
    rng = random.Random(30)
    messages = generate(make, clock, rng, request.param)
    for begin in range(0, len(messages), AT_ONCE):
        await asyncio.gather(*(put(spool, clock, one) for one in messages[begin : begin + AT_ONCE]))
    waiting = [one for one in messages if {state for *_, state in one.entries} == {"deferred"}]
    chosen = rng.sample(waiting, len(waiting) // 4)
    for begin in range(0, len(chosen), AT_ONCE):
        ids = tuple(one.id for one in chosen[begin : begin + AT_ONCE])
        await spool.queue_admin.execute(command("hold", Selector(ids=ids)))
    for one in chosen:
        one.fates = ["held" if fate == "deferred" else fate for fate in one.fates]
    return messages[::-1]


SEARCHES: Sequence[tuple[dict[str, str], Callable[[Generated], bool]]] = [
    ({}, lambda _: True),
    ({"kind": "mail"}, lambda one: one.message.facts.source is Source.SMTP),
    ({"kind": "report"}, lambda one: one.message.facts.source is Source.REPORT),
    ({"subject": "*INVOICE*"}, lambda one: "invoice" in one.message.facts.subject.lower()),
    ({"subject": "100% *"}, lambda one: one.message.facts.subject.startswith("100% ")),
    ({"sender": "alice@*"}, lambda one: sender(one).lower().startswith("alice@")),
    ({"to": "x?y@a.test"}, lambda one: "x_y@a.test" in one.addresses),
    ({"state": "deferred"}, lambda one: "deferred" in one.fates),
    ({"state": "held"}, lambda one: "held" in one.fates),
    ({"state": "captured"}, lambda one: "captured" in one.fates),
    ({"state": "final"}, lambda one: not set(one.fates) & set(LIVE)),
    (
        {"subject": "report*", "sender": "bob@*"},
        lambda one: (
            one.message.facts.subject.startswith("report") and sender(one).startswith("bob@")
        ),
    ),
]


def sender(one: Generated) -> str:
    return one.message.facts.envelope.reverse_path


def listed(messages: Iterable[Generated], account: str | None = None) -> list[Generated]:
    return [one for one in messages if account in (None, one.message.facts.account)]


async def test_generated_messages(spool, generated: list[Generated]) -> None:
    """One load of the spool is for all of it."""
    for account in (None, ACCOUNTS[0]):
        own = listed(generated, account)
        for conditions, holds in SEARCHES:
            expected = [one.id for one in own if holds(one)]
            wanted = MessageSearch(**conditions)
            assert await pages(spool, wanted, account) == expected, conditions
        for limit in (500, len(generated)):
            await check_counts(spool, own[:limit], account, limit)
    await check_summaries(spool, generated)
    await check_queue(spool, generated)


async def pages(spool, wanted: MessageSearch, account: str | None) -> list[str]:
    seen: list[str] = []
    place = None
    while True:
        page = await spool.find_page(wanted, account=account, before=place, limit=397)
        assert page.reached is None
        seen += [one.queue_id for one in page.messages]
        if len(page.messages) < 397:
            return seen
        place = position_of(page.messages[-1].queue_id, page.messages[-1].submission_id)


async def check_counts(spool, newest: list[Generated], account: str | None, limit: int) -> None:
    states = Counter(state for one in newest for state in set(one.fates))
    states += Counter("report" for one in newest if one.message.facts.source is Source.REPORT)
    found = await spool.count_states(account=account, limit=limit)
    assert (found[0], dict(found[1])) == (len(newest), dict(states))
    used: dict[str, tuple[bool, str]] = {}  # whether it has an account, and its last message
    for one in newest:
        for each in filter(None, (sender(one), *one.addresses)):
            is_own, last = used.get(lower(each), (False, one.id))
            is_own = is_own or (each == sender(one) and one.message.facts.account != "")
            used[lower(each)] = is_own, last
    addresses = list(map(lower, await spool.recent_addresses(account=account, limit=limit)))
    assert len(set(addresses)) == len(addresses) == min(len(used), 2000)
    assert [used[one] for one in addresses] == sorted(used.values(), reverse=True)[:2000]


def lower(address: str) -> str:
    """As databases do: of ASCII only."""
    return "".join(one.lower() if one.isascii() else one for one in address)


async def check_summaries(spool, generated: list[Generated]) -> None:
    some = generated[::7]
    rows = await spool.summaries([one.id for one in some], account=None)
    assert len(rows) == len(some)
    for row, one in zip(rows, some, strict=True):
        facts = one.message.facts
        expected = [
            (number, address, state)
            for number, (address, state) in enumerate(
                zip(one.addresses, one.fates, strict=True), start=1
            )
        ]
        assert (row.id, row.sender, row.subject) == (one.id, sender(one), facts.subject)
        assert [(each.number, each.address, each.state) for each in row.recipients] == expected
        assert row.state == message_state([RecipientState(state) for state in one.fates])
        assert (row.recipient_count, row.size_bytes) == (len(expected), facts.size)
        assert (row.next_attempt_us is not None) == ("deferred" in one.fates)


async def check_queue(spool, generated: list[Generated]) -> None:
    """The entries that live, and what is counted of them."""
    oldest_first = generated[::-1]
    live = [(one.id, *entry) for one in oldest_first for entry in one.entries]
    for selector, holds in (
        (ALL, lambda _: True),
        (Selector(state="held"), lambda entry: entry[3] == "held"),
        (Selector(next_hop="mx:b.test"), lambda entry: entry[2] == "mx:b.test"),
    ):
        found: list[tuple[str, int, str, str]] = []
        while True:
            after = (found[-1][0], found[-1][1]) if found else ("", 0)
            some = await spool.queue_admin.list(selector, limit=300, after=after)
            found += [(one["id"], one["entry"], one["next_hop"], one["state"]) for one in some]
            if len(some) < 300:
                break
        assert found == [entry for entry in live if holds(entry)]
    states = Counter(state for *_, state in live)
    counts = await spool.counts()
    assert {state: number for state, number in counts.entries.items() if number} == dict(states)
    assert (counts.unaccounted, counts.oldest_us) == (
        0,
        next(one.message.facts.received_us for one in oldest_first if any(one.entries)),
    )
    figures = await spool.stats()
    assert figures["entries"] == {state: states[state] for state in LIVE}
    assert figures["recipients"] == sum(fate in LIVE for one in generated for fate in one.fates)
    hops = Counter(hop for _, _, hop, _ in live)
    assert {one["next_hop"]: one["entries"] for one in figures["next_hops"]} == dict(hops)
    assert figures["in_delivery"] == 0
