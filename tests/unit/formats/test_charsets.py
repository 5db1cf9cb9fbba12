"""Octets as text: the labels and tables of the WHATWG Encoding standard, damage, and hostile input."""

import codecs
import contextlib
import subprocess
import time
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st
from webencodings.labels import LABELS

from relay.formats.charsets import _OF_ONE_OCTET, codec_of, decode_octets
from relay.formats.content_fields import charset_of
from tests.support.tables import each_row

# SHA-256 of the characters of the octets 80 to FF by the standard's index files, U+FFFD where there
# is none (github.com/whatwg/encoding, commit a985b62a of May 2026).
OF_ONE_OCTET = {
    "ibm866": "2e3f89d5",
    "iso-8859-2": "da4d3b2f",
    "iso-8859-3": "c1d9ce25",
    "iso-8859-4": "54140e6e",
    "iso-8859-5": "53729815",
    "iso-8859-6": "2b716bc8",
    "iso-8859-7": "8d94b030",
    "iso-8859-8": "ade2c079",
    "iso-8859-10": "129e084c",
    "iso-8859-13": "20a9bcd4",
    "iso-8859-14": "80050213",
    "iso-8859-15": "b9a4a239",
    "iso-8859-16": "c2bb18a7",
    "koi8-r": "25a9da95",
    "koi8-u": "79b0a6e9",
    "macintosh": "94dcdcc1",
    "windows-874": "4bb5efdc",
    "windows-1250": "52665a0c",
    "windows-1251": "153baf16",
    "windows-1252": "9ba65472",
    "windows-1253": "fa630499",
    "windows-1254": "612d0124",
    "windows-1255": "16925d6a",
    "windows-1256": "ae636a90",
    "windows-1257": "abd51531",
    "windows-1258": "ded84db6",
    "x-mac-cyrillic": "ab39a8a6",
    "win-1251": "153baf16",  # not in the standard, as the next
    "x-mac-ce": "775846aa",
}
LOW, HIGH, EUC = [*range(0x40, 0x7F)], [*range(0x80, 0xFF)], [*range(0xA1, 0xFF)]
# The same of the pairs of octets. Of Big5 the rows that Python's codec has as the standard has them.
OF_TWO_OCTETS = {
    "gb2312": (range(0x81, 0xFF), LOW + HIGH, "85373408efe24c65"),
    "ks_c_5601-1987": (range(0x81, 0xFF), range(0x81, 0xFF), "87438a14d3f9c1a8"),
    "shift_jis": ([*range(0x81, 0xA0), *range(0xE0, 0xFD)], LOW + HIGH[:-2], "8bdf1922c862b7ae"),
    "euc-jp": (EUC, EUC, "8b9d7687f5830297"),
    "iso-2022-jp": (EUC, EUC, "8b9d7687f5830297"),
    "big5": ([*range(0xA4, 0xC6), *range(0xC7, 0xF9)], LOW + EUC, "e9a663f6412ecb34"),
}


_NONE = (
    "idna punycode unicode_escape raw_unicode_escape rot13 hex base64 zip undefined charmap mbcs"
    " replacement x-user-defined "
)


@each_row("label, digest", OF_ONE_OCTET.items())
def test_one_octet_is_the_character_of_the_standard(label, digest):
    text, is_whole = decode_octets(bytes(range(128, 256)), label)
    assert is_whole == ("\ufffd" not in text)
    assert sha256(text.encode()).hexdigest()[:8] == digest


@each_row("label, expected", OF_TWO_OCTETS.items())
def test_two_octets_are_the_character_of_the_standard(label, expected):
    leads, trails, digest = expected
    found = []
    for lead in leads:
        for trail in trails:
            octets = bytes((lead, trail))
            if label == "iso-2022-jp":
                octets = b"\x1b$B%c%c\x1b(B" % (lead - 0x80, trail - 0x80)
            text, is_whole = decode_octets(octets, label)
            found.append(text if is_whole and len(text) == 1 else "\ufffd")
    assert sha256("".join(found).encode()).hexdigest()[:16] == digest


def test_the_labels_are_those_of_the_standard_and_the_names_those_of_iconv():
    """The lists are those of webencodings, and of the C library: one name of each of its sets."""
    for label, name in LABELS.items():
        if name not in ("replacement", "x-user-defined"):
            assert codec_of(label) in (codec_of(name), "ascii"), label
    others = {"cp-1251": "cp1251", "hz-gb-2312": "hz", " GB2312\n": "gb18030", "UTF_8": "utf-8"}
    others |= {"iso-8859-11": "cp874", "ms936": "gb18030", "visual": "iso8859_8"}
    others |= dict.fromkeys(_NONE.split(" "), "") | {"u" * 10_000: "", "u\udc80tf-8": "utf-8"}
    assert {name: codec_of(name) for name in others} == others
    sets: dict[str, str] = {}
    for name in subprocess.check_output(["iconv", "-l"], text=True).replace("/", " ").split():
        with contextlib.suppress(LookupError):
            assert codec_of(name) or not codecs.lookup(name)._is_text_encoding, name
        if name.lower() not in LABELS:
            sets.setdefault(codec_of(name), name)
    octets = bytes(range(256))
    assert len(sets) > 60
    for name in [name for codec, name in sets.items() if codec in _OF_ONE_OCTET]:
        command = ["iconv", "-c", "-f", name, "-t", "utf-8"]
        read = subprocess.run(command, input=octets, capture_output=True, check=False).stdout
        wrong = {*filter(str.isprintable, read.decode())} - {*decode_octets(octets, name)[0]}
        assert len(wrong) < 8, name


