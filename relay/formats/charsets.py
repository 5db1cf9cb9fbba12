"""Decode octets to text: bodies and header fields, for mail rules, pages and the search.

Labels and decoders are those of the WHATWG Encoding standard: gb2312 is read as gb18030, iso-8859-1
as windows-1252, and Shift_JIS, EUC-JP and ISO-2022-JP include the rows of NEC and IBM. Labels that
the standard does not have, or reads as its "replacement", have the meaning that iconv gives them
(ibm850, ms-ee, iso-2022-kr), if Python has the encoding; HTML is never read as UTF-7. Octets of
eight bits labelled US-ASCII count as unlabelled. Nothing raises; time is linear in the octets.
WHATWG Encoding 4.2 (labels), 6 (byte order mark); HTML 13.2.3.2 (<meta> in the first 1,024 octets).
"""

import codecs
import re
from collections.abc import Mapping
from encodings import normalize_encoding
from encodings.aliases import aliases
from functools import cache

from relay.formats.html_tokens import split_html, tag_attributes

_ASCII = "ascii"
# Python's codecs, each with its labels: those of the standard, then those of iconv. Labels with a
# regular form are not listed: a part of ISO 8859 is here as iso8859_2, a code page as cp437.
_TABLE = """
utf-8 unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8 utf-8-mac utf8-mac
utf_16_be unicodefffe utf-16be utf16be ucs-2be unicodebig unicode-1-1 csunicode11
utf_16_le csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le utf16le ucs-2le
utf_16_le unicodelittle ucs2 utf16
utf_32_be ucs-4 ucs4 ucs-4be csucs4 iso-10646-ucs-4 utf32be
utf_32_le utf-32 utf32 utf32le ucs-4le
utf_7 csunicode11utf7
ascii ansi_x3.4-1968 ascii us-ascii ansi_x3.4 cp367
cp1252 csisolatin1 iso-ir-100 l1 latin1 latin-1 iso8859_1 cp819 ms-ansi os2latin1 cp1004
cp1254 csisolatin5 iso-ir-148 l5 latin5 iso8859_9 ms-turk ecma-128 ts-5881 cp920
cp874 tis-620 iso8859_11 tis620-0 tis620.2529-1 tis620.2533 tis620.2533-0 tis620.2533-1 tactis
cp874 cp1162 hp-thai8 hpthai8 thai8
cp1250 ms-ee
cp1251 ms-cyrl ansi-1251 cp5347
cp1253 ms-greek
cp1255 ms-hebr
cp1256 ms-arab cp9448
cp1257 winbaltrim
koi8_r cskoi8r koi koi8 koi8-r koi8_r koi8r
koi8_u koi8-ru koi8-u koi8u
koi8_t koi8-t
kz1048 cskz1048
hp_roman8 cshproman8 hproman8 osf10010001
mac_roman csmacintosh mac macintosh x-mac-roman
mac_latin2 x-mac-ce cp1282
mac_cyrillic x-mac-cyrillic x-mac-ukrainian mac-cyrillic mac-uk macuk macukraine macukrainian
mac_cyrillic ms-mac-cyrillic msmaccyrillic cp10007
mac_croatian maccroatian
mac_romanian macromania
mac_arabic macarabic
mac_farsi macfarsi
cp037 cp282 cp1070
cp500 500v1 cp1084
cp858 cspc858multilingual
cp875 ebcdic-greek
cp932 csshiftjis ms_kanji shift-jis shift_jis sjis windows-31j x-sjis cswindows31j sjis-open
cp932 sjis-win pck cp943
cp949 cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601
cp949 ibm-euckr deckorean 5601
cp1125 cp848
cp1140 ebcdic-us-37+euro
gb18030 chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030
gb18030 cn-gb ibm-euccn hp15cn dechanzi cp936
big5hkscs big5 big5-hkscs cn-big5 csbig5 x-x-big5 big-five bigfive big5-hkscs:1999 big5-hkscs:2001
big5hkscs big5-hkscs:2004 big5-hkscs:2008 cp950
euc_jp cseucpkdfmtjapanese euc-jp x-euc-jp extended_unix_code_packed_format_for_japanese ibm-eucjp
euc_jp sdeckanji euc-jp-ms eucjp-ms eucjp-open eucjp-win
iso2022_jp_ext csiso2022jp iso-2022-jp iso2022jp iso-2022-jp-1 iso-2022-jp-ms cp50221
iso2022_jp_2 csiso2022jp2 iso2022jp2
johab ko_kr.johap92 cp1361
iso8859_2 csisolatin2 iso-ir-101 l2 latin2 cp912
iso8859_3 csisolatin3 iso-ir-109 l3 latin3
iso8859_4 csisolatin4 iso-ir-110 l4 latin4
iso8859_5 csisolatincyrillic cyrillic iso-ir-144 cp915 iso-ir-153 gost_19768 gost_19768-74
iso8859_5 gost_1976874 st_sev_358-88 csiso153gost1976874
iso8859_6 arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6-e
iso8859_6 iso-8859-6-i iso-ir-127 cp1089
iso8859_7 csisolatingreek ecma-118 elot_928 greek greek8 iso-ir-126 sun_eu_greek cp813
iso8859_8 csiso88598e csisolatinhebrew hebrew iso-8859-8-e iso-ir-138 visual csiso88598i
iso8859_8 iso-8859-8-i logical cp916
iso8859_10 csisolatin6 iso-ir-157 l6 latin6
iso8859_13 iso-ir-179 baltic cp921
iso8859_15 csisolatin9 l9 iso-ir-203 cp923
"""
_CODE_PAGES = (
    "037 273 424 437 500 720 737 775 850 852 855 856 857 858 860 861 862 863 864 865 866 869 874"
    " 875 932 949 1006 1026 1125 1140 1250 1251 1252 1253 1254 1255 1256 1257 1258"
)
_CODECS = {
    **{f"iso8859_{part}": f"iso8859_{part}" for part in (*range(2, 9), 10, *range(13, 17))},
    **{f"cp{page}": f"cp{page}" for page in _CODE_PAGES.split()},
    **{
        label: codec
        for codec, *labels in map(str.split, _TABLE.split("\n")[1:-1])
        for label in labels
    },
}
# The regular forms; those with OSF are hexadecimal.
_PART = re.compile(r"(?:cs)?(?:iso[-_]?)?8859[-_]?([0-9]{1,2})(?::[0-9]{4})?|osf0001000([0-9a-f])")
_PAGE = re.compile(
    r"(?:x-)?(?:cs)?(?:(?:cp)?ibm-?|(?:ibm-)?cp-?|ccsid|windows-?|win-|dos-|ms(?:cp)?)?0*([0-9]{2,5})"
    r"|osf1002([0-9a-f]{4})"
)
_UTF_7 = "utf_7"
_UTF_16 = ("utf_16_le", "utf_16_be")
_OF_SEVERAL_OCTETS = {
    *("utf-8", *_UTF_16, "utf_32_le", "utf_32_be", _UTF_7, "gb18030", "big5hkscs", "johab"),
    *("euc_jp", "iso2022_jp_ext", "iso2022_jp_2", "cp932", "cp949"),
}
_OF_ONE_OCTET = frozenset(_CODECS.values()) - _OF_SEVERAL_OCTETS
# Python caches each name that it is asked for, so that it is asked only for these.
_KNOWN = {*_CODECS.values(), *aliases.values()} - {"mbcs", "rot_13"}
_KNOWN -= {codec for codec in _KNOWN if codec.endswith("_codec")}
# Where the standard decodes octets to another character than Python: single octets, and sequences.
_OTHER_OCTETS = {"koi8_u": {0xAE: "\u045e", 0xBE: "\u040e"}, "cp1255": {0xCA: "\u05ba"}}
_JIS = str.maketrans("\u301c\u2016\u2212\xa2\xa3\xac", "\uff5e\u2225\uff0d\uffe0\uffe1\uffe2")
_OTHER_CHARACTERS: dict[str, Mapping[int, int | str]] = {
    "utf_7": dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
    "euc_jp": _JIS,
    "iso2022_jp_ext": _JIS,
    "cp932": str.maketrans("\uf8f0\uf8f1\uf8f2\uf8f3", "\ufffd" * 4),
    "big5hkscs": str.maketrans(
        "\u2022\uff64\u203e\u223c\u2641\u2609\xa5\xa2\xa3",
        "\u2027\ufe51\xaf\uff5e\u2295\u2299\uffe5\uffe0\uffe1",
    ),
    "gb18030": str.maketrans(
        "\ue5e5\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796\ue7c7"
        "\ue81e\ue826\ue82b\ue82c\ue832\ue843\ue854\ue864",
        "\u3000\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18\ufe19\u1e3f"
        "\u9fb4\u9fb5\u9fb6\u9fb7\u9fb8\u9fb9\u9fba\u9fbb",
    ),
}
_EURO = {"gb18030": b"\x80", "big5hkscs": b"\xa3\xe1"}
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf_16_le", b"\xfe\xff": "utf_16_be"}
_META_WITHIN_OCTETS = 1024
_PIECE_OCTETS = 256 * 1024  # that are decoded at once
_MENDED_PIECE_OCTETS = 16 * 1024
_MENDED_MAX = 10_000  # replaced octets, after which all are replaced at once
_LABEL_CHARACTERS_MAX = 60
_ERRORS = "relay.formats.charsets"
_IN_META = re.compile(r"charset\s{0,9}=\s{0,9}[\"']?([^\s;\"']*+)", re.IGNORECASE)


