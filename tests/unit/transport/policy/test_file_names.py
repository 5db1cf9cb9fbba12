"""Spellings of one file name: what a mail program reads as v.bat, the shipped rule refuses.

Each is read so by mailparser 3.14, postal-mime 4.0, Python's email or ruby-mail 2.7, but for the
uuencoded files and encoded parts that only programs of users read.
"""

import base64
import quopri
import time
from binascii import b2a_uu
from itertools import product

import pytest

from relay.base.message.envelope import Source
from relay.base.message.header import ParsedContent
from relay.base.settings.environment import shipped
from relay.transport.policy.message_parts import TooManyPartsError, message_parts
from relay.transport.policy.rule_files import load_rules
from relay.transport.policy.rule_tests import examined_message, overall_verdict
from relay.transport.policy.rules import OverallVerdict
from tests.support.tables import each_row

# Also as Content-Type, with name.
DISPOSITIONS = r"""
attachment; filename=v.bat
attachment; filename="v.bat"
attachment; filename="v.bat" (x)
attachment; filename=(x)"v.bat"
attachment; filename=(x) v.bat
attachment; filename= (x) "v.bat"
attachment; filename=v.bat(x)
attachment; filename (x) = v.bat
attachment; (x) filename="v.bat"
attachment (x); filename="v.bat"
(x) attachment; filename="v.bat"
attachment; filename="(x)v.bat"
attachment; filename=v".bat"
attachment; filename="v".bat
attachment; filename="v"".bat"
attachment; filename="v" ".bat"
attachment; filename="v.b\at"
attachment; filename="v.bat\"
attachment; filename=v\.bat
attachment; filename="v.bat
attachment; filename=v.bat"
attachment; filename = "v.bat"
attachment; filename =v.bat
attachment;filename=v.bat
attachment; FILENAME=v.bat
attachment filename=v.bat
attachment filename="v.bat"
attachment, filename=v.bat
attachment; size=3 filename="v.bat"
attachment; name="a.txt" filename="v.bat"
attachment; filename="v.bat" size=3
attachment; filename=v.bat size=3
filename=v.bat
filename="v.bat"
; filename=v.bat
inline; filename=v.bat
x; filename=v.bat
attachment; filename=v.bat;
attachment; filename=v.bat ;
attachment; filename=v.bat.
attachment; filename="v.bat ."
attachment; filename="v.bat "
attachment; filename=" v.bat"
attachment; filename="a/v.bat"
attachment; filename="a\\v.bat"
attachment; filename="C:\v.bat"
attachment; filename=a.txt; filename=v.bat
attachment; filename=v.bat; filename=a.txt
attachment; filename=a.txt; filename*=v.bat
attachment; filename=a.txt; filename*=utf-8''v.bat
attachment; filename*=utf-8''a.txt; filename=v.bat
attachment; filename*=utf-8''v%2Ebat
attachment; filename*=utf-8'en'v.bat
attachment; filename*="utf-8''v.bat"
attachment; filename*=utf-8'v.bat
attachment; filename*=''v.bat
attachment; filename*=x-unknown''v.bat
attachment; filename*=utf-16le''v%00.%00b%00a%00t%00
attachment; filename*=utf-16''%FE%FF%00v%00.%00b%00a%00t
attachment; filename*=utf-7''v%2BAC4-bat
attachment; filename*=iso-2022-jp''v.bat
attachment; filename*0=v.; filename*1=bat
attachment; filename*1=bat; filename*0=v.
attachment; filename*0="v."; filename*1="bat"
attachment; filename*0*=utf-8''v.; filename*1*=b%61t
attachment; filename*0*=utf-8''v%2E; filename*1=bat
attachment; filename*0=v; filename*1*=%2Ebat
attachment; filename*00=v.; filename*01=bat
attachment; filename*1=v.; filename*2=bat
attachment; filename*0=v.; filename*2=bat
attachment; filename*0*=utf-8''v; filename*0=.bat
attachment; filename*=utf-8''v; filename*1=.bat
attachment; filename*0="v.b" filename*1="at"
attachment; filename*0=v%2E; filename*1=bat
attachment; filename*0 = v.; filename*1 = bat
attachment; filename="=?utf-8?Q?v=2Ebat?="
attachment; filename==?utf-8?Q?v=2Ebat?=
attachment; filename="=?utf-8?B?di5iYXQ=?="
attachment; filename="=?utf-8?Q?v?= =?utf-8?Q?.bat?="
attachment; filename="=?utf-8?Q?v?= .bat"
attachment; filename="=?utf-8?Q?v?=.bat"
attachment; filename="x=?utf-8?Q?v=2Ebat?="
attachment; filename="=?utf-16?B?/v8AdgAuAGIAYQB0?="
attachment; filename="=?utf-7?Q?v+AC4-bat?="
attachment; filename="=?x-unknown?Q?v=2Ebat?="
attachment; filename==?utf-8?Q?"v.bat"?=
=?utf-8?Q?attachment;_filename=3Dv.bat?=
attachment; filename*0="=?utf-8?Q?v=2E"; filename*1="bat?="
attachment; filename*=utf-8''=?utf-8?Q?v=2Ebat?=
attachment; name=v.bat
attachment; filename=;filename=v.bat
attachment; filename=""; filename="v.bat"
attachment; a="; filename=v.bat
attachment; a="\"; filename=v.bat
attachment; a=\"; filename="v.bat"
attachment; a=(; filename=v.bat
attachment; a=(";); filename=v.bat
attachment; a=(\); filename=v.bat
attachment; (a;b) filename=v.bat
attachment; a='; filename=v.bat; b='
attachment; filename=v.bat; =
attachment;; filename=v.bat
attachment; filename=<v.bat>
attachment; filename=v.bat, size=3
attachment; filename=v.bat/
attachment; filename=v.bat)
attachment; filename=(v.bat
attachment; filename= v.bat x
attachment; filename='v.bat'
attachment; filename*0*=utf-8''v%2; filename*1*=Ebat
attachment; filename*0*=utf-8''v%; filename*1*=2Ebat
attachment; filename="=?utf-8?Q?v=2?= =?utf-8?Q?Ebat?="
attachment; filename="=?utf-8?B?di5iY?= =?utf-8?B?XQ=?="
attachment; filename="=?utf-8?B?di4=?= =?utf-8?B?YmF0?="
attachment; filename*=utf-8''%3D%3Futf-8%3FQ%3Fv%3D2Ebat%3F%3D
attachment; filename*=utf-8''%3D%3Futf-8%3FB%3Fdi5iYXQ%3D%3F%3D
attachment; filename*0*=utf-8''%3D%3Futf-8%3FQ%3Fv; filename*1*=%3D2Ebat%3F%3D
attachment; filename*=utf-8''a.txt; filename*0=v.bat
attachment; filename*0*=utf-8''a.txt; filename*=utf-8''v.bat
attachment; filename="=?utf-8?Q?=22v.bat=22?="
attachment; filename*=utf-8''%22v.bat%22
attachment; filename*a=v.bat
attachment; filename*-1=v.bat
attachment; filename="v.bat::$DATA"
attachment; filename=v.bat::$DATA
attachment; filename*=utf-8''v.bat%20%3A%3A%24Index_Allocation
attachment; filename="=?utf-8?Q?v.bat.=3A=3A=24DATA?="
attachment; filename="<v.bat>"
attachment; filename*=utf-8''%3Cv.bat%3E
attachment; filename="v.bat?"
attachment; filename="v.bat%00.txt"
attachment; filename*=utf-8''v.bat%00.txt
attachment; filename*0*=utf-8''v.ba; filename*1*=t%00.txt
attachment; filename*=utf-8''v.bat%0D%0A.txt
attachment; filename="=?utf-8?Q?v.bat=00.txt?="
attachment; filename="=?utf-8?B?di5iYXQALnR4dA==?="
""".strip("\n").split("\n")
OTHERS = [
    'attachment; filename="v.b\u200bat"',
    'attachment; filename="v\u2024bat"',
    'attachment; filename="v.bat\xa0"',
    'attachment; filename="v.bat\udca0"',
    "attachment;\xa0filename\xa0=\xa0v.bat",
    "attachment;\r\n filename=v.bat",
    'attachment;\r\n\tfilename="v.bat"',
    "attachment; filename=\r\n v.bat",
    'attachment; filename="\r\n v.bat"',
    'attachment; filename\r\n =\r\n "v.bat"',
    'attachment; filename="=?utf-8?Q?v=2E?=\r\n =?utf-8?Q?bat?="',
    'attachment; filename="v.bat\r\n"',
    'attachment; filename="v.bat\x00"',
    'attachment; filename="v\x00.bat"',
    'attachment; filename="v.bat\x00.txt"',
    'attachment; filename="10% f\udcfcr v.bat"',
    "attachment;\r\n \r\n filename=v.bat",
    "attachment\r\n ;filename=v.bat",
    "attachment;\r filename=v.bat",
    "attachment;\n filename=v.bat",
    "attachment; filename=v.bat\x0b",
    'attachment; filename="v.bat\t"',
    "attachment;\r\n (x)\r\n filename*0=v.\r\n ;filename*1=bat",
]


