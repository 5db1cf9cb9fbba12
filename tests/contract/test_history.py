"""What a spool remembers of its messages: search, pages, rows, counts and addresses."""

import pytest
from msgspec.structs import replace

from relay.base.clock import Ids
from relay.base.message.envelope import ForwardPath, MessageExtra, Source
from relay.store.journeys.events import Step
from relay.store.journeys.message_list import (
    ALL_MAILBOXES,
    ListedRecipient,
    MessageSearch,
    position_of,
)
from relay.store.spool.types import ClaimResult, EntrySchedule, NewRecipient
from tests.support.events import an_event
from tests.support.operator import LATER, OK

ALICE, BOB = "alice@example.test", "bob@example.test"
ALL = MessageSearch()


@pytest.fixture
def add(spool, make, clock):
    """Accept a message one second after the one before it; return its queue id."""

    async def add(*addresses: str, **changes) -> str:
        clock.advance(1)
        event = an_event(Step.POLICY_AND_ROUTING, clock.time_us())
        hops = {"mx:a.test": addresses or ["x@a.test"]}
        return (await spool.accept(make(hops, events=(event,), **changes))).queue_id

    return add


@pytest.fixture
async def messages(spool, add):
    """Return the queue ids of three messages, oldest first, and of a report."""
    first = await add("dan@a.test", "carol@b.test", subject="Invoice [1]")
    second = await add("Dan@A.test", subject="Invoice 2", account=BOB, reverse_path=BOB)
    third = await add(subject="Hello", reverse_path="")
    report = await add(
        "alice@example.test", source=Source.REPORT, subject="Hello", reverse_path="", account=""
    )
    return [first, second, third, report]


async def find(spool, wanted: MessageSearch, account: str | None, limit: int):
    page = await spool.find_page(wanted, account=account, before=None, limit=limit)
    assert page.reached is None
    return page.messages


async def test_messages_are_found_by_conditions_newest_first(spool, messages) -> None:
    for wanted, account, numbers in [
        ({}, None, [3, 2, 1, 0]),
        ({"kind": "mail"}, None, [2, 1, 0]),
        ({"kind": "report"}, None, [3]),
        ({"kind": "report", "subject": "invoice*"}, None, []),
        ({}, ALICE, [2, 0]),
        ({}, "nobody@example.test", []),
        ({"subject": "invoice *"}, None, [1, 0]),
        ({"subject": "invoice [1]"}, None, [0]),
        ({"sender": "BOB@*"}, None, [1]),
        ({"sender": "<>"}, None, [3, 2]),
        ({"to": "DAN@a.test"}, None, [1, 0]),
        ({"to": "dan@?.test", "subject": "invoice 2"}, None, [1]),
        ({"to": "*@b.test"}, BOB, []),
        ({"state": "queued"}, None, [3, 2, 1, 0]),
        ({"state": "final"}, None, []),
    ]:
        found = await find(spool, MessageSearch(**wanted), account, 10)
        assert [one.queue_id for one in found] == [messages[n] for n in numbers], wanted
    assert [one.queue_id for one in await find(spool, ALL, None, 3)] == messages[:0:-1]


async def test_messages_are_found_by_client_login_and_time(spool, add, clock) -> None:
    first = await add(client="printer [192.0.2.7]", account="")
    ended_us = clock.time_us() + 1
    second = await add(client="[192.0.2.7] [192.0.2.70]", account=BOB)
    clock.advance(1)
    by_http = await add(client="", account=BOB, submission_id=f"{Ids(clock).new()}.1")
    local = await add(client="localhost", account="")
    by_sender = MessageExtra(
        by_sender=True
    )  # a trusted client that named the address of an account
    await add(client="fax", account=BOB, extra=by_sender)
    await add(client="", account=BOB, source=Source.REPORT)
    for wanted, expected in [
        ({"client": "192.0.2.7"}, [first]),
        ({"client": "192.0.2.7*"}, [second, first]),
        ({"client": "PRINTER"}, [first]),
        ({"client": "localhost"}, [local]),
        ({"client": "192.0.2"}, []),
        ({"login": "Bob@*"}, [by_http, second]),
        ({"login": "bob@*", "client": "*"}, [by_http, second]),
        ({"login": "bob@*", "client": "192.*"}, [second]),
        ({"until_us": ended_us}, [first]),
        ({"until_us": ended_us - 1000, "from_us": 1}, []),
        ({"from_us": ended_us, "client": "192.*"}, [second]),
    ]:
        found = await find(spool, MessageSearch(**wanted), None, 10)
        assert [one.queue_id for one in found] == expected, wanted
    submissions = frozenset([(await spool.journey(by_http)).submission_id])
    wanted = MessageSearch(client="192.0.2.7", submissions=submissions)
    assert [one.queue_id for one in await find(spool, wanted, None, 10)] == [by_http, first]


