"""The outcome of a submission, the retry delay, and giving up."""

import pytest

from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Evidence,
    Failed,
    Indeterminate,
    Relayed,
)
from relay.submission.pickup.decisions import (
    LONGEST_DELAY_S,
    FinalFailure,
    SubmissionAccepted,
    SubmissionDeferred,
    give_up,
    key_expired,
    retry_delay_s,
    submission_outcome,
)
from tests.support.tables import each_row

DAY_S = 86400.0
OK = Relayed(Evidence("2.0.0", "250 2.0.0 Ok: queued as 0abc9", host="relay", remote=True))
NO = Failed(Evidence("5.7.1", "550 5.7.1 no", host="relay", remote=True))
BUSY = Deferred(Evidence("4.3.0", "451 4.3.0 busy"), DeferralClass.SITE)
DOUBT = Indeterminate(Evidence("4.4.2", "lost"))


@each_row(
    "outcomes, expected",
    [
        ([OK, OK], SubmissionAccepted("0abc9")),
        ([Relayed(Evidence("2.0.0", "250 Ok"))], SubmissionAccepted("")),
        ([BUSY], SubmissionDeferred(BUSY.evidence)),
        ([DOUBT], SubmissionDeferred(DOUBT.evidence, uncertain=True)),
        ([NO, BUSY], SubmissionDeferred(BUSY.evidence)),
        ([NO, NO], FinalFailure(Evidence("5.7.1", "550 5.7.1 no"))),
    ],
)
def test_the_outcome_of_a_submission_follows_from_its_recipients(outcomes, expected):
    assert submission_outcome(outcomes) == expected


def test_a_transaction_without_outcomes_is_retried():
    assert isinstance(submission_outcome([]), SubmissionDeferred)


def test_retry_delays_grow_up_to_a_limit_and_are_spread():
    delays = [retry_delay_s(failures, 0.5) for failures in range(1, 12)]
    assert delays[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert delays[-1] == LONGEST_DELAY_S == retry_delay_s(10**6, 0.5)
    assert retry_delay_s(1, 0.0) == pytest.approx(0.18)
    assert retry_delay_s(1, 0.999) == pytest.approx(0.22, abs=0.001)


def test_a_submission_that_was_never_accepted_fails():
    failure = give_up(BUSY.evidence, uncertain=False)
    assert not failure.unknown
    assert failure.evidence.status == "5.4.7"
    assert "451 4.3.0 busy" in failure.evidence.reply


def test_after_an_uncertain_attempt_the_final_failure_is_unknown():
    failure = give_up(BUSY.evidence, uncertain=True)
    assert failure.unknown
    assert failure.evidence.status == "4.4.7"
    assert "unknown whether the message was sent" in failure.evidence.reply


@pytest.mark.parametrize(("age_s", "expired"), [(8 * DAY_S, False), (8 * DAY_S + 1, True)])
def test_a_submission_older_than_its_key_ends_as_unknown(age_s, expired):
    failure = key_expired(age_s)
    assert (failure is not None) is expired
    assert failure is None or failure.unknown
