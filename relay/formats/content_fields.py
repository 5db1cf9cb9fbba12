"""Read Content-Type and Content-Disposition: their values, parameters and file names.

They are read as mail programs read them, in linear time; nothing raises. Comments are ignored,
except inside a token such as `name=plan(1).pdf`. Adjacent quoted strings form one value; text
between them and the next parameter is ignored. A semicolon may be missing. If a parameter has a
plain and an extended form, the extended one is used (RFC 6266 4.3); of two in the same form, the
first.
RFC 2045 5.1; RFC 2231 3 and 4; RFC 2047 in parameters, which 5 forbids and programs write.
"""

import re
from collections.abc import Sequence
from email.message import Message
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from relay.formats.charsets import decode_octets
from relay.formats.encoded_words import printable, text_of_words

_PIECE = re.compile(
    r'"(?P<quoted>(?>[^"\\]|\\.?)*+)(?:"|\Z)|(?P<white>\s++)|(?P<mark>[;=(])|(?P<text>[^";=(\s]++)',
    re.DOTALL,
)
_IN_COMMENT = re.compile(r"[^\\()]*+(?>\\.[^\\()]*+)*+([()])", re.DOTALL)
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
# A parameter after a value without a semicolon: after a token only if its name is known.
_NEXT = re.compile(r"[A-Za-z][\w.-]{0,60}+[*0-9]{0,9}+\s{0,9}=")
_NEXT_KNOWN = re.compile(
    r"(?:(?:file)?name|charset|boundary|type|size|format)[*0-9]{0,9}\s{0,9}=", re.IGNORECASE
)
_KEPT_CHARACTERS_MAX = 8192  # readers of headers clip there; at most 0.5 MB are kept of a field
_SECTION = re.compile(r"([^*]*)\*(\d{0,4})(\*?)")
_LANGUAGE = re.compile(r"([^']*)'[^']*'")
# File extensions for attachments without a name: by the subtype without its usual prefixes and
# suffixes, else by the type.
_TYPES = """
pdf zip json rtf xml gzip:gz png gif webp bmp tiff heic svg html csv css wav ogg mp4 mp3 mpeg:mp3
jpeg:jpg calendar:ics vcard:vcf msword:doc rfc822:eml global:eml news:eml quicktime:mov
pkcs7-signature:p7s pkcs7-mime:p7m pgp-signature:asc vnd.ms-excel:xls vnd.ms-powerpoint:ppt
wordprocessingml.document:docx spreadsheetml.sheet:xlsx presentationml.presentation:pptx
text:txt message:txt
"""
_EXTENSIONS = {pair.partition(":")[0]: pair.rpartition(":")[2] for pair in _TYPES.split()}
_BESIDE_SUBTYPE = re.compile(r"x-|vnd\.openxmlformats-officedocument\.|\+xml\Z")


class ContentField(Struct, frozen=True):
    """A field: its value in lower case, and its parameters as they are, without quotes."""

    value: str
    parameters: tuple[tuple[str, str], ...]

    def all(self, name: str) -> Sequence[str]:
        """Return the values of a parameter, the preferred one first; controls are not removed."""
        values = [_decoded(text) for key, text in self.parameters if key == name]
        extended = self._extended(name)
        return values if extended is None else [extended, *values]

    def raw(self, name: str) -> str:
        """Return a parameter without decoding encoded words, "" if there is none."""
        extended = self._extended(name)
        if extended is not None:
            return extended
        return next((text for key, text in self.parameters if key == name), "")

    def _extended(self, name: str) -> str | None:
        """Return the sections of a parameter joined, None if it has none."""
        sections: dict[int, tuple[bool, str]] = {}
        for key, text in self.parameters:
            section = _SECTION.fullmatch(key)
            if section and section[1] == name:
                is_coded = bool(section[3]) or not section[2]
                sections.setdefault(int(section[2] or 0), (is_coded, text))
        if not sections:
            return None
        ordered = [sections[number] for number in sorted(sections)]
        if not any(is_coded for is_coded, _ in ordered):
            return _decoded("".join(text for _, text in ordered))
        is_coded, text = ordered[0]
        charset = ""
        if is_coded and (section := _LANGUAGE.match(text)):
            charset = section[1]
            ordered[0] = (is_coded, text[section.end() :])
        # a character, or its encoding, may be split between two sections
        joined = "".join(text if coded else text.replace("%", "%25") for coded, text in ordered)
        octets = unquote_to_bytes(joined.encode("utf-8", "surrogateescape"))
        if not charset:  # some programs write an encoded word
            return text_of_words(octets)
        return decode_octets(octets, charset, fallback="")[0]


def _decoded(text: str) -> str:
    return text_of_words(text.encode("utf-8", "surrogateescape"))


def read_content_field(fields: "Message[str, str]", name: str) -> ContentField:
    """Read the first field of a name in a parsed header."""
    return content_field(str(fields.get(name) or ""))


def charset_of(content_type: str) -> str:
    """Return the charset that the value of a Content-Type names, "" if it names none."""
    if "charset" not in content_type.lower():
        return ""
    label = content_field(content_type).raw("charset")
    return label.strip("' ").rpartition("'")[2].strip()  # utf-8'language'utf-8