async def test_a_state_is_that_of_the_recipients_that_match(spool, make, clock) -> None:
    (claim,) = (await spool.accept(make({"mx:a.test": ["x@a.test", "y@b.test"]}))).claims
    now_us = clock.queue_us()
    await spool.record(ClaimResult(claim, 5, {1: OK, 2: LATER}, EntrySchedule(now_us, now_us)))
    for wanted, is_found in [
        ({"state": "relayed"}, True),
        ({"state": "deferred"}, True),
        ({"state": "failed"}, False),
        ({"state": "final"}, False),
        ({"state": "final", "to": "x@*"}, True),
        ({"state": "relayed", "to": "y@*"}, False),
    ]:
        found = await find(spool, MessageSearch(**wanted), None, 10)
        assert bool(found) is is_found, wanted


async def test_recipients_that_policy_added_are_found_for_operators_only(spool, make) -> None:
    await spool.accept(with_added(make(), "audit@b.test"))
    assert not await find(spool, MessageSearch(to="audit@*"), None, 10)
    for wanted in ({"to": "audit@*"}, {"mailbox": "audit@b.test"}):
        assert len(await find(spool, MessageSearch(added=True, **wanted), None, 10)) == 1


async def test_rows_and_journeys_have_added_recipients_where_operators_ask(spool, make) -> None:
    queue_id = (await spool.accept(with_added(make(), "audit@b.test"))).queue_id
    (row,) = await spool.summaries([queue_id], account=None, added=True)
    journey = await spool.journey(queue_id, added=True)
    for found in (row.added, journey.added):
        assert [(one.address, one.added_by) for one in found] == [("audit@b.test", "copy to audit")]
    assert "audit" not in f"{row.recipients} {journey.recipients}"
    (row,) = await spool.summaries([queue_id], account=None)
    assert "audit" not in f"{row} {await spool.journey(queue_id)}"


def with_added(message, address: str):
    """Return the message with one recipient more, as a rule adds it."""
    entry = message.entries[0]
    added = NewRecipient(ForwardPath(address), added_by="copy to audit")
    return replace(message, entries=(replace(entry, recipients=(*entry.recipients, added)),))


async def test_what_is_accepted_behind_a_sequence_is_found_but_submissions(spool, add) -> None:
    await add()
    after = await spool.last_event()
    submitted = await add(submission_id="06gzy78nhccc7r9c.1")
    second, third = await add(), await add()
    for is_settled in (True, False):
        found = await spool.accepted_after(after, limit=10, is_settled=is_settled)
        assert [one.queue_id for _, one in found.events if one] == [second, third]
        assert found.is_complete
        some = await spool.accepted_after(after, limit=1, is_settled=is_settled)
        assert ([one.queue_id for _, one in some.events], some.is_complete) == ([second], False)
        found = await spool.accepted_after(after, limit=10, is_settled=is_settled, own=True)
        assert [one.queue_id for _, one in found.events if one] == [submitted, second, third]
    end, _ = found.events[-1]
    assert list((await spool.accepted_after(end, limit=10, is_settled=False)).events) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
async def test_pages_continue_after_a_place_and_a_late_submission_keeps_its_own(
    spool, add, clock, limit
) -> None:
    """Its place is that of its submission, although it was accepted after all others."""
    oldest = await add()
    clock.advance(1)
    submission_id = f"{Ids(clock).new()}.1"
    newest = [await add() for _ in range(4)]
    late = await add(submission_id=submission_id)
    place, seen = None, []
    while True:
        page = await spool.find_page(ALL, account=None, before=place, limit=limit)
        seen += [one.queue_id for one in page.messages]
        if len(page.messages) < limit:
            break
        place = position_of(page.messages[-1].queue_id, page.messages[-1].submission_id)
    assert page.reached is None
    assert seen == [*reversed(newest), late, oldest]