def test_html_is_not_read_as_utf_7():
    for octets, label in (b"+ADw-b", "utf-7"), (b"<meta charset=utf-7>+ADw-b", ""):
        assert decode_octets(octets, label, is_html=True) == (octets.decode(), False)


@each_row(
    "value, charset",
    [
        ("text/plain; charset=utf-8", "utf-8"),
        ('text/plain; Charset = "a b"; x=y', "a b"),
        ("text/plain; charset=(a) utf-8 (b)", "utf-8"),
        ("text/plain; charset='utf-8'", "utf-8"),
        ("text/plain; charset*=us-ascii'en'utf-8", "utf-8"),
        ("text/plain; charset*0=utf-8", "utf-8"),
        ("text/plain charset=utf-8", "utf-8"),
        ('text/plain; charset="utf-8', "utf-8"),
        ('text/plain; name="("; charset=utf-8', "utf-8"),
        ("text/plain; xcharset=utf-8", ""),
        ("text/plain; charset=", ""),
        ("text/plain", ""),
        ("", ""),
    ],
)
def test_the_parameter_charset_is_found(value, charset):
    assert charset_of(value) == charset


@each_row(
    "octets, label, text",
    [
        (b"\xe4\xc3\xbc", "utf-8", "\ufffdü"),
        ("請Ö".encode(), "shift_jis", "請Ö"),
        (b"\x90\xbf\x8b\x81\xff", "shift_jis", "請求\ufffd"),
        (b'\x81"<b>', "big5", '\ufffd"<b>'),
        (b"\x8f<b>\xad\xa1", "euc-jp", "\ufffd<b>①"),
        (b"\xa1\xff<", "windows-1253", "΅\ufffd<"),
        (b"\x1b$B@A5a\x1b(Q", "iso-2022-jp", "請求\ufffd"),
        (b"\x1b$B@A\nab", "iso-2022-jp", "請\n痰"),
        (b"\x1b(I1\x1b(J\\~\x1b(B\\", "iso-2022-jp", "ｱ¥‾\\"),
        (b"\xfe\xff\0a", "utf-16", "a"),
        (b"\xff\xfea\0", "", "a"),
        (b"a\0\0", "utf-16le", "a\ufffd"),
        (b"\x1b$)C\x0e0!\x0fa", "iso-2022-kr", "가a"),
        (b"~{VPND~}a", "hz-gb-2312", "中文a"),
        (b"+Tg0-a+", "utf-7", "不a"),
        (b"\xc1\xe6", "ms-cyrl", "Бж"),
        (b"\0\0\4\x11", "ucs-4be", "Б"),
        (b"a\xff b", "utf-7", "a\ufffd b"),
        (b"+2AA-+2ADcAA-", "utf-7", "\ufffd𐀀"),
        ("a日".encode("utf-32"), "utf-32", "a日"),
        (b"abcdefg", "utf-32", "\ufffd" * 2),
        (b"\xff\xfea", "iso-8859-1", "ÿþa"),
        (b"\xef\xbb\xbfa", "iso-8859-1", "a"),
    ],
)
def test_damage_and_marks(octets, label, text):
    assert decode_octets(octets, label)[0] == text


@given(
    st.binary(max_size=200),
    st.sampled_from(["", "idna", "us-ascii", *OF_ONE_OCTET, *OF_TWO_OCTETS, "utf-8", "utf-16"]),
    st.booleans(),
)
def test_octets_are_always_text_and_ascii_stays(octets, label, is_html):
    text, _ = decode_octets(octets, label, is_html=is_html)
    assert decode_octets(octets, label, fallback="koi8-r")[0].encode("utf-8", "strict") is not None
    if label not in ("utf-16", "iso-2022-jp") and octets.isascii():
        assert text == octets.decode("ascii")
    cut, _ = decode_octets(octets[:-1], label, is_cut=True)
    assert len(cut) <= len(octets)


HOSTILE = {
    "label": (b"a\xff", "u" * 2_500_000, False),
    "meta": (b"<meta charset=" * 20_000, "", True),
    "open meta": (b"<meta " + b"a='" * 90_000, "", True),
    "wrong pairs": (b"\x81 " * 125_000, "shift_jis", False),
    "no pairs": (b"\xad\xfe" * 125_000, "euc-jp", False),
    "rows of NEC": (b"\xad\xa1" * 125_000, "euc-jp", False),
    "escapes": (b"\x1b$B\x1b(B" * 40_000, "iso-2022-jp", False),
    "wrong octets of utf-7": (b"+\xff" * 125_000, "utf-7", False),
    "wrong octets of hz": (b"~{\xff~}" * 50_000, "hz-gb-2312", False),
    "shifts": (b"\x1b$)C" + b"\x0e0!\xff" * 60_000, "iso-2022-kr", False),
    "wrong octets": (b"\xff" * 250_000, "utf-8", False),
    "wrong rows": (b"\x1b$B" + b"-~" * 125_000, "iso-2022-jp", False),
}


@each_row("octets, label, is_html", HOSTILE.values())
def test_250_kb_that_are_made_to_be_slow_take_little_time(octets, label, is_html):
    began = time.process_time()
    decode_octets(octets, label, is_html=is_html)
    assert time.process_time() - began < 0.5  # at most 0.15 s on an idle machine