def content_field(text: str, *, has_comments: bool = True) -> ContentField:
    """Read the unfolded value of a field; octets that are not ASCII are surrogates."""
    read = _content_field if len(text) <= _KEPT_CHARACTERS_MAX else _content_field.__wrapped__
    return read(text, has_comments=has_comments)


@lru_cache(maxsize=64)  # the same few fields are in nearly all messages
def _content_field(text: str, *, has_comments: bool) -> ContentField:
    reader = _Reader(text, has_comments=has_comments and "(" in text)
    reader.read()
    return ContentField(reader.value, tuple(reader.parameters))


def filename_of(fields: "Message[str, str]") -> str:
    """Return the file name of a part, "" if it has none."""
    return printable(written_filename(fields)).replace("\t", " ")


def written_filename(fields: "Message[str, str]") -> str:
    """Return the file name of a part with its controls, "" if it has none."""
    for name, parameters in (
        ("content-disposition", ("filename", "name")),
        ("content-type", ("name", "filename")),
    ):
        field = read_content_field(fields, name)
        for parameter in parameters if field.parameters else ():
            if filename := next(filter(printable, field.all(parameter)), ""):
                return filename
    return ""


def name_by_type(content_type: str) -> str:
    """Return a file name for an attachment without one."""
    kind, _, subtype = content_type.partition("/")
    usual = _EXTENSIONS.get(kind, "bin")
    return f"attachment.{_EXTENSIONS.get(_BESIDE_SUBTYPE.sub('', subtype), usual)}"


class _Reader:
    """Reads one field; `_key` is None in a name, or before the first one."""

    def __init__(self, text: str, *, has_comments: bool) -> None:
        self.value = ""
        self.parameters: list[tuple[str, str]] = []
        self._text = text
        self._has_comments = has_comments
        self._key: str | None = None
        self._pieces: list[str] = []
        self._is_first = True
        self._is_quoted = False  # the value ended with a quoted string

    def read(self) -> None:
        """Read all of the field."""
        place = 0
        while match := _PIECE.match(self._text, place):
            place = match.end()
            kind = match.lastgroup
            if kind == "mark":
                place = self._at_mark(match[0], place)
            elif kind == "white":
                self._at_white(place)
            elif kind == "quoted":
                self._at_quoted(match["quoted"])
                if self._key is not None and _NEXT.match(self._text, place):
                    self._end()
            elif not self._is_quoted:
                self._pieces.append(match[0])
        self._end()

    def _at_mark(self, mark: str, place: int) -> int:
        if mark == ";":
            self._end()
        elif mark == "=" and self._key is None:
            self._start()
        elif mark == "(" and self._has_comments and (end := self._comment(place)):
            return end
        elif not self._is_quoted:
            self._pieces.append(mark)
        return place

    def _at_white(self, place: int) -> None:
        if self._key is None:
            self._pieces.append(" ")
        elif self._pieces:
            following = _NEXT if self._is_quoted else _NEXT_KNOWN
            if following.match(self._text, place):
                self._end()
            elif not self._is_quoted:
                self._pieces.append(self._text[place - 1])

    def _at_quoted(self, text: str) -> None:
        self._pieces.append("".join(_ESCAPED.split(text)))
        self._is_quoted = self._key is not None

    def _comment(self, place: int) -> int:
        """Return the end of the comment that begins before a place, 0 if it is none."""
        may_be_text = self._key is not None and self._key != "charset" and not self._is_quoted
        if may_be_text and self._pieces and not self._pieces[-1].isspace():
            return 0
        depth, end = 1, place
        while depth and (match := _IN_COMMENT.match(self._text, end)):
            depth += 1 if match[1] == "(" else -1
            end = match.end()
        if depth:
            self._has_comments = False  # not closed, so later comments are not closed either
            return 0 if ";" in self._text[place:] else len(self._text)
        is_joined = self._text[end : end + 1] not in ("", " ", "\t", '"', ";")
        if may_be_text and not self._pieces and is_joined:
            return 0  # name=(1)plan.pdf
        return end

    def _start(self) -> None:
        """End a name: the text before it is the value of the field, or is ignored."""
        text = "".join(self._pieces).rstrip()
        before, _, key = text.rpartition(" ")
        if self._is_first:
            self._set_value(before)
        self._key, self._pieces = key.lower(), []

    def _end(self) -> None:
        """End a parameter, or the value of the field."""
        text = "".join(self._pieces)
        if self._key is None:
            if self._is_first:
                self._set_value(text)
        else:
            if not self._is_quoted:
                text = text.strip()
                if len(text) > 1 and text[0] == text[-1] == "'":
                    text = text[1:-1]
            self.parameters.append((self._key, text))
        self._key, self._pieces, self._is_quoted = None, [], False

    def _set_value(self, text: str) -> None:
        self._is_first = False
        joined = "/".join(part.strip() for part in text.split("/"))  # multipart / mixed
        self.value = next(iter(joined.split()), "").lower()