async def test_a_row_shows_what_decides_the_state_and_what_is_next(spool, make, clock) -> None:
    addresses = [f"r{number}@a.test" for number in range(1, 31)]
    message = make(
        {"mx:a.test": addresses},
        subject="Hello",
        message_id="<m@x>",
        submission_id="0123456789abcdef.1",
    )
    (claim,) = (await spool.accept(with_added(message, "audit@b.test"))).claims
    next_us = clock.queue_us() + 60_000_000
    outcomes = dict.fromkeys(range(1, 30), OK) | {30: LATER, 31: LATER}
    await spool.record(ClaimResult(claim, 5, outcomes, EntrySchedule(next_us, next_us)))
    gone, (other,) = "0" * 16, (await spool.accept(make())).claims
    rows = await spool.summaries([other.message.id, gone, message.facts.id], account=None)
    assert [row.id for row in rows] == [other.message.id, message.facts.id]
    assert (rows[0].submission_id, rows[0].state, rows[0].next_attempt_us) == (None, "queued", None)
    row = rows[1]
    assert row.position == position_of(message.facts.id, "0123456789abcdef.1")
    assert (row.submission_id, row.message_id) == ("0123456789abcdef.1", "<m@x>")
    assert (row.sender, row.subject, row.state) == (ALICE, "Hello", "deferred")
    assert (row.status, row.reply) == ("4.7.1", "451 4.7.1 greylisted")
    assert (row.recipient_count, row.next_attempt_us) == (30, next_us)
    assert row.size_bytes == message.facts.size
    assert list(row.recipients) == [
        ListedRecipient(number, address, "relayed")
        for number, address in enumerate(addresses[:20], start=1)
    ]


async def test_rows_are_those_of_an_account(spool, make) -> None:
    (claim,) = (await spool.accept(make(account=BOB))).claims
    name = claim.message.id
    assert [row.id for row in await spool.summaries([name], account=BOB)] == [name]
    assert await spool.summaries([name], account=ALICE) == []


async def test_accepted_submissions_are_those_that_the_spool_has(spool, make) -> None:
    await spool.accept(make(submission_id="0123456789abcdef.1"))
    await spool.accept(make())
    asked = ["0123456789abcdef.1", "0123456789abcdef.2", ""]
    assert list(await spool.accepted_submissions(asked)) == ["0123456789abcdef.1"]


async def test_addresses_are_those_of_the_newest_messages_with_those_here_first(
    spool, add, make, clock
) -> None:
    await add("old@a.test", "old@a.test")
    clock.advance(1)
    await spool.accept(with_added(make({"local": ["Often@a.test"]}), "audit@b.test"))
    await add("often@a.test", "once@a.test")
    await add("OFTEN@a.test", account=BOB, reverse_path="")
    await add("report@a.test", source=Source.REPORT)
    found = await spool.recent_addresses(account=None, limit=4)
    assert [one.lower() for one in found] == [ALICE, "report@a.test", "often@a.test", "once@a.test"]
    assert list(await spool.recent_addresses(account=BOB, limit=3)) == ["OFTEN@a.test"]


async def test_an_empty_spool_has_no_history(spool) -> None:
    assert await spool.journey("0" * 16) is None
    assert list(await spool.find_queue_ids("last", account=None, limit=5)) == []
    assert list(await spool.recent_addresses(account=None, limit=5)) == []
    assert await spool.count_states(account=None, limit=5) == (0, {})
    found = await spool.events_after(0, limit=5)
    assert (found.events, found.removed_to, found.is_complete) == ([], 0, True)
    assert (await spool.events_after(await spool.last_event(), limit=5)).events == []


async def test_a_message_is_found_by_the_graph_id_of_a_copy(spool, make) -> None:
    message = make({"local": [BOB, "carol@example.test"]})
    (claim,) = (await spool.accept(message)).claims
    people = [{"number": 1, "address": BOB}, {"number": 2, "address": "carol@example.test"}]
    said = {"outcome": "delivered", "status": "2.1.5", "reply": "250 2.1.5 delivered"}
    copy = "lmbxq3tu5vw7yz2a"
    detail = {"entry": 1, "recipients": [people[0] | said | {"graph_id": copy}, people[1] | said]}
    await spool.record(
        ClaimResult(claim, 5, {1: OK, 2: OK}, events=(an_event(Step.DELIVERY, 5, detail),))
    )
    journey = await spool.journey(message.facts.id)
    assert [one.graph_id for one in journey.recipients] == [copy, None]
    for key, account, found in [
        (copy, None, [message.facts.id]),
        (copy, message.facts.account, [message.facts.id]),
        (copy, "nobody@example.test", []),
        (copy[:-1], None, []),
        ("l" * 16, None, []),
    ]:
        assert await spool.find_queue_ids(key, account=account, limit=10) == found, key


