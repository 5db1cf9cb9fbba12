"""Results of attempts: retries, expiry, delay notices, holds."""

import pytest
from msgspec.structs import replace

from relay.base.message.envelope import Notify
from relay.base.message.lifecycle import RecipientState
from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Delivered,
    Evidence,
    Failed,
    Indeterminate,
    Relayed,
)
from relay.delivery.attempt_result import (
    AttemptTime,
    expiry_result,
    late_elsewhere,
    partial_result,
    requeue_result,
    result_of_attempt,
)
from relay.delivery.retry import ClaimAction, RetrySchedule, claim_action
from relay.formats.dsn import ReportKind
from relay.store.journeys.events import Step
from relay.store.spool.types import ClaimedRecipient, CloudRequest, EntryExtra, PriorityLevel
from tests.support.claims import SECOND_US, a_claim
from tests.support.tables import each_row

HOUR_US = 3600 * SECOND_US
OK = Relayed(Evidence("2.0.0", "250 ok"))
NO = Failed(Evidence("5.1.1", "550 no"))
LATER = Deferred(Evidence("4.2.0", "450 later"), DeferralClass.RECIPIENT)
NOTHING_FREED = Deferred(Evidence("4.4.1", "refused"), DeferralClass.CONNECT)
LOST = Deferred(Evidence("4.3.0", "cannot be read"), DeferralClass.CONTENT)
LOST_REPLY = Indeterminate(Evidence("4.4.2", "lost"), unanswered=True)
DOUBT = Indeterminate(Evidence("4.4.2", "lost"))


def concluded(claim, outcomes, *, now_us=0, wall_offset_us=0, took_s=None, lookup=None, **further):
    return result_of_attempt(
        claim,
        outcomes,
        time=AttemptTime(now_us, now_us + wall_offset_us, took_s, lookup),
        schedule=RetrySchedule((60, 300), lambda: 0.5),
        **further,
    )


def test_what_is_kept_waits_after_a_refusal_until_it_expires() -> None:
    kept = replace(a_claim(count=2), extra=EntryExtra(keep=True))
    result = concluded(kept, {1: OK, 2: NO})
    assert result.reported[ReportKind.FAILED] == ()
    assert result.commit.outcomes == {1: OK, 2: Deferred(NO.evidence, DeferralClass.RECIPIENT)}
    assert result.commit.waiting.retry_us == 60 * SECOND_US
    expired = expiry_result(kept, time=AttemptTime(HOUR_US, HOUR_US))
    assert [one.path.address for one in expired.reported[ReportKind.FAILED]] == [
        "1@a.test",
        "2@a.test",
    ]


@each_row(
    "before, outcome, after, is_over",
    [
        ({}, LOST_REPLY, {2: 1}, False),
        ({1: 2, 2: 1}, LOST_REPLY, {1: 2, 2: 2}, False),
        ({1: 1, 2: 2, 9: 2}, LOST_REPLY, {1: 1}, True),
        ({2: 7}, LOST_REPLY, {}, True),  # there were more before the setting was changed
        ({2: 2}, DOUBT, {}, False),  # a stop of this relay; () leaves what is stored
        ({2: 2}, LATER, {}, False),
    ],
)
def test_attempts_without_an_answer_to_the_dot_are_counted_for_each_recipient(
    before, outcome, after, is_over
) -> None:
    claim = replace(a_claim(count=2), extra=EntryExtra(unanswered=tuple(before.items()), keep=True))
    result = concluded(claim, {1: LATER, 2: outcome})
    assert dict(result.commit.unanswered) == after
    assert [one.path.address for one in result.reported[ReportKind.UNKNOWN]] == [
        "2@a.test"
    ] * is_over
    assert result.reported[ReportKind.FAILED] == ()
    assert type(result.commit.outcomes[2]) is (Failed if is_over else type(outcome))


@each_row(
    "outcomes, cause",
    [
        ({1: NOTHING_FREED, 2: NOTHING_FREED}, "connect"),
        ({1: OK, 2: LATER}, "recipient"),
        ({1: LATER, 2: NOTHING_FREED}, "recipient"),
        ({1: DOUBT, 2: OK}, ""),
    ],
)
def test_what_waits_has_the_first_deferral_class_as_its_cause(outcomes, cause: str) -> None:
    claim = a_claim(count=2, cause="dns", cause_attempts=1)
    waiting = concluded(claim, outcomes).commit.waiting
    assert (waiting.cause, waiting.cause_attempts) == (cause, 2)
    assert waiting.retry_us == waiting.due_us == 300 * SECOND_US