def codec_of(label: str) -> str:
    """Return Python's name of the encoding that a label names, "" if it names none."""
    name = label.strip().lower()[:_LABEL_CHARACTERS_MAX]
    return _CODECS.get(name) or _CODECS.get(_regular(name)) or _python_codec(name)


def _regular(name: str) -> str:
    """Return the name of a part of ISO 8859, or of a code page, as the table has it, or ""."""
    if part := _PART.fullmatch(name):
        return f"iso8859_{part[1] or int(part[2], 16)}"
    page = _PAGE.fullmatch(name)
    return f"cp{(page[1] or str(int(page[2], 16))).zfill(3)}" if page else ""


def _python_codec(name: str) -> str:
    plain = normalize_encoding(name.encode("ascii", "replace").decode())
    for label in (plain, plain.replace("_", "")):
        codec = aliases.get(label, label)
        codec = _CODECS.get(codec) or _CODECS.get(codec.replace("_", "-")) or codec
        if codec in _KNOWN:
            return codec
    return ""


def decode_octets(
    octets: bytes,
    label: str = "",
    *,
    fallback: str | None = None,
    is_html: bool = False,
    is_cut: bool = False,
) -> tuple[str, bool]:
    """Return the text, and whether the octets are in the charset that the label names.

    If octets are invalid in the charset of the label, the whole text is read as UTF-8 where it is
    valid UTF-8; otherwise the invalid octets are replaced. Without a label the text is UTF-8 if it
    is valid, else windows-1252. With `fallback`, which is for headers, that charset is tried first.
    A body may begin with a byte order mark of UTF-16. `is_cut`: the last character may be cut.
    """
    codec = codec_of(label)
    is_known = bool(codec) or not label
    if codec == _ASCII and not octets.isascii():
        codec, is_known = "", False
    if octets.startswith(codecs.BOM_UTF8):
        codec = "utf-8"
    elif codec in _UTF_16 or (not codec and fallback is None):
        codec = _BYTE_ORDER_MARKS.get(octets[:2], codec)
    if not codec and is_html:
        codec = _codec_in_html(octets)
    if codec == _UTF_7 and is_html:  # no browser reads it: it may hide tags
        codec, is_known = "", False
    text = _read(octets, codec, is_cut=is_cut) if codec else ""
    is_whole = bool(codec) and "\ufffd" not in text
    if not is_whole and not (codec and octets.isascii()):  # else damaged, or cut
        as_utf_8 = _strictly(octets, "utf-8", is_cut=is_cut)
        if as_utf_8 is not None:
            text, is_whole = as_utf_8, codec in ("", "utf-8")
        elif not codec:
            text = _read_raw(octets, codec_of(fallback or ""), is_cut=is_cut)
    return text.removeprefix("\ufeff"), is_whole and is_known


