"""Which TLSA records of a host can be used."""

from hashlib import sha256

import pytest

from relay.base.message.tls_policy import TlsaRecord, TlsPolicy
from relay.transport.routing.resolver import RECORDS_MAX, usable_records

DIGEST, LONG = bytes(32), bytes(64)


@pytest.mark.parametrize("usage", range(5))
@pytest.mark.parametrize("selector", range(3))
@pytest.mark.parametrize(
    ("matching", "data", "fits"),
    [
        (1, DIGEST, True),
        (2, LONG, True),
        (1, DIGEST[1:], False),
        (1, LONG, False),
        (2, DIGEST, False),
        (1, b"", False),
        (0, b"", False),
        (0, DIGEST, False),
        (3, LONG, False),
        (9, DIGEST, False),
    ],
)
def test_which_records_can_be_used(usage, selector, matching, data, fits):
    record = TlsaRecord(usage, selector, matching, data)
    expected = (record,) if fits and usage in (2, 3) and selector in (0, 1) else ()
    assert usable_records([record]) == expected


def test_the_usable_records_of_an_answer_are_in_one_order_and_once():
    good = [TlsaRecord(3, 1, 1, sha256(text).digest()) for text in (b"a", b"b")]
    mixed = [TlsaRecord(0, 0, 1, DIGEST), *good, TlsaRecord(3, 1, 1, DIGEST[1:])]
    first, second = usable_records(mixed), usable_records([*reversed(mixed), *mixed])
    assert first == second == tuple(sorted(good))
    policies = {TlsPolicy("dane", tlsa=one) for one in (first, second, first[:1])}
    assert len(policies) == 2  # another set of records is another connection


def test_of_300_records_some_count():
    many = [
        TlsaRecord(3, 1, 1, bytes([number // 256, number % 256, *range(30)]))
        for number in range(300)
    ]
    assert usable_records(many) == usable_records(reversed(many)) == tuple(many[:RECORDS_MAX])
