"""Searching block by block finds what searching at once finds."""

from hypothesis import given
from hypothesis import strategies as st

from relay.message.content import LargeContent, MemoryOctets
from relay.policy.searching import BlockByBlock

OCTETS = st.binary(max_size=60).map(lambda some: bytes(b"ab"[one % 2] for one in some))


@given(
    OCTETS, st.lists(OCTETS, max_size=3), st.integers(1, 8), st.lists(
        st.tuples(OCTETS.map(lambda some: some[:5] or b"a"), st.integers(0, 200), st.integers(0, 200)),
        min_size=1, max_size=8,
    ),
)  # fmt: skip
def test_it_is_as_bytes_are(header, pieces, block_bytes, questions):
    whole = header + b"".join(pieces)
    content = LargeContent(header, tuple(map(MemoryOctets, pieces)), eight_bit=False)
    one = BlockByBlock(content, block_bytes=block_bytes)
    assert len(one) == len(whole)
    for wanted, *place in questions:
        start, end = (min(one, len(whole)) for one in place)
        assert one.find(wanted, start, end) == whole.find(wanted, start, end)
        assert one.startswith(wanted, start) == whole.startswith(wanted, start)
        assert one[start:end] == whole[start:end]
