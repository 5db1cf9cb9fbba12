"""The text of a body as a reader sees it, of messages of any size, and folded for comparison."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.content import BLOCK_BYTES, LargeContent, as_octets
from relay.base.message.header import ParsedContent
from relay.formats.read_mime import read_parts
from relay.transport.policy.body_text import BODY_OCTETS_MAX, BodyText, body_text, in_words
from relay.transport.policy.folding import folded
from relay.transport.policy.message_parts import message_parts
from tests.support.contents import Counted, as_large
from tests.support.tables import each_row

TEXT = b"Content-Type: text/plain; charset=utf-8\r\n"
HTML = b"Content-Type: text/html; charset=utf-8\r\n"


def text_of(content):
    parsed = ParsedContent.of(content)
    return body_text(parsed, message_parts(parsed))


def mixed(*parts, kind=b"mixed", boundary=b"b"):
    head = b"Content-Type: multipart/%s; boundary=%s\r\n\r\n" % (kind, boundary)
    inner = b"".join(b"\r\n--" + boundary + b"\r\n" + part for part in parts)
    return head + inner + b"\r\n--" + boundary + b"--\r\n"


def coded(octets, encoding=b"base64", kind=TEXT):
    return kind + b"Content-Transfer-Encoding: " + encoding + b"\r\n\r\n" + octets


ATTACHED = b"Content-Disposition: attachment\r\n" + TEXT + b"\r\nno"
INNER = b"Content-Type: message/rfc822\r\n\r\nSubject: no\r\n" + TEXT + b"\r\nno"


FLOWED = b"Content-Type: text/plain; charset=utf-8; format=flowed; delsp=yes\r\n\r\n"


@each_row(
    "content, phrase",
    [
        (FLOWED + b"ein gehei \r\nmes Projekt", "ein geheimes projekt"),
        (FLOWED + b"ein geheimes \r\nProjekt", "geheimes projekt"),
        (FLOWED + b"> gehei \r\n> mes", "geheimes"),
        (TEXT + "\r\n\u6a5f\r\n\u5bc6 x".encode(), "\u6a5f\u5bc6"),
        (TEXT + "\r\n\u6a5f\r\n\u5bc6 x".encode(), "\u5bc6 x"),
        (
            TEXT + "\r\n\u0e25\u0e31\u0e1a\r\n\u0e17\u0e35\u0e48".encode(),
            "\u0e25\u0e31\u0e1a\u0e17\u0e35\u0e48",
        ),
    ],
)
def test_words_over_a_line_end_are_found(content, phrase):
    assert BodyText(text_of(content)).has_phrase(in_words(phrase))


LINES = st.text("> -a\u5bc6\r\n", max_size=40)


@given(LINES)
def test_what_a_page_shows_of_a_flowed_text_is_in_what_a_rule_sees(text):
    content = FLOWED + text.encode()
    shown = read_parts(as_octets(content)).bodies.text
    assert folded(shown) in text_of(content)


@pytest.mark.parametrize("form", [bytes, as_large], ids=["small", "large"])
@each_row(
    "content, text",
    [
        (b"Subject: no\r\n\r\nhello\r\n", "hello"),
        (b"Content-Type: text\r\n\r\nhello", "hello"),
        (TEXT + b"\r\na \t b\r\n\r\nc\r\n", "a b c"),
        (HTML + b"\r\n<p>in<b>voi</b>ce<p hidden>no", "invoice"),
        (HTML + b"\r\n&nbsp;in&shy;voice&#8203;&zwnj; &#xFF21;", "invoice A"),
        (HTML.upper() + b"\r\n<p>a", "a"),
        (mixed(TEXT + b"\r\none", HTML + b"\r\n<i>two</i>", kind=b"alternative"), "one two"),
        (mixed(mixed(TEXT + b"\r\none", boundary=b"i"), TEXT + b"\r\ntwo"), "one two"),
        (mixed(TEXT + b"\r\none", ATTACHED, INNER), "one"),
        (mixed(TEXT + b"Content-Disposition: inline; filename=a.txt\r\n\r\none"), "one"),
        (mixed(b"Content-Type: application/json\r\n\r\nno"), ""),
        (mixed(b"Content-Type: text/csv\r\n\r\nno"), ""),
        (mixed(), "--b--"),
        (coded(b"aGVsbG8="), "hello"),
        (coded(b"aGV*sb\r\n-G8"), "hello"),
        (coded(b"hel=6Co=\r\n =F0", b"Quoted-Printable"), "hello \ufffd"),
        (coded(b"hello", b"x-unknown"), "hello"),
        (coded(b"aGVsbG8=", b"base64\r\nContent-Transfer-Encoding: 7bit"), "hello aGVsbG8="),
        (HTML + TEXT + b"\r\n<b>a", "a <b>a"),
        (b"Content-Type: text/plain; charset=iso-8859-1\r\n\r\n\xfcber", "über"),
        (b"Content-Type: text/plain; charset=x-no\r\n\r\n\xc3\xbcber", "über"),
        (b"Content-Type: text/plain; charset=x-no\r\n\r\n\xfcber", "über"),
        (b"Content-Type: text/plain; charset=idna\r\n\r\n\xfcber", "über"),
        (b"Content-Type: text/plain; charset=us-ascii\r\n\r\n\xc3\xbcber", "über"),
        (b"Content-Type: text/plain; charset=shift_jis\r\n\r\n\x90\xbf\x8b\x81\xff", "請求\ufffd"),
        (b"Content-Type: text/plain; charset=iso-2022-jp\r\n\r\n\x1b$B@A5a\x1b(Q", "請求\ufffd"),
        (
            b"Content-Type: text/plain; charset=utf-16le\r\n\r\n" + "über".encode("utf-16-le"),
            "über",
        ),
        (b"Content-Type: text/plain; charset=utf-16le\r\n\r\na\0\0\xd8b\0", "a\ufffdb"),
        (b"Content-Type: text/plain; charset=utf-7\r\n\r\na+2AA-b", "a\ufffdb"),
        (b"", ""),
    ],
)
def test_the_text_is_what_a_reader_sees(content, text, form):
    assert text_of(form(content)) == text


@each_row(
    "text, expected",
    [
        ("a\r\n\tb\u00a0\u2003c ", "a b c"),
        ("\uff29nv\u00ado\u200bi\u2060ce \ufb01ne", "Invoice fine"),
        ("in\u034fvo\ufe0fi\U000e0101ce", "invoice"),
        ("a\0b\x1bc", "abc"),
        ("a\0b\x1bü", "abü"),
        ("u\u0308ber", "über"),
        ("x " * 200 + "u\u0308", "x " * 200 + "ü"),
        ("Straße", "Straße"),
        ("", ""),
    ],
)
def test_what_looks_alike_is_folded_to_the_same(text, expected):
    assert folded(text) == expected


@given(st.text(st.characters() | st.sampled_from(" \n\u0308\u200b\u00adaü"), max_size=600))
def test_a_folded_text_is_printable_and_stays_the_same(text):
    once = folded(text)
    assert once.isprintable()
    assert "  " not in once
    assert folded(text, 10) == once[:10]


@each_row(
    "text, phrase, found",
    [
        ("Please pay now.", "PAY", True),
        ("Please pay now.", "please, pay", True),
        ("Please pay now.", "pay please", False),
        ("Please prepay now.", "pay", False),
        ("pay_now", "pay", False),
        ("Don\u2019t pay", "don't", True),
        ("हिन्दी", "हिन", False),
        ("हिन्दी भाषा", "भाषा", True),
        ("STRASSE", "Straße", True),
    ],
)
def test_whole_words_are_found_in_their_order(text, phrase, found):
    assert BodyText(folded(text)).has_phrase(in_words(folded(phrase).casefold())) == found


def test_at_most_1_mib_of_all_bodies_is_read():
    filler = b"x" * (BODY_OCTETS_MAX - 10)
    content = mixed(TEXT + b"\r\n" + filler, HTML + b"\r\n<b>1</b>456", TEXT + b"\r\nno")
    assert text_of(content) == filler.decode() + " 145"
    wide = b"Content-Type: text/plain; charset=utf-16be\r\n\r\n" + b"\xfd\xfa" * 100_000
    assert len(text_of(wide)) == BODY_OCTETS_MAX


@each_row("charset", ["utf-8", "utf-16le", "gb18030", "shift_jis", "euc-jp", "iso-2022-jp"])
def test_a_character_may_be_cut_at_the_end(charset):
    octets = ("a" + "請" * BODY_OCTETS_MAX).encode(charset)[: BODY_OCTETS_MAX + 4000]
    head = f"Content-Type: text/plain; charset={charset}\r\n\r\n".encode()
    text = text_of(as_large(head + octets))
    assert text.rstrip("\ufffd").strip("請") == "a"
    assert len(text) > BODY_OCTETS_MAX / 4


@pytest.mark.parametrize(
    ("encoding", "unit"),
    [(b"7bit", b"word \r\n"), (b"base64", b"IA==\r\n"), (b"quoted-printable", b"=\r\n")],
    ids=["7bit", "base64", "empty quoted-printable"],
)
def test_a_large_text_is_never_in_memory(encoding, unit):
    body = Counted(b"\r\n" + unit * (8_000_000 // len(unit)))
    header = TEXT + b"Content-Transfer-Encoding: " + encoding + b"\r\n"
    text_of(LargeContent(header, (body,), eight_bit=False))
    assert body.most_bytes <= BLOCK_BYTES
    assert body.read_bytes < body.size + 5 * BODY_OCTETS_MAX


@given(st.binary(max_size=300))
def test_a_damaged_message_never_raises(rubbish):
    text_of(mixed(rubbish, TEXT + rubbish, coded(rubbish), coded(rubbish, b"quoted-printable")))
    text_of(b"Content-Type: text/html; charset=" + rubbish + b"\r\n\r\n" + rubbish)


HOSTILE = {
    "tags": (HTML, b"<b>"),
    "paragraphs": (HTML, b"<p>a</p>"),
    "hidden elements": (HTML, b"<p hidden>"),
    "<": (HTML, b"<"),
    "references": (HTML, b"&#1;"),
    "open comments": (HTML, b"<!--"),
    "marks of one letter": (TEXT, "\u0301\u0323\u0316".encode()),
    "expanding characters": (TEXT, "\ufdfa".encode()),
    "invisible characters": (TEXT, "\u200b\u034f".encode()),
    "one word each": (TEXT, b"a b "),
    "wrong octets": (TEXT.replace(b"utf-8", b"cp1252"), b"\x81"),
    "parts": (b"Content-Type: multipart/mixed; boundary=b\r\n", b"\r\n--b\r\n\r\n" + b"a" * 1040),
}


@each_row("head, unit", HOSTILE.values())
def test_an_eighth_of_1_mib_that_is_made_to_be_slow_takes_little_time(head, unit):
    body = unit * (BODY_OCTETS_MAX // 8 // len(unit))
    began = time.process_time()
    words = BodyText(text_of(as_large(head + b"\r\n" + body))).words
    taken_s = time.process_time() - began
    assert taken_s < 2, len(words)  # 0.01 to 0.3 s on an idle machine; minutes if quadratic
