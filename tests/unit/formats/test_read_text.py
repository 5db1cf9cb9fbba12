"""Texts of many mail programs: what all readers of Relay show, and why that is right."""

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
LOST = "Gr\ufffd\ufffde"
HTTP_EQUIV = b"<meta http-equiv=Content-Type content='text/html; charset=koi8-r'>"
FLOWED = b"text/plain; charset=utf-8; format=flowed; delsp=yes"
# type, octets of the body, what is shown, and why
BODIES = [
    (b"text/plain; charset=gb2312", b"\xe9F\xbb\xf9", "镕基"),  # gb2312: WHATWG Encoding
    # ks_c_5601-1987: WHATWG Encoding
    (b"text/plain; charset=ks_c_5601-1987", b"\x8cc\xb9\xe6\xb0\xa2\xc7\xcf", "똠방각하"),
    (b"text/plain; charset=iso-2022-jp", b"\x1b$B-!\x1b(B", "①"),  # WHATWG Encoding
    (b"text/plain; charset=shift_jis", b"\xfb\xfc\x87\x40", "髙①"),  # WHATWG Encoding
    (b"text/plain; charset=iso-8859-1", b"\x93q\x94 \x80", "“q” €"),  # iso-8859-1: WHATWG Encoding
    (b"text/plain; charset=windows-1252", b"a\x81b", "a\x81b"),  # WHATWG Encoding
    # UTF-8 as us-ascii: ASCII has seven bits: UTF-8 if valid
    (b"text/plain; charset=us-ascii", "Grüße".encode(), "Grüße"),
    (b"text/plain", "Grüße".encode(), "Grüße"),  # UTF-8 without charset: RFC 6532
    (b"text/plain", GRUESSE, "Grüße"),  # 8 bits without charset: the default of browsers
    (b"text/plain; charset=(c) koi8-r (d)", PRIVET, "Привет"),  # comments: RFC 2045 5.1
    (b"text/plain; charset*=us-ascii'en'koi8-r", PRIVET, "Привет"),  # extended: RFC 2231 4
    (b"text/plain; charset=utf-8", b"\xef\xbb\xbfa", "a"),  # mark: WHATWG Encoding 6
    (b"text/plain; charset=iso-8859-1", b"\xef\xbb\xbf\xc3\xbc", "ü"),  # WHATWG Encoding 6
    (b"text/plain", b"\xff\xfe\xfc\0", "ü"),  # UTF-16 mark: WHATWG Encoding 6
    (b"text/plain; charset=klingon", GRUESSE, "Grüße"),  # unknown: as without a charset
    (b"text/plain; charset=idna", b"xn--bcher-kva", "xn--bcher-kva"),  # idna: no encoding of WHATWG
    (b"text/plain; charset=cp850", b"Gr\x81\xe1e", "Grüße"),  # cp850: mail programs have it
    (b"text/plain; charset=utf-7", b"Gr+APw-", "Grü"),  # utf-7: RFC 2152, in old mail
    (b"text/plain; charset=utf-8", GRUESSE, LOST),  # not UTF-8: WHATWG: these octets alone
    # DelSp: RFC 3676 4.2; the signature 4.3, stuffing 4.4, quotes 4.5
    (FLOWED, b"ein gehei \nmes Projekt", "ein geheimes Projekt"),
    (FLOWED.upper(), "\u79d8 \r\n\u5bc6 \r\n\u3002\r\n".encode(), "\u79d8\u5bc6\u3002\r\n"),
    (FLOWED, b"sig \n-- \n a \nb\n  c\n >d", "sig\n-- \nab\n c\n>d"),
    (FLOWED, b">> a \n>>b \n> c \nd\n", ">> ab\n> c\nd\n"),
    (b"text/plain; format=flowed", b"a \nb", "a \nb"),
    (b"text/plain; delsp=yes", b"a \nb", "a \nb"),
    # meta: HTML 13.2.3.2
    (b"text/html", b"<meta charset=iso-8859-1>" + GRUESSE, "<meta charset=iso-8859-1>Grüße"),
    (b"text/html", HTTP_EQUIV + PRIVET, HTTP_EQUIV.decode() + "Привет"),  # HTML 13.2.3.2
    # meta in a comment: HTML 13.2.3.2
    (b"text/html", b"<!--<meta charset=koi8-r>-->" + GRUESSE, "<!--<meta charset=koi8-r>-->Grüße"),
    # meta too late: 1,024 octets
    (
        b"text/html",
        b" " * 1024 + b"<meta charset=koi8-r>" + GRUESSE,
        " " * 1024 + "<meta charset=koi8-r>Grüße",
    ),
    # meta after a charset: HTML 13.2.3.2
    (
        b"text/html; charset=windows-1252",
        b"<meta charset=koi8-r>" + GRUESSE,
        "<meta charset=koi8-r>Grüße",
    ),
]
# value of Subject, charset of the body, what is shown, and why
SUBJECTS = [
    (b"=?gb2312?B?6Ua7+Q==?=", b"", "镕基"),  # gb2312: WHATWG Encoding
    (b"=?iso-8859-1?Q?=93q=94_=80?=", b"", "“q” €"),  # iso-8859-1: WHATWG Encoding
    (b"=?iso-2022-jp?B?GyRCLSEbKEI=?=", b"", "①"),  # NEC: WHATWG Encoding
    (b"=?klingon?Q?Gr=FC=DFe?=", b"", "Grüße"),  # unknown: as without a charset
    (PRIVET, b"koi8-r", "Привет"),  # raw in the body's: as its author wrote the body
    ("Grüße".encode(), b"iso-8859-1", "Grüße"),  # raw UTF-8: RFC 6532
    (GRUESSE, b"utf-8", "Grüße"),  # raw, the body in UTF-8: windows-1252
    (GRUESSE + b" =?utf-8?q?=C3=BC?=", b"", "Grüße ü"),  # raw and a word: windows-1252
    (b"\xff\xfea", b"iso-8859-1", "ÿþa"),  # raw like a mark: headers have no marks
]