def part(*fields: str, body: str = "x") -> str:
    return "\r\n".join((*fields, "", body))


def mixed(inner: str, boundary: str = "b", kind: str = "multipart/mixed; boundary=b") -> str:
    return part(f"Content-Type: {kind}", body=delimited(inner, boundary))


def delimited(inner: str, boundary: str) -> str:
    return f"--{boundary}\r\n{inner}\r\n--{boundary}--\r\n"


def coded(kind: str, body: str, *, encoding: str = "base64") -> str:
    octets = base64.encodebytes(body.encode()).decode()
    return part(f"Content-Type: {kind}", f"Content-Transfer-Encoding: {encoding}", body=octets)


def quoted(kind: str, body: str) -> str:
    text = body.replace("=", "=3D").replace("--", "=2D=2D")
    fields = (f"Content-Type: {kind}", "Content-Transfer-Encoding: quoted-printable")
    return part(*fields, body=text)


ATTACHED = "Content-Disposition: attachment"
BAT = part(f"{ATTACHED}; filename=v.bat")
INNER = mixed(BAT)
UUENCODED = "hi\r\nbegin 644 v.bat\r\n$=&5S=```\r\n`\r\nend\r\n"
IN_BOUNDARY = delimited(BAT, "c")
STRUCTURES = {
    "two dispositions": part(f"{ATTACHED}; filename=a.txt", f"{ATTACHED}; filename=v.bat"),
    "two types": part("Content-Type: a/b; name=a.txt", "Content-Type: a/b; name=v.bat"),
    "both": part("Content-Type: a/b; name=v.bat", f"{ATTACHED}; filename=a.txt"),
    "a blank before the colon": part("Content-Disposition : attachment; filename=v.bat"),
    "a fold before the colon": part("Content-Disposition\r\n : attachment; filename=v.bat"),
    "no-break spaces around a name": part(
        "\xa0Content-Disposition\udca0 : attachment; filename=v.bat"
    ),
    "a location": part("Content-Location: v.bat", ATTACHED),
    "a fold without a blank": part(f"{ATTACHED};\r\nfilename=v.bat", "X: y"),
    "message in base64": coded("message/rfc822", INNER),
    "message, encoding in quotes": coded("message/rfc822", INNER, encoding='"base64"'),
    "message, encoding after a comment": coded("message/rfc822", INNER, encoding="(x) BASE64"),
    "message in quoted-printable": quoted("message/rfc822", INNER),
    "message in base64 twice": coded("message/rfc822", coded("message/rfc822", INNER)),
    "international message in base64": coded("message/global", INNER),
    "fragment": part("Content-Type: message/partial; number=1; total=2; id=x", body=INNER),
    "multipart in base64": coded("multipart/mixed; boundary=c", IN_BOUNDARY),
    "multipart in quoted-printable": quoted("multipart/mixed; boundary=c", IN_BOUNDARY),
    **{
        f"message in {one}": coded("message/rfc822", INNER, encoding=one)
        for one in ("x-base64", "base64,7bit", "base64\xa0")
    },
    **{
        f"message/{one}": part(f"Content-Type: message/{one}", body=INNER)
        for one in ("x", "http", "feedback-report", "disposition-notification", "external-body")
    },
    "a blank before a name": part(" Content-Type: a/b; name=v.bat"),
    "a blank before a boundary": part(
        " Content-Type: multipart/mixed; boundary=c", body=IN_BOUNDARY
    ),
    "a blank before a message": part(" Content-Type: message/rfc822", body=INNER),
    "uuencode of mode 100644": part("X: y", body=UUENCODED.replace("644", "100644")),
    "uuencode in quotes": part("X: y", body=UUENCODED.replace("v.bat", '"v.bat"')),
    "uuencode in HTML": part("Content-Type: text/html", body=UUENCODED),
    "uuencode in a file": part("Content-Type: application/octet-stream", body=UUENCODED),
    "uuencode without a name": part(
        ATTACHED, "Content-Transfer-Encoding: x-uuencode", body=UUENCODED
    ),
    "uuencode in a text": part("Content-Type: text/plain", body=UUENCODED),
    "uuencode in base64": coded("text/plain", UUENCODED),
    "only hyphens": mixed(BAT, "", "multipart/mixed"),
    "only hyphens, boundary empty": mixed(BAT, "", 'multipart/mixed; boundary=""'),
}
BOUNDARIES = (
    r"""
multipart/mixed; boundary=c (x)
multipart/mixed; boundary=(x)c
multipart/mixed; boundary='c'
multipart/mixed; boundary=other; boundary=c
multipart/mixed; boundary=c; boundary=other
multipart/mixed; boundary*=utf-8''c
multipart/mixed; boundary*0=c
multipart/mixed; boundary=other; boundary*=utf-8''c
multipart/mixed; boundary=c; boundary*=utf-8''other
multipart/mixed boundary=c
multipart/mixed; boundary="c"x
multipart/mixed; boundary="\c"
multipart/mixed; boundary=\c
multipart/mixed; boundary="c
multipart/mixed; boundary="c "
multipart/mixed; boundary = "c"
multipart / mixed; boundary=c
"multipart/mixed"; boundary=c
(x) multipart/mixed; boundary=c
multipart(x)/mixed; boundary=c
multipart; boundary=c
; boundary=c
multipart/mixed, boundary=c
multipart/x-odd; boundary=c
multipart/mixed; boundary="c\xa0"
multipart/mixed; boundary=c\udca0
multipart/mixed;\xa0boundary\xa0=c
multipart/mixed; boundary="=?utf-8?Q?c?="
=?utf-8?Q?multipart/mixed;_boundary=3Dc?=
""".strip("\n")
    .replace("\\xa0", "\xa0")
    .replace("\\udca0", "\udca0")
    .split("\n")
)
RULES = load_rules(shipped("policies"))


