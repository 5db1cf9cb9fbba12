"""What a host without 8BITMIME or SMTPUTF8 gets, and long lines: the exact octets, and what readers decode."""

import base64
import email
import email.policy
import sys
import time
from email.message import Message
from quopri import encodestring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.base.message.content import Content, LargeContent, MemoryOctets, read_all
from relay.formats.encode_for_host import (
    AddressNotAsciiError,
    CannotEncodeError,
    Need,
    encode_for_host,
    need_of,
    seven_bit_field,
    with_short_lines,
)
from relay.formats.read_header import parse_header, read_addresses
from relay.formats.transfer_encoding import LINE_MAX, has_line_over
from tests.support.commands import run_command
from tests.support.long_tests import long
from tests.support.tables import each_row, rows_of

MIXED = "Content-Type: multipart/mixed; boundary=b\n\n"
SIGNED = "Content-Type: multipart/signed; boundary=b\n\n--b\n{}\n--b\n\nsignature\n--b--\n"
QUOTED = "Content-Transfer-Encoding: quoted-printable\n"
BASE64 = "Content-Transfer-Encoding: base64\n"
BARE = {"eight_bit": False, "smtputf8": False}
LONG = "x" * 999


def crlf(text: str | bytes) -> bytes:
    octets = text.encode() if isinstance(text, str) else text
    return octets.replace(b"\n", b"\r\n")


def encoded(content: Content, **offered: bool) -> tuple[bytes, str]:
    offered = BARE | offered
    made = encode_for_host(content, need_of(content, **offered))
    return read_all(made.content), made.why


def longest(octets: bytes) -> int:
    return max(map(len, octets.split(b"\r\n")))


@each_row(
    "content, wanted",
    [
        (
            "Subject: a\n\nGrüße. \n.\n",
            f"Subject: a\n{QUOTED}MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\nGr=C3=BC=C3=9Fe.=20\n=2E\n",
        ),
        (
            "MIME-Version: 1.0\ncontent-transfer-encoding: 8bit\nX:  y\nContent-Type: text/html; charset=utf-8\n\nü",
            f"MIME-Version: 1.0\n{QUOTED}X:  y\nContent-Type: text/html; charset=utf-8\n\n=C3=BC\n",
        ),
        (
            "Content-Transfer-Encoding: 8bit\n"
            + MIXED
            + "--b\nContent-Type: image/png\n\nü\n--b\nX: 1\n\n  as it is \n--b--\n",
            "Content-Transfer-Encoding: 7bit\n"
            + MIXED
            + f"--b\nContent-Type: image/png\n{BASE64}\nw7w=\n--b\nX: 1\n\n  as it is \n--b--\n",
        ),
        (MIXED + "é\n--b\n\na\n--b--\né\n--b--\n", MIXED + "\n--b\n\na\n--b--\n"),
        (
            MIXED
            + "--b\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 8bit\n\nSubject: ü\nMIME-Version: 1.0\nContent-Type: text/plain\n\nü\n--b--\n",
            MIXED
            + "--b\nContent-Type: message/rfc822\nContent-Transfer-Encoding: 7bit\n\nSubject: =?utf-8?B?w7w=?=\nMIME-Version: 1.0\nContent-Type: text/plain\n"
            + QUOTED
            + "\n=C3=BC\n--b--\n",
        ),
        (
            SIGNED.format("\nascii").replace("Content-Type", "Subject: ü\nContent-Type"),
            "Subject: =?utf-8?B?w7w=?=\n" + SIGNED.format("\nascii"),
        ),
        (QUOTED + "\n=c3=bc é =é x=\n y \n", QUOTED + "\n=c3=bc =C3=A9 =3D=C3=A9 x=\n y \n"),
        (BASE64 + "\nYWJj\né\nZGVm\n", BASE64 + "\nYWJjZGVm\n"),
        (
            MIXED + "--b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; ü\n--b--\n",
            MIXED
            + f"--b\nContent-Type: message/delivery-status\n{QUOTED}\nReporting-MTA: dns; =C3=BC\n--b--\n",
        ),
        (
            MIXED + "--b\nContent-Type: text/plain; name=é\n--b\n\nx\n--b--\n",
            MIXED + "--b\nContent-Type: text/plain;\n name*=utf-8''%C3%A9\n--b\n\nx\n--b--\n",
        ),
        (
            MIXED + "--b\nX: y\nno field ü\n--b--\n",
            MIXED
            + f"--b\nX: y\n{QUOTED}Content-Type: text/plain; charset=utf-8\n\nno field =C3=BC\n--b--\n",
        ),
        ("Subject: a\n\n" + "ab " * 400 + "\n", None),
        (
            BASE64 + "\n" + "QUJD" * 300 + "\n",
            BASE64 + "\n" + ("QUJD" * 19 + "\n") * 15 + "QUJD" * 15 + "\n",
        ),
        ("Subject: a\nX: " + LONG + "\n\nb\n", "Subject: a\nX:\n " + "x" * 997 + "\n xx\n\nb\n"),
        ("X: a" + " b" * 500 + "\n\nc\n", "X: a" + " b" * 497 + "\n b b b\n\nc\n"),
        (MIXED + "--b\n\n" + LONG + "\n--b\n\n8\n--b--\n", None),
        (MIXED + "--b\n\n" + "x" * 75 + "--b\né\n--b--\n", None),
    ],
)
def test_a_content_is_encoded_as_little_as_possible(content, wanted):
    octets, why = encoded(crlf(content))
    if wanted is not None:
        assert octets == crlf(wanted)
    assert why == ("8 bit" if not content.isascii() else "long lines")
    assert octets.isascii()
    assert longest(octets) <= 998
    assert decoded_parts(octets) == decoded_parts(crlf(content)) or wanted is not None
    assert encoded(octets) == (octets, "")