@pytest.mark.parametrize(
    ("reached", "level"), [(True, PriorityLevel.LOW), (False, PriorityLevel.UNREACHABLE)]
)
@pytest.mark.parametrize("before", [PriorityLevel.LOW, PriorityLevel.UNREACHABLE])
def test_an_unreachable_next_hop_has_the_lowest_priority_until_it_answers(before, reached, level):
    claim = a_claim(level=before, priority=PriorityLevel.LOW)
    assert concluded(claim, {1: NOTHING_FREED}, reached=reached).commit.waiting.level is level


@each_row(
    "expires_s, warn_s, due_s",
    [(9999, None, 1060), (9999, 1030, 1030), (1010, 1030, 1010), (500, None, 1000)],
)
def test_the_due_time_is_the_earliest_event_and_never_in_the_past(expires_s, warn_s, due_s):
    claim = a_claim(expires_us=expires_s * SECOND_US, warn_us=warn_s and warn_s * SECOND_US)
    waiting = concluded(claim, {1: NOTHING_FREED}, now_us=1000 * SECOND_US).commit.waiting
    assert waiting.due_us == due_s * SECOND_US
    assert waiting.warn_us == claim.warn_us


def with_notify(recipient: ClaimedRecipient, *notify: Notify) -> ClaimedRecipient:
    return replace(recipient, path=replace(recipient.path, notify=frozenset(notify)))


def test_a_delay_is_reported_once_and_with_the_attempt() -> None:
    people = a_claim(count=6).recipients
    claim = a_claim(
        warn_us=4 * HOUR_US,
        expires_us=48 * HOUR_US,
        attempts=5,
        recipients=(
            *people[:2],
            replace(people[2], added_by="a rule"),
            with_notify(people[3], Notify.NEVER),
            with_notify(people[4], Notify.FAILURE, Notify.SUCCESS),
            with_notify(people[5], Notify.DELAY),
        ),
    )
    outcomes = {1: OK, 2: LATER, 3: LATER, 4: LATER, 5: LATER}
    result = concluded(claim, outcomes, now_us=4 * HOUR_US, wall_offset_us=60)
    assert [event.detail.step for event in result.commit.events] == [Step.DELIVERY]
    tried, not_tried = result.late
    assert (tried.path.address, tried.evidence) == ("2@a.test", LATER.evidence)
    assert tried.last_attempt_us == 4 * HOUR_US + 60
    assert (not_tried.path.address, not_tried.evidence.status) == ("6@a.test", "4.4.7")
    assert not_tried.last_attempt_us == 0
    assert result.commit.waiting.warn_us is None
    again = concluded(replace(claim, warn_us=None), {2: LATER}, now_us=5 * HOUR_US)
    assert again.late is None


def test_a_delay_report_has_the_recipients_of_other_entries_with_their_last_reply() -> None:
    claim, (one, two) = a_claim(), a_claim(count=2).recipients
    last = replace(one, status="4.2.1", reply="450 4.2.1 greylisted")
    found = late_elsewhere(claim, {1: [two], 7: [last, with_notify(two, Notify.NEVER)]})
    assert [(each.path, each.evidence) for each in found] == [
        (one.path, Evidence("4.2.1", "450 4.2.1 greylisted"))
    ]
    assert found[0].log_id == f"{claim.message.id}-7"


@pytest.mark.parametrize(
    "asked", [frozenset(), frozenset({Notify.FAILURE}), frozenset({Notify.SUCCESS})]
)
def test_a_success_is_reported_where_it_was_asked_for_and_no_other_host_reports_it(asked) -> None:
    people = [with_notify(one, *asked) for one in a_claim(count=4).recipients]
    there, here = Relayed(OK.evidence, offers_dsn=False), Delivered(OK.evidence)
    outcomes = {1: there, 2: Relayed(OK.evidence, offers_dsn=True), 3: here, 4: LATER}
    claim = a_claim(recipients=tuple(people))
    for result in (
        concluded(claim, outcomes),
        partial_result(claim, outcomes, time=AttemptTime(0, 0)),
    ):
        wanted = Notify.SUCCESS in asked
        assert [one.path.address for one in result.reported[ReportKind.RELAYED]] == [
            "1@a.test"
        ] * wanted
        assert [one.path.address for one in result.reported[ReportKind.DELIVERED]] == [
            "3@a.test"
        ] * wanted


def test_a_delay_of_recipients_added_by_a_rule_is_not_reported() -> None:
    (one,) = a_claim().recipients
    claim = a_claim(warn_us=1, recipients=(replace(one, added_by="a rule"),))
    result = requeue_result(claim, time=AttemptTime(2, 2))
    assert (result.late, result.commit.waiting.warn_us) == ((), None)


