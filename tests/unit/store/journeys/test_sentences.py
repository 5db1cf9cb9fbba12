"""What became of a message, in sentences: each state, who it is about, and when what happens."""

from typing import Any

from relay.base.clock import time_us_of
from relay.base.phrases import time_left
from relay.store.journeys.document import Journey
from relay.store.journeys.journey import join
from relay.store.journeys.sentences import answer, needed_reports
from relay.store.journeys.wording import describe
from tests.support.journeys import made_journey
from tests.support.tables import each_row

DAY = "2026-11-22T"
NOW = time_us_of(f"{DAY}20:12:00.000000Z")
LATER = {"next_attempt": f"{DAY}20:23:00.000000Z", "expires": "2026-11-23T20:02:00.000000Z"}
TRIED = {"host": "mx1.customer.example", "outcome": "deferred", "reply": "451 4.3.0 Try later."}
REPORT = {"to": "alice@example.test", "kind": "failure", "report_id": "r1"}


def attempt(minute: int, **more: str) -> dict[str, str]:
    return TRIED | {"at": f"{DAY}20:{minute:02}:00.000000Z"} | more


def recipient(state: str, address: str = "ann@customer.example", **more: Any) -> dict[str, Any]:
    return {"address": address, "state": state, **more}


def journey(*recipients: dict[str, Any], steps: Any = (), **more: Any) -> Journey:
    facts = {"id": "q1", "recipients": recipients, "steps": steps} | more
    found = join(None, made_journey(**facts))
    assert found is not None
    return found


def sentences(*recipients: dict[str, Any], steps: Any = (), **more: Any) -> list[str]:
    reports = more.pop("reports", {})
    found = answer(journey(*recipients, steps=steps, **more), now_us=NOW, reports=reports)
    return [one.text(NOW) for one in found]


def report(state: str) -> dict[str, Journey]:
    return {"r1": made_journey(id="r1", state=state)}


def test_deferred_says_what_the_host_replied_how_often_and_when_what_happens():
    tries = [attempt(1, reply="450 4.2.0 busy"), *(attempt(2 + 2 * n) for n in range(5))]
    assert sentences(recipient("deferred", attempts=tries, **LATER)) == [
        (
            "Deferred: mx1.customer.example replied 451 4.3.0 Try later (5 times since 20:02 UTC). "
            "Next attempt 20:23 UTC, in 11 min; gives up 2026-11-23 20:02 UTC."
        )
    ]
    assert journey(recipient("deferred", attempts=tries)).recipients[0].reason == (
        "mx1.customer.example replied 451 4.3.0 Try later"
    )


def rule(action: str, name: str = "no executables", mode: str = "enforce") -> dict[str, Any]:
    hit = {"rule": name, "mode": mode, "outcome": f"bcc,{action}"}
    return {"step": 5, "detail": {"rules": [hit | {"recipients": ["ann@customer.example"]}]}}


def test_failed_names_the_rule_and_the_place_of_the_report():
    steps = [rule("reject"), {"step": 7, "detail": REPORT}]
    refused = recipient("failed", reply="550 5.7.1 no programs")
    assert sentences(refused, steps=steps, reports=report("delivered")) == [
        (
            'Failed: rule "no executables" refused it (550 5.7.1). '
            "The report is in the Inbox of alice@example.test."
        )
    ]
    (audit,) = sentences(refused, steps=[rule("reject", mode="audit")])
    assert audit == "Failed: this relay replied 550 5.7.1 no programs. No report was sent."


@each_row(
    "state, ending",
    [
        ("captured", "The report is in the Inbox of alice@example.test."),
        ("relayed", "The report was sent to alice@example.test."),
        ("deferred", "The report to alice@example.test is deferred."),
        (None, "A report went to alice@example.test."),
    ],
)
def test_the_report_is_where_it_is(state, ending):
    refused = recipient("failed", attempts=[attempt(2, reply="550 5.1.1 no", outcome="failed")])
    reports = report(state) if state else {}
    steps = [{"step": 7, "detail": REPORT | {"recipients": ["ann@customer.example"]}}]
    (text,) = sentences(refused, steps=steps, reports=reports)
    assert text == f"Failed: mx1.customer.example replied 550 5.1.1 no. {ending}"
    assert needed_reports(journey(refused, steps=steps)) == ["r1"]
    assert not needed_reports(journey(recipient("relayed"), steps=steps))


COPY = [{"at": f"{DAY}20:02:00.000000Z", "outcome": "captured", "reply": "250 2.1.5 kept"}]


@each_row(
    "state, facts, text",
    [
        ("delivered", {"attempts": COPY}, "Delivered to ann@customer.example at 20:02 UTC."),
        (
            "relayed",
            {"attempts": [attempt(3, outcome="relayed", reply="250 ok")]},
            "Relayed: mx1.customer.example accepted it at 20:03 UTC.",
        ),
        (
            "captured",
            {"attempts": COPY, "expires": "2026-11-29T20:02:00.000000Z"},
            (
                "Captured: it has not left this machine; a copy is in the Inbox of "
                "ann@customer.example. The copy is removed with the message 2026-11-29 20:02 UTC."
            ),
        ),
        ("captured", {}, "Captured: it has not left this relay; it is kept in the queue."),
        (
            "held",
            {"reason": "root: too many"},
            "Held by root: too many; it stays until an operator releases it.",
        ),
        (
            "held",
            {"reason": "root", **LATER},
            "Held by root. It is released 20:23 UTC, in 11 min; expires 2026-11-23 20:02 UTC.",
        ),
        ("cancelled", {"reason": "root: a mistake"}, "Cancelled by root: a mistake."),
        ("cancelled", {}, "Cancelled."),
        ("expanded", {"successors": ["a@b.test", "c@d.test"]}, "Expanded to 2 addresses."),
    ],
)
def test_each_state_has_a_plain_sentence(state, facts, text):
    assert sentences(recipient(state, **facts)) == [text]