@each_row(
    "value, name, address",
    [
        ("Z", "Z", ""),
        (" a Z b Z", "a Z b Z", ""),
        ("Z <a@x.test>", "Z", "a@x.test"),
        ('"a \\"Z, b" <a@x.test>', 'a "Z, b', "a@x.test"),
        ("a@x.test (Z b)", "Z b", "a@x.test"),
        ("a <a@x.test>, Z <b@x.test>", "a", "a@x.test"),
    ],
)
@pytest.mark.parametrize("letter", ["z", "ü"])
def test_no_blank_comes_into_a_text_without_one(value, name, address, letter):
    long, offered = letter * 3000, {"smtputf8": True, "eight_bit": True}
    content = f"From: {value}\nSubject: {value}\n\nx\n".replace("Z", long)
    octets, _ = encoded(crlf(content), **offered)
    assert longest(octets) <= 998
    fields = parse_header(octets)
    person = read_addresses(fields, "From")[0]
    assert (person.name, person.address) == (name.replace("Z", long), address)
    if not address:
        message = email.message_from_bytes(octets, policy=email.policy.default)
        assert message["subject"] == name.replace("Z", long)


@each_row(
    "content, status",
    [
        (SIGNED.format("\nü"), "5.6.3"),
        (SIGNED.format("Content-Type: text/plain; name=ü\n\na"), "5.6.3"),
        (SIGNED.format("Content-Type: message/rfc822\n\nSubject: a\n\nü"), "5.6.3"),
        (SIGNED.format("\n" + LONG), "5.6.0"),
        ("To: ü@x.test\n\na\n", "5.6.9"),
        (MIXED + "--b\nContent-Type: message/rfc822\n\nFrom: a <ü@x.test>\n\na\n--b--\n", "5.6.9"),
        ("Content-Type: multipart/mixed; boundary=b\n\nü\n", "5.6.3"),
        ("Content-Type: message/partial; id=1; number=1\n\nü\n", "5.6.3"),
        ("Content-Type: message/external-body\n\n" + LONG + "\n", "5.6.0"),
        ("Content-Type: multipart/mixed; boundary=ü\n\n--ü\n\na\n--ü--\n", "5.6.3"),
        (
            "".join(f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(100))
            + "\nü\n",
            "5.6.3",
        ),
        (MIXED + "--b\n\na\n" * 1100 + LONG + "\n", "5.6.0"),
    ],
)
def test_what_cannot_be_encoded_says_so(content, status):
    with pytest.raises(CannotEncodeError) as caught:
        encoded(crlf(content))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("offered", "need"),
    [
        ({}, Need(header=True, eight_bit=True)),
        ({"eight_bit": True}, Need(header=True)),
        ({"smtputf8": True}, Need(eight_bit=True)),
        ({"eight_bit": True, "smtputf8": True}, Need()),
    ],
)
def test_a_header_is_encoded_for_a_host_without_smtputf8_and_a_body_without_8bitmime(offered, need):
    content = crlf("Subject: ü\n\nö\n")
    assert need_of(content, **BARE | offered) == need
    large = LargeContent(content[:13], (MemoryOctets(content[13:]),), eight_bit=True)
    assert need_of(large, **BARE | offered) == need
    octets, _ = encoded(content, **offered)
    assert (b"=C3=B6" in octets, b"utf-8?B" in octets) == (
        need.eight_bit,
        need.header or need.eight_bit,
    )


