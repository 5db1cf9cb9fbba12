"""Names of attachments, in any encoding and at any nesting, and the limits of the scan."""

import base64
import contextlib
import quopri
import time
from binascii import b2a_uu
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.content import BLOCK_BYTES, LargeContent, UnreadableError
from relay.base.message.header import ParsedContent, with_crlf
from relay.formats.read_header import HEADER_OCTETS_MAX
from relay.formats.structure import ENTITIES_MAX, FALSE_DELIMITERS_MAX
from relay.transport.policy.message_parts import FIELDS_OCTETS_MAX, TooManyPartsError, message_parts
from tests.support.contents import Counted, as_large
from tests.support.long_tests import sampled
from tests.support.tables import each_row


def names_in(content):
    parts = message_parts(ParsedContent.of(content))
    return tuple(name for part in parts for name in part.names)


def mixed(*parts, boundary=b"b", kind=b"mixed", end=b"\r\n--b--\r\n"):
    head = b"Content-Type: multipart/%s; boundary=%s\r\n\r\n" % (kind, boundary)
    return head + b"".join(b"\r\n--" + boundary + b"\r\n" + part for part in parts) + end


def attached(value, field=b"Content-Disposition: attachment; "):
    return field + value + b"\r\n\r\ndata"


EXE = attached(b"filename=a.exe")
INNER = mixed(EXE, boundary=b"bb", end=b"\r\n--bb--\r\n")
NESTED = b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n" + INNER


@each_row(
    "content, names",
    [
        (b"Subject: setup.exe\r\n\r\nfilename=setup.exe", ()),
        (b"Content-Type: text/plain\r\n\r\n--b\r\n" + EXE, ()),
        (mixed(EXE), ("a.exe",)),
        (mixed(EXE, end=b""), ("a.exe",)),
        (mixed(attached(b'FileName="A b.EXE"')), ("a b.exe",)),
        (mixed(attached(b"filename*=utf-8''%C3%9C.exe")), ("ü.exe",)),
        (mixed(attached(b"filename*0=lo;\r\n filename*1=ng.exe")), ("long.exe",)),
        (mixed(attached(b'filename="C:\\\\dir\\\\a.exe"')), ("a.exe",)),
        (mixed(attached(b'filename="dir/a.exe"')), ("a.exe",)),
        (mixed(attached(b"filename*x*=''a.exe; name*=broken")), ("broken",)),
        (mixed(attached(b'name="a.exe"', b"Content-Type: text/plain;\r\n\t")), ("a.exe",)),
        (attached(b"name=a.exe", b"content-type: application/x-dosexec; "), ("a.exe",)),
        (mixed(attached('filename="a.\u202eexe"'.encode())), ("a.exe",)),
        (mixed(attached('filename="a.\uff45\uff58\uff45"'.encode())), ("a.exe",)),
        (mixed(attached(b"filename=" + b"a" * 400 + b".exe")), ("a" * 251 + ".exe",)),
        (mixed(attached(b'filename=""')), ("",)),
        (mixed(INNER), ("a.exe",)),
        (mixed(b"--b2\r\n\r\n--bx\r\n", EXE), ("a.exe",)),
        (mixed(NESTED, EXE), ("a.exe", "a.exe")),
        (mixed(b"\r\n" + attached(b"filename=a.exe"), kind=b"digest"), ("a.exe",)),
        (b"Content-Type: multipart/mixed\r\n\r\n--\r\n" + EXE, ("a.exe",)),
        (mixed(EXE, end=b"\r\n--b--\r\n--b\r\n" + EXE), ("a.exe",)),
        (b"", ()),
    ],
)
def test_all_names_are_found_and_normalised(content, names):
    found = names_in(content)
    assert found[: len(names)] == names
    assert bool(found) == bool(names)
    assert names_in(as_large(content)) == found


TYPES = b"Content-Type: multipart/x; boundary=%s\r\nContent-Type: multipart/x; boundary=%s\r\n\r\n"


