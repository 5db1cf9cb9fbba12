"""Searching block by block finds what searching at once finds."""

from hypothesis import given
from hypothesis import strategies as st

from relay.message.content import LargeContent, MemoryOctets
from relay.policy.attachments import BlockByBlock


def octets(letters: str, *, most: int, least: int = 0) -> st.SearchStrategy[bytes]:
    return st.text(letters, min_size=least, max_size=most).map(str.encode)


PLACE = st.integers(0, 120)
QUESTIONS = st.lists(st.tuples(octets("ab", least=1, most=5), PLACE, PLACE), max_size=8)


@given(
    octets("aab", most=30), st.lists(octets("aab", most=40), max_size=3), st.integers(1, 8), QUESTIONS
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


def test_what_lies_across_two_blocks_is_found():
    whole = b"x" * 30 + b"wanted" + b"x" * 30
    for header_bytes in range(0, 60, 7):
        body = MemoryOctets(whole[header_bytes:])
        content = LargeContent(whole[:header_bytes], (body,), eight_bit=False)
        for start in range(30):
            one = BlockByBlock(content, block_bytes=1)
            assert one.find(b"wanted", start, len(whole)) == 30