@each_row(
    "field, wanted",
    [
        *rows_of(
            """
            Subject: a ü  ö b | Subject: a =?utf-8?B?w7wgIMO2?= b
            Subject: =?utf-8?Q?a?= é =?utf-8?Q?b?= | Subject: =?utf-8?Q?a?= =?utf-8?B?IMOpIA==?= =?utf-8?Q?b?=
            Subject:é | Subject:=?utf-8?B?w6k=?=
            To: x"é" <a@x> | To: x =?utf-8?B?w6k=?= <a@x>
            To: ü <ann@Bücher.test>, b@ü, "c d"@ü.test | To: =?utf-8?B?w7w=?= <ann@xn--bcher-kva.test>, b@xn--tda, "c d"@xn--tda.test
            To: a@x (é (ü)) | To: a@x (=?utf-8?B?w6k=?= (=?utf-8?B?w7w=?=))
            Content-Type: text/plain (é); charset=utf-8 | Content-Type: text/plain (=?utf-8?B?w6k=?=); charset=utf-8
            Received: from é (é [192.0.2.1]) by x; 1 | Received: from =?utf-8?B?w6k=?= (=?utf-8?B?w6k=?= [192.0.2.1]) by x; 1
            Message-ID: <é@x> | Message-ID: =?utf-8?B?PMOpQHg+?=
            Subject: said "Grüße an alle" | Subject: said =?utf-8?B?Ikdyw7zDn2U=?= an alle"
            List-Id: "é, ü" <l.x> | List-Id: =?utf-8?B?w6ksIMO8?= <l.x>
            """
        ),
        (b"Subject: caf\xe9 x", "Subject: =?unknown-8bit?B?Y2Fm6Q==?= x"),
        (
            'To: "Ü \\"x\\"" <a@x>, ö b<c@x>',
            "To: =?utf-8?B?w5wgIngi?= <a@x>, =?utf-8?B?w7Y=?= b<c@x>",
        ),
        (
            "Cc: é<a@x>(é) , Gruppe é: b@x;",
            "Cc: =?utf-8?B?w6k=?= <a@x>(=?utf-8?B?w6k=?=) , Gruppe\n =?utf-8?B?w6k=?=: b@x;",
        ),
        (
            'Content-Type: text/plain; name="é;\\"x.pdf"; charset=utf-8',
            "Content-Type: text/plain;\n name*=utf-8''%C3%A9%3B%22x.pdf; charset=utf-8",
        ),
        (
            "Content-Disposition: attachment; filename=" + "é" * 20,
            "Content-Disposition: attachment;\n filename*0*=utf-8''"
            + "%C3%A9" * 6
            + "%C3;\n filename*1*=%A9"
            + "%C3%A9" * 9
            + "%C3;\n filename*2*=%A9"
            + "%C3%A9" * 3,
        ),
        ('X-Note: "\\"é\\""', "X-Note: =?utf-8?B?Ilwiw6lcIiI=?="),
        (b'To: "=?iso-8859-1?q?\xf6\xf6?=" <a@x>', 'To: "=?iso-8859-1?q?=F6=F6?=" <a@x>'),
    ],
)
def test_a_field_is_encoded_where_it_may_be(field, wanted):
    octets = crlf(field + "\n" if isinstance(field, str) else field + b"\n")
    name = octets.partition(b":")[0].lower()
    assert seven_bit_field(name, octets).decode() == crlf(wanted + "\n").decode()


