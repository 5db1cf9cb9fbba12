"""What a submission came to, when it is tried again, when it ends."""

import pytest

from relay.message.outcome import DeferralClass, Deferred, Evidence, Failed, Indeterminate, Relayed
from relay.pickup.decisions import (
    LONGEST_DELAY_S,
    Accepted,
    Later,
    Refused,
    delay_s,
    given_up,
    too_old,
    verdict_of,
)

DAY_S = 86400.0
OK = Relayed(Evidence("2.0.0", "250 2.0.0 Ok: queued as 0abc9", host="relay", remote=True))
NO = Failed(Evidence("5.7.1", "550 5.7.1 no", host="relay", remote=True))
BUSY = Deferred(Evidence("4.3.0", "451 4.3.0 busy"), DeferralClass.SITE)
DOUBT = Indeterminate(Evidence("4.4.2", "lost"))


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([OK, OK], Accepted("0abc9")),
        ([Relayed(Evidence("2.0.0", "250 Ok"))], Accepted("")),
        ([BUSY], Later(BUSY.evidence)),
        ([DOUBT], Later(DOUBT.evidence, uncertain=True)),
        ([NO, BUSY], Later(BUSY.evidence)),
        ([NO, NO], Refused(Evidence("5.7.1", "550 5.7.1 no"))),
    ],
)
def test_a_note_has_one_verdict(outcomes, expected):
    assert verdict_of(outcomes) == expected


def test_nothing_is_no_acceptance():
    assert isinstance(verdict_of([]), Later)


def test_delays_grow_to_a_bound_and_spread():
    delays = [delay_s(failures, 0.5) for failures in range(1, 12)]
    assert delays[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert delays[-1] == LONGEST_DELAY_S == delay_s(10**6, 0.5)
    assert delay_s(1, 0.0) == pytest.approx(0.18)
    assert delay_s(1, 0.999) == pytest.approx(0.22, abs=0.001)


@pytest.mark.parametrize(("age_s", "ends"), [(0, False), (DAY_S, False), (DAY_S + 1, True)])
def test_a_note_is_given_up_by_its_age(age_s, ends):
    end = given_up(age_s, DAY_S, BUSY.evidence, uncertain=False)
    assert (end is not None) is ends
    if end:
        assert not end.unknown
        assert (end.evidence.status, "451 4.3.0 busy" in end.evidence.reply) == ("5.4.7", True)


def test_who_was_not_answered_does_not_say_that_it_failed():
    end = given_up(DAY_S + 1, DAY_S, BUSY.evidence, uncertain=True)
    assert end.unknown
    assert end.evidence.status == "4.4.7"
    assert "unknown whether the message was sent" in end.evidence.reply


@pytest.mark.parametrize(("age_s", "lost"), [(8 * DAY_S, False), (8 * DAY_S + 1, True)])
def test_a_note_that_outlived_its_key_is_unknown(age_s, lost):
    end = too_old(age_s, DAY_S)
    assert (end is not None) is lost
    assert end is None or end.unknown
