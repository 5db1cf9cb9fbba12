"""One document from two halves: what the store knows, what the spool knows."""

import json

import msgspec
import pytest
from msgspec.structs import replace

from relay.store.journeys.details import ReportSource
from relay.store.journeys.document import Journey, JourneyStep, SenderReport
from relay.store.journeys.events import Step, journey_step
from relay.store.journeys.journey import join
from relay.store.journeys.submission_log import SubmissionFacts, SubmissionRecord
from tests.support.journeys import made_journey
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

CLOCK = ManualClock()


def steps(*numbers: int) -> list[JourneyStep]:
    return [journey_step(number, CLOCK.time_us() + number, {}) for number in numbers]


def store_half(submission_id: str, *numbers: int, account: str = "alice@x") -> SubmissionRecord:
    facts = SubmissionFacts(
        submission_id, submission_id.partition(".")[0], account, "alice@x", "<m@x>", "s", ("bob@y",)
    )
    return SubmissionRecord(facts, steps(*numbers))


def spool_half(queue_id: str, submission_id: str | None, *numbers: int) -> Journey:
    recipient = {"address": "bob@y", "state": "relayed"}
    half = made_journey(
        id=queue_id,
        submission_id=submission_id,
        message_id="<m@x>",
        sender="alice@x",
        subject="s",
        state="relayed",
        recipients=[recipient],
    )
    return replace(half, steps=tuple(steps(*numbers)))


def test_steps_are_in_their_order_whichever_half_tells_them() -> None:
    found = join(store_half("g.1", 4, 1), spool_half("q", "g.1", 6, 5))
    assert found is not None
    assert [step.step for step in found.steps] == [1, 4, 5, 6]
    assert (found.id, found.graph_id, found.submission_id) == ("q", "g", "g.1")
    assert found.state == "relayed"


def test_attempts_stay_in_their_order_though_the_clock_went_back() -> None:
    half = spool_half("q", None, 5)
    day_us = 86_400_000_000
    tried = [
        journey_step(Step.DELIVERY, CLOCK.time_us() + later_us, {"attempt": number})
        for number, later_us in enumerate((0, day_us, -day_us))
    ]
    found = join(None, replace(half, steps=(*half.steps, *tried)))
    assert found is not None
    assert [step.detail.get("attempt") for step in found.steps[2:]] == [0, 1, 2]


@pytest.mark.parametrize("node", [{}, {"node": "one"}], ids=["file", "server"])
def test_mail_by_smtp_has_step_4_from_its_acceptance(node: dict[str, str]) -> None:
    half = spool_half("q", None, 5, 6)
    half.steps[0].detail.update({"client": {}, **node})
    found = join(None, half)
    assert found is not None
    assert [step.step for step in found.steps] == [4, 5, 6]
    accepted, routed, _ = found.steps
    assert (accepted.name, accepted.at) == ("accepted", routed.at)
    assert accepted.detail == {"queue_id": "q", **node}


@pytest.mark.parametrize(
    ("submission_id", "detail"), [("g.1", {}), (None, {"about": "q0"})], ids=["draft", "report"]
)
def test_no_client_got_a_250_for_a_draft_or_a_report(submission_id, detail) -> None:
    half = spool_half("q", submission_id, 5)
    half.steps[0].detail.update(detail)
    found = join(None, half)
    assert found is not None
    assert [step.step for step in found.steps] == [5]


def test_history_of_the_store_that_is_gone_leaves_the_graph_id() -> None:
    found = join(None, spool_half("q", "g.1", 5))
    assert found is not None
    assert found.graph_id == "g"
    assert join(None, None) is None


DUE = "2027-01-01T00:00:00.000000Z"


@each_row(
    "numbers, noted, state, recipient",
    [
        ((1, 2), {}, "converting", ("queued", "", None)),
        ((1, 2), {"deferred_until": DUE}, "scheduled", ("queued", "", DUE)),
        (
            (1, 2),
            {"deferred_until": DUE, "cancelled": DUE, "reason": "why"},
            "cancelled",
            ("cancelled", "cancelled: why", None),
        ),
        (
            (1, 2, 3),
            {"deferred_until": DUE, "cancelled": DUE, "reason": "too late"},
            "converting",
            ("queued", "", None),
        ),
        ((1, 2, 3, 7), {"deferred_until": DUE}, "failed", ("failed", "", None)),
    ],
)
def test_before_step_4_a_message_has_a_state_of_its_own(numbers, noted, state, recipient):
    half = store_half("a.1", *numbers)
    half.steps[1].detail.update(noted)
    told = join(half, None)
    assert told.state == state
    assert [(one.state, one.reply, one.next_attempt) for one in told.recipients] == [recipient]