@each_row(
    "value",
    ["ü@x", "a <b@ü..>", "c@x, <ü@x>", '"ü"@x', "<a@x>, <ü", "g: ü@x;", "(b) ü@x", "a@x (b) , ü@x"],
)
def test_an_address_stays_or_nothing_is_sent(value):
    for name in ("From", "Resent-Cc", "Reply-To"):
        with pytest.raises(AddressNotAsciiError):
            seven_bit_field(name.lower().encode(), f"{name}: {value}\r\n".encode())


# -- generated messages

words = st.text("ab é=.-\u20ac ", max_size=40).map(str.encode)
lines = st.lists(
    words | st.binary(max_size=30) | st.just(b"--b0") | st.just(b"y" * 1500), max_size=6
)
bodies = lines.map(lambda some: b"\r\n".join(each.translate(None, b"\r\n\0") for each in some))
subjects = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=200)
types = st.sampled_from(
    ["", "text/plain; charset=utf-8", "text/html", "application/pdf", "image/png"]
)


@st.composite
def leaves(draw: st.DrawFn) -> bytes:
    body, kind = draw(bodies), draw(types)
    coding = draw(st.sampled_from(["", "8bit", "binary", "7bit", "base64", "quoted-printable"]))
    if coding == "base64":
        body = base64.b64encode(body)
    elif coding == "quoted-printable":
        body = crlf(encodestring(body).replace(b"\r", b"")) if b"\n" not in body else b""
    fields = [f"Content-Type: {kind}\r\n"] * bool(kind)
    fields += [f"Content-Transfer-Encoding: {coding}\r\n"] * bool(coding)
    return "".join(fields).encode() + b"\r\n" + body


def multipart(parts: list[bytes]) -> bytes:
    boundary = b"c%d" % sum(map(len, parts))
    header = b'Content-Type: multipart/mixed; boundary="%b"\r\n\r\n' % boundary
    return (
        header
        + b"".join(b"--%b\r\n%b\r\n" % (boundary, one) for one in parts)
        + b"--%b--\r\n" % boundary
    )


def attached(message: bytes) -> bytes:
    return (
        b"Content-Type: message/rfc822\r\n\r\nSubject: attached\r\nMIME-Version: 1.0\r\n" + message
    )


entities = st.recursive(
    leaves(),
    lambda some: st.lists(some, min_size=1, max_size=3).map(multipart) | some.map(attached),
    max_leaves=6,
)


def parts_of(octets: bytes) -> list[Message]:
    return list(email.message_from_bytes(octets, policy=email.policy.compat32).walk())


def decoded_parts(octets: bytes) -> list[bytes | None]:
    return [part.get_payload(decode=True) for part in parts_of(octets)]


@given(entities, subjects)
@settings(max_examples=60, deadline=None)
def test_generated_messages_are_7_bit_and_each_part_decodes_to_the_same(entity, subject):
    content = f"Subject: {subject}\r\nMIME-Version: 1.0\r\n".encode() + entity + b"\r\n"
    octets, why = encoded(content)
    assert octets.isascii()
    assert longest(octets) <= 998
    assert bool(why) == (octets != content)
    assert decoded_parts(octets) == decoded_parts(content)
    had = sum(len(part.defects) for part in parts_of(content))
    assert sum(len(part.defects) for part in parts_of(octets)) <= had
    read = email.message_from_bytes(octets, policy=email.policy.default)
    assert " ".join(str(read["Subject"]).split()) == " ".join(subject.split())