def test_a_captured_report_says_whom_it_waits_for():
    about = [{"step": 5, "detail": {"about": "q0"}}]
    (text,) = sentences(recipient("captured", attempts=COPY), steps=about)
    assert "the sender's mailbox is outside, the report waits here; a copy is in the Inbox" in text


def test_a_submission_before_step_4():
    scheduled = recipient("scheduled", next_attempt="2026-11-23T08:00:00.000000Z")
    (text,) = sentences(scheduled, id=None)
    assert text.endswith(
        " at the time that the sender chose, 2026-11-23 08:00 UTC, in 11 h 48 min."
    )
    (new,) = sentences(recipient("converting"), id=None)
    assert new == "Converting: pickup has not built the mail yet, and goes on by itself."
    (made,) = sentences(recipient("converting"), id=None, steps=[{"step": 3}])
    assert "has not submitted it yet" in made
    steps = [{"step": 2, "detail": {"waits": "451 4.7.1 not yet."}}, {"step": 3}]
    (waits,) = sentences(recipient("converting"), id=None, steps=steps)
    assert waits.endswith("goes on by itself; this relay replied 451 4.7.1 not yet.")
    (ended,) = sentences(recipient("cancelled", reply="cancelled: no draft"), id=None)
    assert ended == "Cancelled: no draft."


def test_recipients_of_one_state_and_reply_have_one_sentence():
    def failed(name: str) -> dict[str, Any]:
        reply = f"550 5.1.1 <{name}@b.test>: no such user"
        return recipient("failed", f"{name}@b.test", attempts=[attempt(2, reply=reply)])

    two, three = [failed("a"), failed("b")], [failed("a"), failed("b"), failed("c")]
    fine, waits = recipient("delivered", "bob@b.test"), recipient("deferred", "eve@b.test")
    (text,) = sentences(*three)
    assert text.startswith("Failed for all 3 recipients: mx1.customer.example replied 550 5.1.1")
    first, second, third, _ = sentences(fine, waits, recipient("failed", "o@b.test"), *two)
    assert (first[:20], second[:8]) == ("Failed for o@b.test.", "Deferred")
    assert third.startswith("Failed for a@b.test and b@b.test: ")
    first, _ = sentences(fine, *three)
    assert first.startswith("Failed for 3 of 4 recipients (a@b.test, b@b.test, …): ")


def test_a_copy_that_waits_comes_before_the_recipient_that_it_replaces():
    copy = recipient("deferred", "it@b.test", reply="no answer", added_by="to it", **LATER)
    first, last = sentences(recipient("redirected"), added=[copy])
    assert first.startswith("Deferred for it@b.test: no answer. First attempt 20:23 UTC")
    assert last == "Redirected."


@each_row(
    "seconds, text",
    [
        (-5, "now"),
        (0.4, "now"),
        (1, "in 1 s"),
        (59.4, "in 59 s"),
        (60, "in 1 min"),
        (719, "in 11 min"),
        (3600, "in 1 h"),
        (3900, "in 1 h 5 min"),
        (86400, "in 1 d"),
        (90061, "in 1 d 1 h"),
        (86460, "in 1 d"),
    ],
)
def test_the_time_that_is_left(seconds, text):
    assert time_left(seconds) == text


@each_row(
    "claim, text",
    [
        ({}, "mx.y [192.0.2.7] claims that it was not delivered: 550 5.1.1 no such user."),
        ({"reply": ""}, "mx.y [192.0.2.7] claims that it was not delivered: 5.1.1."),
        (
            {"kind": "read", "reply": "", "status": ""},
            "mx.y [192.0.2.7] claims that it was displayed.",
        ),
        (
            {"kind": "delayed", "source": {"client": "192.0.2.7", "reporting_mta": ""}},
            "192.0.2.7 claims that it is not delivered yet: 550 5.1.1 no such user.",
        ),
    ],
)
def test_a_claim_has_the_host_that_makes_it_and_leaves_the_state(claim, text):
    detail = {
        "by": "remote",
        "kind": "failure",
        "recipients": ["ann@customer.example"],
        "status": "5.1.1",
        "reply": "550 5.1.1 no such user",
        "host": "mx2.y",
        "received": "r1",
        "source": {"client": "192.0.2.7", "reporting_mta": "mx.y"},
    } | claim
    steps = [{"step": 7, "name": "report", "at": f"{DAY}20:10:00.000000Z", "detail": detail}]
    tried = attempt(2, outcome="relayed", reply="250 2.0.0 ok")
    found = sentences(
        recipient("relayed", attempts=[tried]),
        recipient("relayed", "bob@y", attempts=[tried]),
        steps=steps,
    )
    accepted = "mx1.customer.example accepted it at 20:02 UTC."
    assert found == [
        f"Relayed for ann@customer.example: {accepted} {text}",
        f"Relayed for bob@y: {accepted}",
    ]
    assert [*describe(7, detail | {"more": 2})][1:] == ["2 further reports on ann@customer.example"]
