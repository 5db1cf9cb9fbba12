"""What a queue command decides about the entries of one transaction, without a spool."""

from msgspec.structs import replace

from relay.base.message.lifecycle import RecipientState
from relay.store.spool.queue_commands import CommandResult
from relay.store.spool.shared.decisions import decide
from relay.store.spool.shared.entries import EntryFacts, LoadedEntries
from tests.support.operator import HOUR_US, command
from tests.support.tables import each_row

NOW_US = 1000 * HOUR_US
END_US = NOW_US + 48 * HOUR_US
FIRST, SECOND = ("m", 1), ("m", 2)


EPOCH = 3
WAITING = EntryFacts(
    *(*FIRST, RecipientState.QUEUED, False, EPOCH, 1, 1, "mx:a.test", NOW_US, NOW_US, None, 1, 0),
    *("", 0, "", END_US),
)


@each_row(
    "planned, ended",
    [
        ({FIRST: 3, SECOND: 3}, [FIRST, SECOND]),
        ({FIRST: 3, SECOND: None}, [FIRST, SECOND]),  # one that is damaged
        ({FIRST: 3, SECOND: 2}, []),  # it was claimed and released since
        ({FIRST: 3, SECOND: 3, ("m", 4): 3}, []),  # it has ended since
        ({FIRST: 3}, [FIRST]),  # it is new
    ],
)
def test_a_message_is_cancelled_only_as_its_reports_know_it(planned, ended) -> None:
    entries = {FIRST: WAITING, SECOND: replace(WAITING, number=2)}
    result, changes = decide(
        LoadedEntries(entries, to_be_planned=list(entries)),
        command("cancel", bounce=True),
        list(entries),
        taken=(),
        now_us=NOW_US,
        at_us=NOW_US,
        planned=planned,
    )
    assert list(result.ended) == ended
    ordered = [key for key, (told, _) in result.results.items() if told is CommandResult.ORDERED]
    assert ordered == [key for key in entries if key not in ended]
    assert {changes.put[key].ordered for key in ordered} <= {"cancel"}
