"""Which selectors match a submission: each condition, and all recipients, count."""

from msgspec.structs import replace

from relay.front_door.api.submissions import is_selected
from relay.store.journeys.submission_log import SubmissionFacts
from relay.store.spool.types import Selector
from relay.submission.outbox.restored import ListedSubmission
from tests.support.tables import each_row

ID = "06h2hs1yar428zph"
FACTS = SubmissionFacts(
    f"{ID}.1",
    ID,
    "alice@example.test",
    "sales@example.test",
    "<i@h>",
    "A Prize",
    ("b@x.test", "c@y.test"),
)
SCHEDULED = ListedSubmission(FACTS, 1, 5, "", 0)
HELD = replace(SCHEDULED, reason="account", held_us=1)


@each_row(
    "selector, is_seen, of_scheduled, of_held",
    [
        (Selector(), False, True, True),
        (Selector(all=True), False, True, True),
        (Selector(state="scheduled", all=True), True, True, False),
        (Selector(state="scheduled", older_than_s=1e9), True, False, False),
        (Selector(state="held"), True, False, True),
        (Selector(ids=(ID,)), True, True, True),
        (Selector(ids=("x", f"{ID}.1-0")), True, True, True),
        (Selector(ids=("i@h",)), True, True, True),
        (Selector(ids=("06h2hs1yar428zpi",)), True, False, False),
        (Selector(login="ALICE@*", sender="<sales@*>", subject="*prize*"), True, True, True),
        (Selector(sender="<>"), True, False, False),
        (Selector(domain="?.test"), True, True, True),
        (Selector(domain="x.test"), True, False, False),
        (Selector(login="alice@*", next_hop="mx:*"), False, True, True),
        (Selector(login="alice@*", route="*"), False, True, True),
    ],
)
def test_which_submissions_a_selector_matches(selector, is_seen, of_scheduled, of_held) -> None:
    """Whether it sees submissions at all, and if it does, which."""
    assert selector.sees_submissions == is_seen
    now_us = 1_800_000_000_000_000
    matches = [is_selected(selector, one, now_us=now_us) for one in (SCHEDULED, HELD)]
    assert matches == [of_scheduled, of_held]
