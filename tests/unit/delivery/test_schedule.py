"""When something is tried again."""

from dataclasses import fields

import pytest

from relay.delivery.retry import Cause, Schedule
from relay.message.outcome import DeferralClass
from relay.settings.tree import RetryByClass

SECOND_US = 1_000_000
NEVER_US = 10**15
COMMON = (60, 300, 900)
CLASSES = {"recipient": (300, 600), "dns": (10,)}


def schedule(chance: float = 0.5, **by_class) -> Schedule:
    return Schedule(COMMON, lambda: chance, by_class)


@pytest.mark.parametrize(
    ("attempts", "chance", "seconds"),
    [(0, 0.5, 60), (1, 0.5, 300), (2, 0.5, 900), (8, 0.5, 900), (0, 0.0, 54), (0, 1.0, 66)],
)
def test_the_last_step_repeats_and_jitter_stays_within_ten_percent(
    attempts: int, chance: float, seconds: float
) -> None:
    retry = schedule(chance).retry(Cause("site", attempts), ["site"], now_us=0, expires_us=NEVER_US)
    assert retry.at_us == pytest.approx(seconds * SECOND_US)
    assert retry.cause == Cause("site", attempts + 1)


def test_never_later_than_expiry() -> None:
    assert schedule().retry(Cause(), ["site"], now_us=0, expires_us=5).at_us == 5


@pytest.mark.parametrize(
    ("before", "names", "seconds", "after"),
    [
        # classes without a list of their own share one, so a site that fails now so, now so
        # is not tried each minute for ever
        (Cause("connect", 2), ["site"], 900, Cause("site", 3)),
        (Cause("", 1), ["site"], 300, Cause("site", 2)),
        # a list of its own begins at its first step, and goes on while it is the one
        (Cause("connect", 2), ["recipient"], 300, Cause("recipient", 1)),
        (Cause("recipient", 1), ["recipient"], 600, Cause("recipient", 2)),
        (Cause("recipient", 7), ["connect"], 60, Cause("connect", 1)),
        (Cause("dns", 7), ["dns"], 10, Cause("dns", 8)),
        # of several the earliest next time counts
        (Cause("recipient", 1), ["recipient", "site"], 60, Cause("site", 1)),
        (Cause("site", 5), ["recipient", "site"], 300, Cause("recipient", 1)),
        # some were not tried: the common list
        (Cause("site", 1), [], 300, Cause("", 2)),
        # what another version wrote
        (Cause("phase of the moon", 1), ["site"], 300, Cause("site", 2)),
    ],
)
def test_each_class_waits_by_its_list(
    before: Cause, names: list[str], seconds: float, after: Cause
) -> None:
    retry = schedule(**CLASSES).retry(before, names, now_us=0, expires_us=NEVER_US)
    assert (retry.at_us, retry.cause) == (seconds * SECOND_US, after)


@pytest.mark.parametrize(
    ("cause", "seconds"),
    [(Cause(), 10), (Cause("connect", 1), 60), (Cause("connect", 9), 900), (Cause("dns", 2), 10)],
)
def test_the_step_behind_a_cause_is_known(cause: Cause, seconds: float) -> None:
    assert schedule(**CLASSES).step_s(cause) == seconds


def test_every_class_can_have_a_list() -> None:
    assert {field.name for field in fields(RetryByClass)} == set(DeferralClass)