async def test_size_and_time_bound_what_is_found(spool, messages, add, clock) -> None:
    began_us = clock.time_us() + 1_000_000
    later = await add(size=5000)
    for wanted, expected in [
        ({"larger_than_bytes": 4999}, [later]),
        ({"larger_than_bytes": 5000}, []),
        ({"from_us": began_us}, [later]),
        ({"from_us": began_us + 1000}, []),
        ({"from_us": began_us - 2_000_000}, [later, messages[3], messages[2]]),
    ]:
        found = await find(spool, MessageSearch(**wanted), None, 10)
        assert [one.queue_id for one in found if one.queue_id in (later, *messages)] == expected


async def test_words_and_mailboxes_decide_in_every_search(spool, messages) -> None:
    for wanted, numbers in [
        ({"words": ("invoice", "carol@")}, [0]),
        ({"words": ("nobody",)}, []),
        ({"mailbox": "dan@A.TEST"}, [1, 0]),
        ({"mailbox": BOB}, [1]),
        ({"mailbox": "dan@a"}, []),
    ]:
        found = await find(spool, MessageSearch(**wanted), None, 10)
        assert [one.queue_id for one in found] == [messages[n] for n in numbers], wanted


async def test_a_search_of_contents_returns_what_is_needed_to_check_them(spool, messages) -> None:
    wanted = MessageSearch(words=("invoice", "giraffe"), reader=ALL_MAILBOXES, mailbox="dan@a.test")
    second, first = await find(spool, wanted, None, 10)
    assert [second.words_left, first.words_left] == [("giraffe",), ("giraffe",)]
    assert (first.account, second.account) == (ALICE, BOB)
    assert [one[1:] for one in first.recipients] == [
        ("dan@a.test", "queued"),
        ("carol@b.test", "queued"),
    ]
    wanted = MessageSearch(has_attachment=True, words=("hello",), kind="mail")
    [flag, *_] = await find(spool, wanted, None, 10)
    assert (flag.queue_id, flag.words_left) == (messages[2], ())
    assert len(flag.recipients) == 1


async def test_contents_are_read_until_no_entry_needs_them(spool, make) -> None:
    messages = [
        make({"mx:a.test": ["x@a.test"]}, content=b"Subject: %d\r\n\r\n" % n) for n in range(3)
    ]
    claims = [(await spool.accept(one)).claims[0] for one in messages]
    ids = [one.facts.id for one in messages]
    found = await spool.read_contents([*ids, "0" * 16])
    assert {one: found[one] for one in ids} == {
        one: b"Subject: %d\r\n\r\n" % n for n, one in enumerate(ids)
    }
    await spool.record(ClaimResult(claims[0], 5, {1: OK}))
    assert set(await spool.read_contents(ids)) == set(ids[1:])
    assert await spool.read_contents([]) == {}


async def test_what_is_far_behind_newer_messages_is_found(spool, add) -> None:
    """More messages than are read at once, on either side of one that matches."""
    older = [await add() for _ in range(3)]
    found = [await add("Eve@far.test", size=0) for _ in range(2)]
    newer = [await add() for _ in range(230)]
    assert await spool.find_queue_ids("eve@FAR.test", account=None, limit=5) == found[::-1]
    assert await spool.find_queue_ids("eve@far.test", account=None, limit=1) == found[1:]
    last = await spool.find_queue_ids("last", account=None, limit=234)
    assert last == [*newer[::-1], *found[::-1], *older[::-1]][:234]
    for limit, expected in ((5, found[::-1]), (1, found[1:])):
        rows = await find(spool, MessageSearch(to="eve@far.test"), None, limit)
        assert [one.queue_id for one in rows] == expected
    assert not await find(spool, MessageSearch(to="eve@far.test", larger_than_bytes=1), None, 5)
    rows = await spool.summaries([*found, "0" * 16, older[0]], account=None)
    addresses = ["Eve@far.test", "Eve@far.test", "x@a.test"]
    assert [one.id for one in rows] == [*found, older[0]]
    assert [one.recipients[0].address for one in rows] == addresses