def _read_raw(octets: bytes, codec: str, *, is_cut: bool) -> str:
    if codec and codec not in _UTF_16:
        text = _read(octets, codec, is_cut=is_cut)
        if "\ufffd" not in text:
            return text
    return _read(octets, "cp1252", is_cut=is_cut)


def _codec_in_html(octets: bytes) -> str:
    """Return the codec that a <meta> names, "" if there is none."""
    html = octets[:_META_WITHIN_OCTETS].decode("latin-1")
    for token in split_html(html) if "<meta" in html.lower() else ():
        if token.name != "meta" or token.is_end:
            continue
        attributes = tag_attributes(token.text)
        label = attributes.get("charset", "")
        if not label and attributes.get("http-equiv", "").lower() == "content-type":
            match = _IN_META.search(attributes.get("content", ""))
            label = match[1] if match else ""
        if codec := codec_of(label):
            # the tag was found in ASCII, so this is not UTF-16; HTML reads ASCII as windows-1252
            return {_ASCII: "cp1252"}.get(codec, "utf-8" if codec in _UTF_16 else codec)
    return ""


def _read(octets: bytes, codec: str, *, is_cut: bool) -> str:
    """Return the text, with U+FFFD for octets that are invalid in the codec."""
    if codec in _OF_ONE_OCTET:
        return codecs.charmap_decode(octets, "strict", _characters(codec))[0]
    text = _strictly(octets, codec, is_cut=is_cut)
    if text is None:
        text = _mended(octets, codec, is_cut=is_cut)
    if table := _OTHER_CHARACTERS.get(codec):
        pieces = range(0, len(text), _PIECE_OCTETS)
        text = "".join([text[at : at + _PIECE_OCTETS].translate(table) for at in pieces])
    return text