def test_each_recipient_has_what_the_last_report_says_of_it() -> None:
    recipients = [
        {
            "address": "b@y",
            "state": "failed",
            "status": "5.1.1",
            "reply": "550 no",
            "attempts": [{"host": "mx.y", "outcome": "failed"}],
        },
        {"address": "c@y", "state": "relayed", "status": "2.0.0", "reply": "250 ok"},
    ]
    details = [
        {"to": "a@x", "kind": "failure", "recipients": ["b@y"]},
        {"to": "postmaster", "kind": "dead-letter", "recipients": ["c@y"]},
    ]
    told = [{"step": 7, "at": str(number), "detail": one} for number, one in enumerate(details)]
    found = join(None, made_journey(id="q1", recipients=recipients, steps=told))
    assert found.recipients[0].reported == SenderReport("failure", "5.1.1", "550 no", "mx.y", "0")
    assert found.recipients[1].reported is None


REMOTE = {
    "by": "remote",
    "kind": "failure",
    "recipients": ["b@y"],
    "status": "5.1.1",
    "reply": "550 no",
    "host": "mx.y",
    "source": {"client": "192.0.2.7", "reporting_mta": "mx.y"},
    "received": "r1",
}


def test_what_a_host_claims_is_shown_only_where_relay_has_reported_nothing() -> None:
    recipients = [{"address": "b@y", "state": "failed"}, {"address": "c@y", "state": "relayed"}]
    own = {"to": "a@x", "kind": "failure", "recipients": ["b@y"], "report_id": "r0"}
    later = REMOTE | {"recipients": ["c@y"], "kind": "read"}
    details = [own, REMOTE, REMOTE | {"recipients": ["c@y"]}, later]
    told = [{"step": 7, "at": str(number), "detail": one} for number, one in enumerate(details)]
    found = join(None, made_journey(id="q1", recipients=recipients, steps=told))
    first, second = (one.reported for one in found.recipients)
    assert (first.by, first.at, first.source) == ("relay", "0", None)
    source = ReportSource("192.0.2.7", "mx.y")
    assert second == SenderReport("read", "5.1.1", "550 no", "mx.y", "3", "remote", source)
    assert [one.detail for one in found.steps] == details
    assert [one.state for one in found.recipients] == ["failed", "relayed"]


def test_the_report_of_pickup_is_about_all_recipients() -> None:
    half = store_half("a.1", 1, 2, 3, 7)
    half.steps[3].detail.update({"to": "alice@x", "kind": "failure", "reply": "5.6.3 no"})
    (recipient,) = join(half, None).recipients
    assert (recipient.reported.kind, recipient.reported.reply) == ("failure", "5.6.3 no")


DOCUMENT = """\
{"id": "q1", "graph_id": null, "submission_id": null, "message_id": "<m@x>", "sender": "a@x", "subject": "s", "state": "failed", "client": {"address":
"", "helo": "", "account": "", "tls": ""}, "steps": [{"step": 7, "name": "report", "at": "t", "detail": {"to": "a@x"}}], "recipients": [{"address":
"b@y", "state": "failed", "reason": "mx.y replied 550 no", "next_attempt": null, "expires": null, "next_hop": "mx:y", "route": null, "status":
"5.1.1", "reply": "550 no", "attempts": [{"at": "t", "host": "h", "outcome": "failed", "status": "5.1.1", "reply": "550 no", "tls": "TLSv1.3",
"verified": "name", "policy": "route paid: verify", "durations": {"dns": 0.1, "connect": 0.5, "tls": 3.2, "total": 9.9}, "mx": [{"preference": 10,
"host": "h", "skipped": ""}], "mx_more": 0, "encoded": "8 bit", "provider": ""}], "reported": {"kind": "failure", "status": "5.1.1", "reply": "550
no", "host": "h", "at": "t", "by": "remote", "source": {"client": "192.0.2.7", "reporting_mta": "mx.y"}}, "graph_id": null}, {"address": "c@y",
"state": "redirected", "reason": null, "next_attempt": null, "expires": null, "next_hop": null, "route": null, "status": "", "reply": "",
"successors": ["d@y"], "attempts": [], "reported": null, "graph_id": "l1"}], "checks": null}
"""


def test_the_json_has_the_documented_fields_in_their_order() -> None:
    """A field that is not always there is left out: not null."""
    document = json.loads(DOCUMENT.replace("\n", " "))
    found = made_journey(**document)
    assert msgspec.json.encode(found) == msgspec.json.encode(document)
    assert msgspec.json.encode(replace(found, reached=False)) == msgspec.json.encode(
        document | {"reached": False}
    )