@pytest.mark.parametrize("form", [bytes, as_large], ids=["small", "large"])
@each_row(
    "content",
    [
        TYPES % (b"b", b"q") + b"--b\r\n" + EXE,
        TYPES % (b"q", b"b") + b"--b\r\n" + EXE,
        TYPES % (b"b", b"b") + b"--b\r\n" + EXE,
        TYPES % (b"b", b"q")
        + b"--q\r\n\r\n--b\r\n"
        + TYPES % (b"c", b"q")
        + b"--q\r\n\r\n--c\r\n"
        + EXE,
        mixed(EXE, boundary=b"a(b)c", end=b""),
        mixed(EXE, boundary=b"a(b)c", end=b"").replace(b"--a(b)c", b"--ac"),
        mixed(EXE, kind=b"mixed/x"),
        mixed(b"Content-Type: message/rfc822\r\nodd\r\n\r\n" + EXE),
        mixed(b"Content-Type: multipart/x; boundary=c\r\nodd\r\n--c\r\n\r\n--c\r\n" + EXE),
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" + EXE,
        mixed(EXE).replace(
            b"\r\n--b\r\n",
            b"\r\n--b\r\nContent-Type: multipart/x; boundary=b\r\n\r\n--b--\r\n--b\r\n",
            1,
        ),
        mixed(mixed(b"\r\nx"), EXE),
        mixed(mixed(b"\r\nx"), b"\r\n" + EXE, kind=b"digest"),
        mixed(mixed(b"\r\n" + EXE), kind=b"digest"),
        mixed(b"\r\nx\r\n--b words\r\n" + EXE),
        mixed(b"\r\nx\r\n--b\xc2\xa0\r\n" + EXE),
        mixed(mixed(b"\r\nx") + b"--b words\r\n" + EXE),
        mixed(EXE.replace(b"data", b"da\r\n--b words\r\n\r\nta")),
        b"\r\n--b--".join(mixed(b"\r\n--b\r\n" + EXE, end=b"").split(b"\r\n--b", 1)),
        mixed(mixed(b"\r\nx", boundary=b"c", end=b""), EXE, boundary=b"c--"),
    ],
)
def test_where_programs_differ_the_names_of_every_reading_are_found(content, form):
    assert set(names_in(form(content))) == {"a.exe"}


@given(st.binary(max_size=300))
def test_a_damaged_message_never_raises(rubbish):
    names_in(mixed(attached(rubbish), rubbish))
    names_in(b"Content-Type: multipart/x; boundary=" + rubbish)