@pytest.mark.parametrize("state", [RecipientState.DEFERRED, RecipientState.HELD])
@pytest.mark.parametrize("retry_us", [7 * HOUR_US, None])
def test_a_delayed_claim_keeps_its_retry_time(state: RecipientState, retry_us: int | None) -> None:
    claim = a_claim(
        state=state,
        warn_us=4 * HOUR_US,
        retry_us=retry_us,
        expires_us=8 * HOUR_US,
        level=PriorityLevel.UNREACHABLE,
        cause="dns",
        cause_attempts=4,
    )
    result = requeue_result(claim, time=AttemptTime(4 * HOUR_US, 4 * HOUR_US))
    waiting = result.commit.waiting
    assert [one.path.address for one in result.late] == ["1@a.test"]
    assert (waiting.retry_us, waiting.due_us) == (retry_us, retry_us or 8 * HOUR_US)
    assert (waiting.level, waiting.cause, waiting.cause_attempts) == (
        PriorityLevel.UNREACHABLE,
        "dns",
        4,
    )
    assert waiting.warn_us is None
    assert not result.commit.outcomes


@pytest.mark.parametrize("state", [RecipientState.HELD, RecipientState.CAPTURED])
def test_a_claim_that_may_have_expired_is_checked_again_later(state: RecipientState) -> None:
    claim = a_claim(state=state, retry_us=None, due_us=HOUR_US, expires_us=HOUR_US)
    waiting = requeue_result(claim, time=AttemptTime(4 * HOUR_US, 4 * HOUR_US)).commit.waiting
    assert 4 * HOUR_US < waiting.due_us < 5 * HOUR_US
    claim = replace(claim, retry_us=4 * HOUR_US + SECOND_US)  # when its hold ends
    waiting = requeue_result(claim, time=AttemptTime(4 * HOUR_US, 4 * HOUR_US)).commit.waiting
    assert waiting.due_us == claim.retry_us


def test_a_delay_warning_keeps_the_attempt_of_a_claim_due_before_the_start() -> None:
    claim = a_claim(
        attempts=1,
        retry_us=2 * HOUR_US,
        due_us=2 * HOUR_US,
        expires_us=3 * HOUR_US,
        warn_us=HOUR_US,
    )
    now_us = 4 * HOUR_US
    waiting = requeue_result(claim, time=AttemptTime(now_us, now_us)).commit.waiting
    again = replace(claim, due_us=waiting.due_us, warn_us=waiting.warn_us)
    assert waiting.due_us == 2 * HOUR_US
    action = claim_action(again, now_us=now_us, confirmed_us=now_us, started_us=now_us - SECOND_US)
    assert action is ClaimAction.ATTEMPT


def test_a_claim_is_held_when_its_content_is_unreadable_twice_in_a_row() -> None:
    first = concluded(a_claim(), {1: LOST})
    assert (first.commit.held, first.commit.waiting.cause) == (False, "content")
    second = concluded(a_claim(attempts=1, cause="content", cause_attempts=1), {1: LOST})
    assert second.commit.held
    assert second.commit.waiting.retry_us is None
    assert second.commit.waiting.due_us == HOUR_US
    assert second.commit.events[0].detail.held
    between = concluded(a_claim(attempts=2, cause="site", cause_attempts=1), {1: LOST})
    assert not between.commit.held


def test_an_expired_recipient_has_the_last_reply() -> None:
    claim = a_claim(attempts=3)
    people = (replace(claim.recipients[0], status="4.2.0", reply="450 4.2.0 greylisted"),)
    result = expiry_result(replace(claim, recipients=people), time=AttemptTime(5, 5))
    assert result.reported[ReportKind.FAILED][0].evidence.status == "5.4.7"
    assert "greylisted" in result.reported[ReportKind.FAILED][0].evidence.reply
    assert result.reported[ReportKind.FAILED][0].last_status == "4.2.0"
    assert result.reported[ReportKind.FAILED][0].last_attempt_us == 0  # now it was not tried


@pytest.mark.parametrize(
    ("state", "told"), [(RecipientState.HELD, 1), (RecipientState.CAPTURED, 0)]
)
def test_expired_held_mail_is_reported_and_captured_mail_is_not(state: RecipientState, told: int):
    result = expiry_result(a_claim(state=state), time=AttemptTime(5, 5))
    assert len(result.reported[ReportKind.FAILED]) == told
    assert list(result.commit.expired) == [1]


def test_who_may_have_got_it_by_graph_is_not_reported_as_failed() -> None:
    sent = CloudRequest("p@a.test", "<1@a.test>", (2,), posted_us=5, draft="A=", sent_us=6)
    posted = replace(sent, recipients=(1,), sent_us=0)
    claim = replace(a_claim(count=3), extra=EntryExtra(requests=(posted, sent)))
    result = expiry_result(claim, time=AttemptTime(5, 5))
    told = {
        str(kind): [one.path.address for one in people] for kind, people in result.reported.items()
    }
    assert told == {"failure": ["1@a.test", "3@a.test"], "unknown": ["2@a.test"]}
    reply = result.commit.expired[2].evidence.reply
    assert reply.startswith("it is not known whether Microsoft Graph has sent the message; deliv")
