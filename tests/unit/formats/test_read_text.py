"""Texts of many mail programs: what Relay shows, what other programs show, and which is right.

Mailparser 3.14 and postal-mime 4.0 are from npm, Python is `email` with its default policy.
"""

import email
import email.policy

from relay.base.message.content import as_octets
from relay.base.message.header import Header, ParsedContent, header_section
from relay.formats import headers
from relay.formats.read_mime import read_mime, read_parts
from relay.front_door.pages.content import read_content
from relay.store.mailbox.index.content_index import text_of
from relay.transport.policy.body_text import body_text
from relay.transport.policy.folding import folded
from relay.transport.policy.message_parts import message_parts
from tests.support.tables import each_row

GRUESSE, PRIVET = "Grüße".encode("latin-1"), "Привет".encode("koi8-r")
LOST, RUSSIAN_LOST = "Gr\ufffd\ufffde", "\ufffd" * 6
ERROR = None  # Python raises
WHATWG = "WHATWG Encoding"
HTTP_EQUIV = b"<meta http-equiv=Content-Type content='text/html; charset=koi8-r'>"
# type, octets of the body; Relay; Python, mailparser, postal-mime; which is right, and why
BODIES = {
    "gb2312": (
        b"text/plain; charset=gb2312",
        b"\xe9F\xbb\xf9",
        "镕基",
        ("\ufffdF基", "镕基", "镕基"),
        WHATWG,
    ),
    "ks_c_5601-1987": (
        b"text/plain; charset=ks_c_5601-1987",
        b"\x8cc\xb9\xe6\xb0\xa2\xc7\xcf",
        "똠방각하",
        ("\ufffdc방각하", "똠방각하", "\x8cc방각하"),
        WHATWG,
    ),
    "NEC in iso-2022-jp": (
        b"text/plain; charset=iso-2022-jp",
        b"\x1b$B-!\x1b(B",
        "①",
        ("\ufffd", "①", "①"),
        WHATWG,
    ),
    "NEC in euc-jp": (
        b"text/plain; charset=euc-jp",
        b"\xad\xa1",
        "①",
        ("\ufffd\ufffd", "①", "①"),
        WHATWG,
    ),
    "IBM in shift_jis": (
        b"text/plain; charset=shift_jis",
        b"\xfb\xfc\x87\x40",
        "髙①",
        ("\ufffd\ufffd\ufffd@", "髙①", "髙①"),
        WHATWG,
    ),
    "euro in big5": (
        b"text/plain; charset=big5",
        b"\xa3\xe1\xa1E",
        "€‧",
        ("\ufffd寣E", "€‧", "€‧"),
        WHATWG,
    ),
    "euro in gbk": (b"text/plain; charset=gbk", b"\x80", "€", ("\ufffd", "€", "€"), WHATWG),
    "iso-8859-1": (
        b"text/plain; charset=iso-8859-1",
        b"\x93q\x94 \x80",
        "“q” €",
        ("\x93q\x94 \x80", "“q” €", "\x93q\x94 \x80"),
        WHATWG,
    ),
    "hole in windows-1252": (
        b"text/plain; charset=windows-1252",
        b"a\x81b",
        "a\x81b",
        ("a\ufffdb", "a\ufffdb", "a\x81b"),
        WHATWG,
    ),
    "UTF-8 as us-ascii": (
        b"text/plain; charset=us-ascii",
        "Grüße".encode(),
        "Grüße",
        ("Gr" + "\ufffd" * 4 + "e", "Grüße", "GrÃ¼Ã\x9fe"),
        "ASCII has seven bits: UTF-8 if valid",
    ),
    "8 bits as us-ascii": (
        b"text/plain; charset=us-ascii",
        GRUESSE,
        "Grüße",
        (LOST, LOST, "Grüße"),
        "else windows-1252",
    ),
    "UTF-8 without charset": (
        b"text/plain",
        "Grüße".encode(),
        "Grüße",
        ("Gr" + "\ufffd" * 4 + "e", "Grüße", "Grüße"),
        "RFC 6532",
    ),
    "8 bits without charset": (
        b"text/plain",
        GRUESSE,
        "Grüße",
        (LOST, LOST, LOST),
        "the default of browsers",
    ),
    "comments": (
        b"text/plain; charset=(c) koi8-r (d)",
        PRIVET,
        "Привет",
        ("Привет", RUSSIAN_LOST, "ðÒÉ\xd7ÅÔ"),
        "RFC 2045 5.1",
    ),
    "wrong quotes": (
        b"text/plain; charset='koi8-r'",
        PRIVET,
        "Привет",
        (RUSSIAN_LOST, "Привет", "ðÒÉ\xd7ÅÔ"),
        "what was meant",
    ),
    "extended": (
        b"text/plain; charset*=us-ascii'en'koi8-r",
        PRIVET,
        "Привет",
        ("Привет", "Привет", "Привет"),
        "RFC 2231 4",
    ),
    "mark": (
        b"text/plain; charset=utf-8",
        b"\xef\xbb\xbfa",
        "a",
        ("\ufeffa", "a", "a"),
        "WHATWG Encoding 6",
    ),
    "mark in another": (
        b"text/plain; charset=iso-8859-1",
        b"\xef\xbb\xbf\xc3\xbc",
        "ü",
        ("ï»¿Ã¼", "ï»¿Ã¼", "ï»¿Ã¼"),
        "WHATWG Encoding 6",
    ),
    "UTF-16 mark": (
        b"text/plain",
        b"\xff\xfe\xfc\0",
        "ü",
        ("\ufffd\ufffd\ufffd\0", "\ufffd\ufffd\ufffd\0", "\ufffd\ufffd\ufffd\0"),
        "WHATWG Encoding 6",
    ),
    "unknown": (
        b"text/plain; charset=klingon",
        GRUESSE,
        "Grüße",
        (ERROR, LOST, "Grüße"),
        "as without a charset",
    ),
    "idna": (
        b"text/plain; charset=idna",
        b"xn--bcher-kva",
        "xn--bcher-kva",
        (ERROR, "xn--bcher-kva", "xn--bcher-kva"),
        "no encoding of WHATWG",
    ),
    "cp850": (
        b"text/plain; charset=cp850",
        b"Gr\x81\xe1e",
        "Grüße",
        ("Grüße", "Grüße", "Gr\x81áe"),
        "mail programs have it",
    ),
    "utf-7": (
        b"text/plain; charset=utf-7",
        b"Gr+APw-",
        "Grü",
        ("Grü", "Gr+APw-", "Gr+APw-"),
        "RFC 2152, in old mail",
    ),
    "not UTF-8": (
        b"text/plain; charset=utf-8",
        GRUESSE,
        LOST,
        (LOST, LOST, LOST),
        "WHATWG: these octets alone",
    ),
    "UTF-8 as shift_jis": (
        b"text/plain; charset=shift_jis",
        "請Ö".encode(),
        "請Ö",
        ("隲凝\ufffd", "隲凝\ufffd", "隲凝\ufffd"),
        "it is all valid UTF-8",
    ),
    "meta": (
        b"text/html",
        b"<meta charset=iso-8859-1>" + GRUESSE,
        "<meta charset=iso-8859-1>Grüße",
        (f"<meta charset=iso-8859-1>{LOST}",) * 3,
        "HTML 13.2.3.2",
    ),
    "meta http-equiv": (
        b"text/html",
        HTTP_EQUIV + PRIVET,
        HTTP_EQUIV.decode() + "Привет",
        (HTTP_EQUIV.decode() + RUSSIAN_LOST,) * 3,
        "HTML 13.2.3.2",
    ),
    "meta in a comment": (
        b"text/html",
        b"<!--<meta charset=koi8-r>-->" + GRUESSE,
        "<!--<meta charset=koi8-r>-->Grüße",
        ("<!--<meta charset=koi8-r>-->" + LOST,) * 3,
        "HTML 13.2.3.2",
    ),
    "meta too late": (
        b"text/html",
        b" " * 1024 + b"<meta charset=koi8-r>" + GRUESSE,
        " " * 1024 + "<meta charset=koi8-r>Grüße",
        (" " * 1024 + f"<meta charset=koi8-r>{LOST}",) * 3,
        "1,024 octets",
    ),
    "meta after a charset": (
        b"text/html; charset=windows-1252",
        b"<meta charset=koi8-r>" + GRUESSE,
        "<meta charset=koi8-r>Grüße",
        ("<meta charset=koi8-r>Grüße",) * 3,
        "HTML 13.2.3.2",
    ),
}
# value of Subject, charset of the body; Relay; Python, mailparser, postal-mime; which is right
SUBJECTS = {
    "gb2312": (b"=?gb2312?B?6Ua7+Q==?=", b"", "镕基", ("\ufffdF基", "镕基", "镕基"), WHATWG),
    "iso-8859-1": (
        b"=?iso-8859-1?Q?=93q=94_=80?=",
        b"",
        "“q” €",
        ("\x93q\x94 \x80", "“q” €", "\x93q\x94 \x80"),
        WHATWG,
    ),
    "NEC": (
        b"=?iso-2022-jp?B?GyRCLSEbKEI=?=",
        b"",
        "①",
        ("=?iso-2022-jp?B?GyRCLSEbKEI=?=", "①", "①"),
        WHATWG,
    ),
    "unknown": (
        b"=?klingon?Q?Gr=FC=DFe?=",
        b"",
        "Grüße",
        (LOST, LOST, "Grüße"),
        "as without a charset",
    ),
    "raw in the body's": (
        PRIVET,
        b"koi8-r",
        "Привет",
        (RUSSIAN_LOST,) * 3,
        "as its author wrote the body",
    ),
    "raw UTF-8": ("Grüße".encode(), b"iso-8859-1", "Grüße", ("Grüße",) * 3, "RFC 6532"),
    "raw, the body in UTF-8": (GRUESSE, b"utf-8", "Grüße", (LOST,) * 3, "windows-1252"),
    "raw and a word": (
        GRUESSE + b" =?utf-8?q?=C3=BC?=",
        b"",
        "Grüße ü",
        (f"{LOST} ü",) * 3,
        "windows-1252",
    ),
    "raw like a mark": (
        b"\xff\xfea",
        b"iso-8859-1",
        "ÿþa",
        ("\ufffd\ufffda",) * 3,
        "headers have no marks",
    ),
}