def is_refused(inner: str) -> bool:
    return is_refused_whole(mixed(inner))


def is_refused_whole(text: str) -> bool:
    content = ("Subject: s\r\n" + text).encode("utf-8", "surrogateescape")
    local = {"in.test"}
    mail = examined_message(
        "a@x.test", ["b@in.test"], content, source=Source.SMTP, local_domains=local
    )
    return overall_verdict(RULES.evaluate(mail)) is OverallVerdict.REJECT


@each_row("disposition", [*DISPOSITIONS, *OTHERS])
def test_a_program_is_refused_however_its_name_is_written(disposition):
    assert is_refused(part("Content-Type: a/b", f"Content-Disposition: {disposition}"))
    kind = disposition.replace("filename", "name").replace("attachment", "a/b", 1)
    assert is_refused(part(f"Content-Type: {kind}"))


@each_row("structure", STRUCTURES)
def test_a_program_is_refused_wherever_it_is(structure):
    assert is_refused(STRUCTURES[structure])


@pytest.mark.parametrize("name", ["\xa0Content-Type", "Content-Type\xa0", "Content-Type\r\n "])
def test_a_program_is_refused_however_the_name_of_a_field_is_written(name):
    assert is_refused_whole(
        mixed(BAT).replace("Content-Type:", f"{name}:").replace("\r\n\r\n", "\r\nX: y\r\n\r\n", 1)
    )