def with_body(kind, octets):
    return b"Content-Type: " + kind + b"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + octets


def with_subject(value, charset):
    kind = b"Content-Type: text/plain; charset=" + charset + b"\r\n" if charset else b""
    return b"Subject: " + value + b"\r\n" + kind + b"\r\nx"


@each_row("kind, octets, shown", BODIES)
def test_a_body_is_one_text_for_all_readers(kind, octets, shown):
    content = with_body(kind, octets)
    read = read_mime(content)
    assert read.properties.body == shown
    bodies = read_parts(as_octets(content)).bodies
    assert shown in (bodies.text, bodies.html)
    parsed = ParsedContent.of(content)
    words = folded(shown.rpartition(">")[2])
    seen = body_text(parsed, message_parts(parsed))
    assert seen == words or (kind.lower() == FLOWED and seen.endswith(words))
    assert words in folded(text_of(content).texts[1])
    assert words in folded(read_content(as_octets(content)).text or bodies.html)


@each_row("value, charset, shown", SUBJECTS)
def test_a_subject_is_one_text_for_all_readers(value, charset, shown):
    content = with_subject(value, charset)
    assert read_mime(content).properties.subject == shown
    header = Header.parse(header_section(content))
    assert headers.decoded(header, "Subject") == shown
    assert text_of(content).texts[0] == shown
    fields = {one.name: one.value for one in read_content(as_octets(content)).fields}
    assert fields["Subject"] == shown


def test_names_are_in_the_charset_of_the_body_and_addresses_are_not_guessed():
    content = (
        b'From: "J\xf6rg" <j@a.test>\r\nTo: <\xfc@a.test>\r\nKeywords: \xfcber\r\n'
        + with_body(b"text/plain; charset=iso-8859-1", b"x")
    )
    found = read_mime(content).properties
    assert found.from_.name == "Jörg"
    assert found.to[0].address == "\ufffd@a.test"
    assert found.categories == ("über",)
