"""Octets encoded in chunks are those of encoding the whole, wherever chunks end."""

import quopri
import re
from base64 import b64decode, b64encode
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.content import MemoryOctets, octets_in_blocks
from relay.formats import transfer_encoding
from relay.formats.transfer_encoding import (
    Base64Coding,
    CrlfCoding,
    QuotedPrintableCoding,
    RewrappedBase64,
    RewrappedQuotedPrintable,
    base64_size,
    decoded_blocks,
    recode,
)
from tests.support.tables import each_row

TEXTS = st.lists(
    st.sampled_from(
        [
            b"\r",
            b"\n",
            b"\r\n",
            b"\0",
            b"=",
            b"=3D",
            b"=\r\n",
            b" ",
            b"\t",
            b".",
            b"-",
            b"From ",
            b"a" * 30,
            b"x" * 90,
            b"\xc3\xbc",
            b"b" * 1200,
        ]
    ),
    max_size=15,
).map(b"".join)


@contextmanager
def in_chunks(octets):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_encoding, "_CHUNK_OCTETS", octets)
        yield octets


@pytest.fixture(params=[8, 57, 100, 57 * 1024])
def chunk(request):
    with in_chunks(request.param) as octets:
        yield octets


def written(octets, coding):
    """Everything that can be read of recoded octets, read in several ways."""
    made = recode(MemoryOctets(octets), coding)
    whole = made.read(0, made.size)
    assert len(whole) == made.size
    for size in (13, 77):
        assert b"".join(octets_in_blocks([made], size)) == whole
    middle = made.part(made.size // 3, made.size // 2)
    assert middle.read(0, middle.size) == whole[made.size // 3 :][: made.size // 2]
    assert middle.part(1, 5).read(0, 9) == whole[made.size // 3 :][: made.size // 2][1:6]
    return whole


@given(TEXTS, st.sampled_from([57, 114, 57 * 1024]))
def test_encoded_octets_decode_to_the_same(octets, chunk_octets):
    with in_chunks(chunk_octets):
        text = written(octets, CrlfCoding(keeps_nul=True))
        assert text.replace(b"\r\n", b"\n") == re.sub(b"\r\n|\r", b"\n", octets)
        assert not re.search(rb"(?<!\r)\n|\r(?!\n)", text)
        plain = written(octets, CrlfCoding())
        assert b"\0" not in plain
        coded = written(octets, Base64Coding())
        assert b64decode(coded) == octets
        assert coded.replace(b"\r\n", b"\n") + b"\n" * bool(coded) == base64_lines(octets)
        assert len(coded) == base64_size(len(octets))
        quoted = written(text, QuotedPrintableCoding())
        assert quopri.decodestring(quoted.replace(b"\r\n", b"\n")) == text.replace(b"\r\n", b"\n")
        assert max(map(len, quoted.split(b"\r\n"))) <= 76
        again = written(quoted, RewrappedQuotedPrintable())
        assert quopri.decodestring(again.replace(b"\r\n", b"\n")) == text.replace(b"\r\n", b"\n")
        for encoding, source in (("base64", coded), ("quoted-printable", quoted), ("8bit", octets)):
            wanted = text if encoding == "quoted-printable" else octets
            assert b"".join(decoded_blocks(MemoryOctets(source), encoding)) == wanted


@pytest.mark.parametrize("octets_before", [0, 33, 75, 76])
@each_row("repeated", [b"a", b"=", b"ab=", b"a ", b"\xc3\xbc", b"."])
def test_a_quoted_printable_line_that_is_cut_has_at_most_76_characters(octets_before, repeated):
    """A line longer than a chunk is cut between two chunks, with a soft break (RFC 2045 6.7)."""
    text = b"x" * octets_before + b"\r\n" + (repeated * 200_000)[:200_000] + b"\r\nend"
    made = recode(MemoryOctets(text), QuotedPrintableCoding())
    quoted = made.read(0, made.size)
    assert max(map(len, quoted.split(b"\r\n"))) <= 76
    assert b"".join(decoded_blocks(MemoryOctets(quoted), "quoted-printable")) == text


def base64_lines(octets):
    coded = b64encode(octets)
    return b"".join(coded[start : start + 76] + b"\n" for start in range(0, len(coded), 76))


@given(TEXTS, st.sampled_from([0, 50, 900]), st.sampled_from([57, 57 * 1024]))
def test_long_lines_are_rewrapped_and_decode_to_the_same(octets, width, chunk_octets):
    with in_chunks(chunk_octets):
        coded = b64encode(octets)
        if width:
            coded = b" \n".join(
                coded[start : start + width] for start in range(0, len(coded), width)
            )
        wrapped = written(coded, RewrappedBase64())
        assert b64decode(wrapped) == octets
        assert {len(line) for line in wrapped.split(b"\r\n")[:-1]} <= {76}
        quoted = (
            quopri.encodestring(octets.replace(b"\r", b""), quotetabs=True)
            .replace(b"=\n", b"")
            .replace(b"\n", b"\r\n")
        )
        again = written(quoted, RewrappedQuotedPrintable())
        assert max(map(len, again.split(b"\r\n"))) <= 76
        assert quopri.decodestring(again.replace(b"\r\n", b"\n")) == quopri.decodestring(
            quoted.replace(b"\r\n", b"\n")
        )


@each_row(
    "coded, octets",
    [
        (b"AAE", b"\x00\x01"),
        (b"AAEC!AAE=!", b"\x00\x01\x02\x00\x01"),
        (b"aGVsbA==\r\nbyB3b3JsZA==", b"hello world"),
        (b"AAE=AAE=A=AAEC", b"\x00\x01\x00\x01\x00\x01\x02"),
        (b"A", b""),
        (b"!!!!", b""),
        (b"AAECA", b"\x00\x01\x02"),
        (b"====", b""),
        (b"", b""),
    ],
)
def test_damaged_base64_gives_what_can_be_read(coded, octets, chunk):
    assert b"".join(decoded_blocks(MemoryOctets(coded), "base64")) == octets


class ShrinkingOctets(MemoryOctets):
    """A file that somebody cuts while it is read."""

    def read(self, start, length):
        return b"" if start > 100_000 else super().read(start, length)


def test_a_source_that_shrinks_raises():
    made = recode(MemoryOctets(b"x\n" * 100_000), CrlfCoding())
    shrunk = transfer_encoding.RecodedOctets(
        ShrinkingOctets(b"x\n" * 100_000), made.coding, made.size, made.sources, made.places
    )
    with pytest.raises(OSError, match="found"):
        list(octets_in_blocks([shrunk]))


@each_row("line_end", [b"\r", b"\n", b"\r\n", b" \r\n", b"\t\r"])
def test_a_soft_line_break_loses_nothing_after_it(chunk, line_end):
    quoted = b"one" + b"=" + line_end + b"two=3D\rthree=" + line_end + b"four\nfive"
    assert (
        b"".join(decoded_blocks(MemoryOctets(quoted), "quoted-printable"))
        == b"onetwo=\rthreefour\nfive"
    )