@pytest.mark.parametrize("kind", ["text/plain; boundary=b", "text/html; BOUNDARY=b", "text/x"])
def test_a_text_with_a_boundary_is_read_as_parts(kind):
    assert is_refused_whole(mixed(BAT, kind=kind)) == ("=b" in kind)


@each_row("kind", BOUNDARIES)
def test_a_program_is_refused_however_its_boundary_is_written(kind):
    assert is_refused(mixed(BAT, "c", kind))


@pytest.mark.parametrize("line", [r"a\bc", "abc"])
@pytest.mark.parametrize("value", [r'"a\bc"', r"a\bc; x=y"])
def test_a_backslash_in_a_boundary_may_stay_or_not(value, line):
    assert is_refused(mixed(BAT, line, f"multipart/mixed; boundary={value}"))


PROGRAM = "MZ".ljust(0x3C, "\0") + "\x60\0\0\0\r\n--b words\r\n\r\n".ljust(0x24, "\0") + "PE\0\0"


def test_a_line_with_words_after_a_boundary_may_also_be_content():
    assert is_refused(part(f"{ATTACHED}; filename=a.pdf", body=PROGRAM))
    assert not is_refused(part(f"{ATTACHED}; filename=a.pdf", body=PROGRAM.replace("PE", "P ")))