@pytest.mark.parametrize("form", [bytes, as_large], ids=["small", "large"])
@each_row(
    "content",
    [
        mixed(*[b"\r\n"] * (ENTITIES_MAX - 1), EXE),
        b"Content-Type: message/rfc822\r\n\r\n" * 60 + EXE,
        mixed(b"\r\n--bx" * (FALSE_DELIMITERS_MAX + 1), EXE),
        mixed(attached(b" filename=x;" * 1000), EXE),
        mixed(attached(b"x" + b";" * 101), EXE),
        mixed(b"Content-Type: multipart/x; boundary=c" + b";" * 101 + b"\r\n\r\n--c\r\n" + EXE),
        mixed(b"\r\n--b" + b" " * 1000 + b"\r\n" + EXE),
        mixed(attached(b"x\r\n" + b"A: b\r\n" * (HEADER_OCTETS_MAX // 6)), EXE),
    ],
)
def test_a_message_beyond_the_limits_of_the_scan_raises(content, form):
    with pytest.raises(TooManyPartsError):
        names_in(form(content))


def test_a_large_body_is_read_a_few_times_and_a_block_at_a_time():
    part = b"Content-Type: application/x; name=part.bin\r\n\r\n" + b"x" * 70 * 20_000
    content = mixed(part, EXE, part, mixed(part, EXE, boundary=b"bb", end=b"\r\n--bb--\r\n"))
    header_end = content.index(b"\r\n\r\n") + 2
    body = Counted(content[header_end:])
    large = LargeContent(content[:header_end], (body,), eight_bit=False)
    assert names_in(large) == ("part.bin", "a.exe", "part.bin", "part.bin", "a.exe")
    assert body.most_bytes <= BLOCK_BYTES
    assert body.read_bytes < 3 * body.size


@pytest.mark.parametrize("encoding", [b"base64", b"quoted-printable", b"x-uuencode"])
def test_a_large_encoded_message_is_read_a_few_times_and_a_block_at_a_time(encoding):
    text = b"From: x@y.test\r\n" + mixed(b"\r\n" + b"some text\r\n" * 100_000, EXE)
    coded = {
        b"base64": lambda: base64.encodebytes(text),
        b"quoted-printable": lambda: quopri.encodestring(text),
        b"x-uuencode": lambda: (
            b"begin 644 a.eml\n"
            + b"".join([b2a_uu(text[at : at + 45]) for at in range(0, len(text), 45)])
            + b"`\nend\n"
        ),
    }[encoding]()
    header = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: %b\r\n" % encoding
    body = Counted(b"\r\n" + with_crlf(coded))
    names = names_in(LargeContent(header, (body,), eight_bit=False))
    assert names[-1] == "a.exe"
    assert body.most_bytes <= BLOCK_BYTES
    assert body.read_bytes < 5 * body.size


def test_a_truncated_body_raises():
    content = mixed(b"x" * 100, EXE)
    header_end = content.index(b"\r\n\r\n") + 2
    body = Counted(content[header_end:-40])
    body.size += 40
    with pytest.raises(UnreadableError):
        names_in(LargeContent(content[:header_end], (body,), eight_bit=False))


# Content fields of a part by which programs read a message in several ways.
SEVERAL = {
    "two types": (b"Content-Type: a/b\r\nContent-Type: a/b; c=", b"a", b""),
    "two dispositions": (b"Content-Disposition: a\r\nContent-Disposition: a; b=", b"a", b""),
    "a line that is no field": (b"Content-Type: a/b; c=", b"a", b"\r\nx"),
}


def with_content_fields(lead: bytes, again: bytes, end: bytes, *, size: int) -> bytes:
    """Return a message whose parts have that many octets of content fields, in 256 fields."""
    length = size // 256 - len(lead) - len(b"\r\n")
    field = lead + (again * length)[:length] + end + b"\r\n"
    parts = [b"X: %d\r\n%s\r\nx" % (at, field) for at in range(256)]
    return mixed(*parts)


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_a_message_that_is_read_in_several_ways_the_content_fields_are_limited(kind):
    few = with_content_fields(*SEVERAL[kind], size=FIELDS_OCTETS_MAX - 2048)
    assert len(message_parts(ParsedContent.of(few))) >= 257
    many = with_content_fields(*SEVERAL[kind], size=FIELDS_OCTETS_MAX + 1024)
    with pytest.raises(TooManyPartsError, match="262144 octets of content fields"):
        message_parts(ParsedContent.of(many))


HOSTILE = {
    "quotes": (b'Content-Type: multipart/x; a=(; b="', b'\\"', b""),
    "parameters": (b"Content-Type: a/b; x=(", b";name=a", b""),
    "continued parameters": (b"Content-Type: a/b; x=(", b";name*0*=a", b""),
    "types": (b"Content-Type: a/b(\r\n", b"Content-Type:;name=a\r\n", b""),
    "fields": (b"Content-Type: a/b(\r\n", b"X:\r\n", b""),
    "lines that are no fields": (b"Content-Type: a/b(\r\n", b"x\r\n", b""),
    "separators in quotes": (b'Content-Type: multipart/x; a="', b'";"', b""),
}


def hostile(kind: str, size: int) -> bytes:
    lead, again, end = HOSTILE[kind]
    fields = lead + again * ((size - len(lead)) // len(again)) + end
    return mixed(*[b"X: %d\r\n%s\r\n\r\nx" % (at, fields) for at in range(ENTITIES_MAX - 1)])


@each_row("kind", HOSTILE)
def test_a_thousand_hostile_parts_take_less_than_half_a_second(kind):
    content = ParsedContent.of(hostile(kind, 2000))
    times = []
    while len(times) < 3 and min(times, default=1) >= 0.5:
        started = time.thread_time()
        with contextlib.suppress(TooManyPartsError):
            message_parts(content)
        times.append(time.thread_time() - started)
    assert min(times) < 0.5


class GivenUpError(Exception):
    pass


@pytest.mark.parametrize("kind", sampled(HOSTILE, one_of=2))
def test_between_parts_and_readings_a_call_can_end(kind):
    content, calls = ParsedContent.of(hostile(kind, 230)), []

    def between_parts():
        calls.append(time.thread_time())

    with contextlib.suppress(TooManyPartsError):
        message_parts(content, between_parts)
    assert max((after - before for before, after in pairwise(calls)), default=0) < 0.5

    def given_up():
        raise GivenUpError

    with pytest.raises(GivenUpError):
        message_parts(content, given_up)