# -- hostile contents


@each_row(
    "of_size",
    [
        lambda n: b"\r\n" + (b"y" * 1500 + b"\r\n") * (n // 1500),
        lambda n: b"Subject: " + "é".encode() * (n // 2) + b"\r\n\r\n",
        lambda n: b"To: " + "é,".encode() * (n // 8) + b"\r\n\r\n",
        lambda n: b"To: " + b"(" * n + "é".encode() + b"\r\n\r\n",
        lambda n: b"Content-Type: a/b" + b'; x="' * (n // 6) + "é".encode() + b"\r\n\r\n",
        lambda n: b"X: " + b" " * n + "é".encode() + b"\r\n\r\n",
        lambda n: b"Content-Transfer-Encoding: base64\r\n\r\n" + b"\xff!=" * (n // 3) + b"\r\n",
        lambda n: (
            b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=\xff" * (n // 2) + b"\r\n"
        ),
    ],
)
def test_hostile_contents_take_linear_time(of_size):
    took_s = []
    for size in (20_000, 120_000):
        content = of_size(size)
        started_s = time.process_time()
        octets, _ = encoded(content)
        took_s.append(time.process_time() - started_s)
        assert octets.isascii()
        assert longest(octets) <= 998
    assert took_s[1] < 16 * max(took_s[0], 0.01)


_IN_150_MIB = """
import resource, sys
from pathlib import Path
from relay.base.files import FileOctets
from relay.base.message.content import LargeContent, blocks
from relay.formats.encode_for_host import encode_for_host, need_of

def most() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

path = Path(sys.argv[1])
content = LargeContent(sys.argv[2].encode(), (FileOctets(path, 0, path.stat().st_size),), True, True)
before = most()
made = encode_for_host(content, need_of(content, eight_bit=False, smtputf8=False))
assert all(one.isascii() for one in blocks(made.content))
print(most() - before, made.content.size)
"""


@long
@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/pdf"])
def test_150_mib_take_less_than_20_mb_more_memory(kind, tmp_path):
    body = tmp_path / "body"
    with body.open("wb") as file:
        file.write(b"\r\n")
        for _ in range(150):
            file.write(("Grüße " * 2000 + "\r\n").encode() * (1024 * 1024 // 16002))
    done = run_command([sys.executable, "-c", _IN_150_MIB, body, f"Content-Type: {kind}\r\n"])
    assert done.returncode == 0, done.stderr
    more, size = map(int, done.stdout.split())
    assert size > body.stat().st_size
    assert more < 20_000_000


@pytest.mark.parametrize(("line", "is_long"), [(998, False), (999, True), (3000, True)])
def test_a_long_line_is_found_wherever_blocks_are_cut(line, is_long):
    content = b"a\r\n" * 300 + b"x" * line + b"\r\n" + b"b\r\n" * 300
    assert has_line_over(content, LINE_MAX) == is_long
    for cut in range(700, len(content) - 700, 7):
        first, second = content[:cut], content[cut:]
        begun = len(first) - first.rfind(b"\n") - 1
        assert (has_line_over(first, LINE_MAX) or has_line_over(second, LINE_MAX, begun)) == is_long


def test_a_field_has_no_blank_line_whatever_is_in_it():
    for line in (
        b"x" * 3000,
        b"X: a" + b" " * 3000 + b"b " * 600,
        b"  " + b"x" * 2000,
        b" " * 2000,
        b"X: " + b"\t" * 1500,
    ):
        made = with_short_lines(line + b"\r\n")
        assert longest(made) <= 998
        assert all(one.strip() for one in made.split(b"\r\n")[:-1])