def uuencoded(octets: bytes) -> bytes:
    lines = [b2a_uu(octets[at : at + 45]) for at in range(0, len(octets), 45)]
    return b"begin 644 a.eml\n" + b"".join(lines) + b"`\nend\n"


ENCODERS = {
    "7bit": bytes,
    "base64": base64.encodebytes,
    "quoted-printable": quopri.encodestring,
    "x-uuencode": uuencoded,
}
MESSAGES = ("message/rfc822", "message/global", "multipart/digest")
SIZES = [
    *product(MESSAGES, ENCODERS, (1_000, 100_000)),
    *product(MESSAGES[:1], ENCODERS, (500_000,)),
]


@each_row("kind, encoding, size", SIZES)
def test_a_forwarded_message_of_any_size_is_read_in_any_encoding(kind, encoding, size):
    started = time.process_time()
    for attached, expected in ((BAT, True), (part(f"{ATTACHED}; filename=a.pdf"), False)):
        texts = "\r\n--b\r\n".join(["\r\n" + "lorem ipsum dolor\r\n" * (size // 19), attached])
        inner = "From: x@y.test\r\n" + mixed(texts)
        coded = ENCODERS[encoding](inner.replace("\r\n", "\n").encode()).replace(b"\n", b"\r\n")
        fields = [f"Content-Transfer-Encoding: {encoding}"]
        fields += [f"Content-Type: {kind}; name=a.eml"] if kind.startswith("message") else []
        outer = kind if kind.startswith("multipart") else "multipart/mixed"
        one = part(*fields, body=coded.decode())
        assert is_refused_whole(mixed(one, "c", f"{outer}; boundary=c")) == expected
    assert time.process_time() - started < 0.5 + size / 10**6


@each_row(
    "name",
    [
        "bat.pdf",
        "v.bat.pdf",
        "v.bat: notes.pdf",
        "cost::$5.pdf",
        "<v.bat>.pdf",
        "v.bat 10:30.pdf",
        "Invoice(1).pdf",
        "a b.pdf",
        "it's.pdf",
        "50%.pdf",
        "=?utf-8?Q?v=2Epdf?=",
    ],
)
def test_a_document_passes(name):
    assert not is_refused(part(f'{ATTACHED}; filename="{name}"; size=3; x="v.bat"'))
    assert not is_refused(part("Content-Type: text/plain", body="begin again 644 v.bat"))
    assert not is_refused(part("Content-Location: https://example.com", f"{ATTACHED}; filename=x"))


def deep(times: int) -> str:
    inner = BAT
    for _ in range(times):
        inner = quoted("message/rfc822", inner)
    return inner


HOSTILE = {
    "an encoding in an encoding": deep(50),
    "names": part(*[f"{ATTACHED}; filename={'a ' * 4000}"] * 20),
    "names without semicolons": part(f"{ATTACHED}; {'name=(a ' * 1000}"),
    "names in several ways": "\r\n--b\r\n".join(
        part(f"Content-Type: a/b; x={at}; " + ("name=" + "%=?=" * 40) * 47) for at in range(60)
    ),
    "comments": part(f"{ATTACHED}; name={'(' * 1000}{')' * 1000}"),
    "uuencode without end": part("X: y", body="begin 644 a\r\n" + "M" * 500_000),
    "many uuencoded files": part("X: y", body="begin 644 a\r\n" * 25_000),
    "encoded messages": "\r\n--b\r\n".join([coded("message/rfc822", INNER)] * 900),
    "boundaries": "".join(
        f"--b{at}\r\nContent-Type: multipart/x; boundary=b{at + 1}; boundary=(c) d\r\n\r\n"
        for at in range(40)
    )
    + "x" * 500_000,
}


@each_row("kind", HOSTILE)
def test_hostile_parts_take_linear_time(kind):
    first = "Content-Type: multipart/x; boundary=b0\r\n" if kind == "boundaries" else ""
    content = (first + mixed(HOSTILE[kind])).encode()
    started = time.process_time()
    try:
        is_read = bool(message_parts(ParsedContent.of(content)))
    except TooManyPartsError:
        is_read = False
    too_many = ("an encoding in an encoding", "boundaries", "encoded messages")
    assert is_read != (kind in ("names", "names in several ways", *too_many))
    assert time.process_time() - started < 4
