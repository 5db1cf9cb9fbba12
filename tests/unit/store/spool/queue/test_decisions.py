"""What a queue command decides about the entries of one transaction, without a spool."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import Destination, NextHop
from relay.store.spool.queue_commands import CommandResult, QueueCommand
from relay.store.spool.shared.decisions import ChangeResult, decide
from relay.store.spool.shared.entries import EntryChanges, EntryFacts, LoadedEntries
from relay.store.spool.types import RESTORED_US, EntryExtra, Key, Selector, extra_text
from tests.support.operator import HOUR_US, command

NOW_US = 1000 * HOUR_US
END_US = NOW_US + 48 * HOUR_US
FIRST, SECOND = ("m", 1), ("m", 2)


def facts(extra: EntryExtra | None = None, **changes: Any) -> EntryFacts:
    extra = extra or EntryExtra()
    values = {
        "state": RecipientState.QUEUED, "is_claimed": False, "next_hop": "mx:a.test",
        "retry_us": NOW_US, "due_us": NOW_US, "warn_us": None, "content_id": 1, "attempts": 0,
        "expires_us": extra.expires_us or END_US, "epoch": 3, "extra_text": extra_text(extra),
        "extra": extra, "reverse_path": "s@a.test", "ends_alone": bool(extra.expires_us),
    }  # fmt: skip
    return EntryFacts(**values | changes)


def decided(
    order: QueueCommand,
    entries: Mapping[Key, EntryFacts],
    *,
    taken: Sequence[Key] = (),
    planned: Mapping[Key, int | None] | None = None,
    **more: Any,
) -> tuple[ChangeResult, EntryChanges]:
    return decide(
        LoadedEntries(entries, **more), order, list(entries), taken=taken,
        now_us=NOW_US, at_us=NOW_US, planned=planned or {},
    )  # fmt: skip


def to_domains(address: str, _sender: str) -> Destination:
    return Destination(NextHop.parse(f"mx:{address.partition('@')[2]}"))


def test_entries_that_are_split_get_numbers_one_after_the_other() -> None:
    people = {FIRST: [(1, "x@b.test"), (2, "y@c.test")], SECOND: [(3, "x@b.test"), (4, "z@a.test")]}
    result, changes = decided(
        command("reroute", to=to_domains), dict.fromkeys((FIRST, SECOND), facts()),
        recipients=people, last_numbers={"m": (7, 9)},
    )  # fmt: skip
    assert result.made == {FIRST: [("m", 8)], SECOND: [("m", 9)]}
    assert changes.next_hops == [("mx:b.test", *FIRST)]  # the second keeps a recipient
    assert changes.copies == [(8, "mx:c.test", 0, *FIRST), (9, "mx:b.test", 0, *SECOND)]
    assert changes.moved == [(8, *FIRST, 2), (9, *SECOND, 3)]
    assert list(changes.waiting) == [FIRST, ("m", 8), ("m", 9)]
    assert list(changes.events) == ["m"]


def test_a_message_that_is_restored_gets_its_end_from_its_first_entry() -> None:
    hold = command("hold", Selector(all=True), backed_up_us=NOW_US - HOUR_US)
    own = facts(EntryExtra(expires_us=NOW_US))
    _, changes = decided(hold, {FIRST: facts(), SECOND: facts(), ("m", 3): own})
    end_us = RESTORED_US + 49 * HOUR_US
    assert changes.expiries == {"m": end_us}
    assert [one[2] for one in changes.waiting.values()] == [end_us, end_us, RESTORED_US + HOUR_US]
    assert f'"expires_us":{RESTORED_US + HOUR_US}' in changes.extras["m", 3]


def test_a_message_that_is_let_go_expires_after_the_longest_time_that_was_left() -> None:
    left = (49 * HOUR_US, 10 * HOUR_US)
    entries = {
        ("m", number): facts(
            state=RecipientState.HELD, retry_us=None, due_us=RESTORED_US + left_us,
            expires_us=RESTORED_US + left[0],
        )
        for number, left_us in enumerate(left, 1)
    }  # fmt: skip
    _, changes = decided(command("release"), entries)
    assert changes.expiries == {"m": NOW_US + left[0]}


def test_a_claim_that_was_withdrawn_for_nothing_is_put_back() -> None:
    entries = {FIRST: facts(is_claimed=True), SECOND: facts(is_claimed=True)}
    result, changes = decided(command("release"), entries, taken=[FIRST])
    assert result.results == {
        FIRST: (CommandResult.UNCHANGED, "it is not held"), SECOND: (CommandResult.IN_FLIGHT, "")
    }  # fmt: skip
    assert changes.put_back == [FIRST]
    assert list(result.next_hops) == [NextHop.parse("mx:a.test")]
    assert not changes.events


@pytest.mark.parametrize(
    ("planned", "ended"),
    [
        ({FIRST: 3, SECOND: 3}, [FIRST, SECOND]),
        ({FIRST: 3, SECOND: None}, [FIRST, SECOND]),  # one that is damaged
        ({FIRST: 3, SECOND: 2}, []),  # it was claimed and released since
        ({FIRST: 3, SECOND: 3, ("m", 4): 3}, []),  # it has ended since
        ({FIRST: 3}, [FIRST]),  # it is new
    ],
)
def test_a_message_is_cancelled_only_as_its_reports_know_it(planned, ended) -> None:
    entries = dict.fromkeys((FIRST, SECOND), facts())
    order = command("cancel", bounce=True)
    result, changes = decided(order, entries, planned=planned, to_be_planned=list(entries))
    assert changes.ended == list(result.ended) == ended
    passed_over = [
        key for key, (one, _) in result.results.items() if one is CommandResult.IN_FLIGHT
    ]
    assert passed_over == [key for key in entries if key not in ended]