def with_body(kind, octets):
    return b"Content-Type: " + kind + b"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + octets


def with_subject(value, charset):
    kind = b"Content-Type: text/plain; charset=" + charset + b"\r\n" if charset else b""
    return b"Subject: " + value + b"\r\n" + kind + b"\r\nx"


@each_row("kind, octets, shown, others, why", BODIES.values())
def test_a_body_is_one_text_for_all_readers(kind, octets, shown, others, why):
    content = with_body(kind, octets)
    read = read_mime(content)
    assert read.properties.body == shown, why
    bodies = read_parts(as_octets(content)).bodies
    assert shown in (bodies.text, bodies.html)
    parsed = ParsedContent.of(content)
    words = folded(shown.rpartition(">")[2])
    assert body_text(parsed, message_parts(parsed)) == words
    assert words in folded(text_of(content).texts[1])
    assert words in folded(read_content(as_octets(content)).text or bodies.html)
    if others[0] is not ERROR:
        one = email.message_from_bytes(content, policy=email.policy.default)
        assert one.get_content().rstrip("\n") == others[0]


@each_row("value, charset, shown, others, why", SUBJECTS.values())
def test_a_subject_is_one_text_for_all_readers(value, charset, shown, others, why):
    content = with_subject(value, charset)
    assert read_mime(content).properties.subject == shown, why
    header = Header.parse(header_section(content))
    assert headers.decoded(header, "Subject") == shown
    assert text_of(content).texts[0] == shown
    fields = {one.name: one.value for one in read_content(as_octets(content)).fields}
    assert fields["Subject"] == shown
    other = email.message_from_bytes(content, policy=email.policy.default)
    assert str(other["Subject"]) == others[0]


def test_names_are_in_the_charset_of_the_body_and_addresses_are_not_guessed():
    content = (
        b'From: "J\xf6rg" <j@a.test>\r\nTo: <\xfc@a.test>\r\nKeywords: \xfcber\r\n'
        + with_body(b"text/plain; charset=iso-8859-1", b"x")
    )
    found = read_mime(content).properties
    assert found.from_.name == "Jörg"
    assert found.to[0].address == "\ufffd@a.test"
    assert found.categories == ("über",)