def _strictly(octets: bytes, codec: str, *, is_cut: bool) -> str | None:
    """Decode in pieces, because a codec does not release the interpreter lock: other threads run
    between the pieces.
    """
    try:
        if not is_cut and len(octets) <= _PIECE_OCTETS:
            return octets.decode(codec)
        decode = codecs.getincrementaldecoder(codec)().decode
        pieces = range(0, len(octets), _PIECE_OCTETS)
        texts = [decode(octets[at : at + _PIECE_OCTETS]) for at in pieces]
        return "".join(texts) + decode(b"", final=not is_cut)
    except UnicodeDecodeError:
        return None


@cache
def _characters(codec: str) -> str:
    """Return the characters of the 256 octets; an unassigned octet is a control, or U+FFFD."""
    others = _OTHER_OCTETS.get(codec, {})
    decoded = enumerate(bytes(range(256)).decode(codec, "replace"))
    controls = range(0x80, 0xA0) if codec != _ASCII else ()
    return "".join(
        others.get(octet, chr(octet) if character == "\ufffd" and octet in controls else character)
        for octet, character in decoded
    )


def _mended(octets: bytes, codec: str, *, is_cut: bool) -> str:
    """Decode in pieces, as _strictly() does."""
    decoder = codecs.getincrementaldecoder(codec)(_ERRORS)
    texts, left = [], _MENDED_MAX
    for at in range(0, len(octets), _MENDED_PIECE_OCTETS):
        texts.append(decoder.decode(octets[at : at + _MENDED_PIECE_OCTETS]))
        left -= texts[-1].count("\ufffd")
        if left < 0:
            decoder.errors = "replace"
    return "".join(texts) if is_cut else "".join((*texts, decoder.decode(b"", final=True)))


def _mend(error: UnicodeError) -> tuple[str, int]:
    """Return the replacement for octets that a codec rejects, and where decoding continues."""
    assert isinstance(error, UnicodeDecodeError)
    start, codec = error.start, error.encoding
    euro = _EURO.get(codec)
    if euro and error.object.startswith(euro, start):
        return "€", start + len(euro)
    text = ""
    if codec == "euc_jp":
        text = _of_row(error.object[start : start + 2], 0x80)
    elif codec == "iso2022_jp_ext":
        text = _of_row(error.object[start : error.end], 0)
    return (text, start + 2) if text else ("\ufffd", error.end)


@cache
def _of_row(pair: bytes, offset: int) -> str:
    """Return a character of JIS X 0208 with the rows of NEC and IBM, "" if there is none."""
    if len(pair) != len(b"\x21\x21") or not all(0x21 <= octet - offset <= 0x7E for octet in pair):
        return ""
    row, cell = pair[0] - offset, pair[1] - offset
    lead = (row - 0x21) // 2 + (0x81 if row < 0x5F else 0xC1)
    trail = cell + ((0x1F if cell < 0x60 else 0x20) if row % 2 else 0x7E)
    text = bytes((lead, trail)).decode("cp932", "replace")
    return text if len(text) == 1 else ""


codecs.register_error(_ERRORS, _mend)
