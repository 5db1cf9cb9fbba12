"""What the envelope's values mean."""

import pytest

from relay.message.envelope import Notify, domain_of, wants_failure_report


@pytest.mark.parametrize(
    ("notify", "wanted"),
    [
        ((), True),
        ((Notify.FAILURE,), True),
        ((Notify.SUCCESS, Notify.FAILURE), True),
        ((Notify.NEVER,), False),
        ((Notify.SUCCESS,), False),
        ((Notify.DELAY,), False),
    ],
)
def test_a_failure_is_reported_unless_notify_says_otherwise(notify, wanted):
    assert wants_failure_report(frozenset(notify)) is wanted


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("Bob@Example.NET", "example.net"),
        ('"a@b"@example.net', "example.net"),
        ("", ""),
        ("postmaster", ""),
        ("bob@[192.0.2.1]", "[192.0.2.1]"),
    ],
)
def test_domain_of(address, domain):
    assert domain_of(address) == domain
