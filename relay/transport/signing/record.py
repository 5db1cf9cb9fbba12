"""The DNS record of a key: its text, its line in a zone file, and the check of a published record.

The functions are pure. A record is the text of a TXT record at SigningKey.name: its strings, joined
without anything between them.

RFC 6376 3.6.1 (tags), 3.2 (their syntax), 3.6.2.2 (one record for a name); RFC 8463 (k=ed25519);
RFC 8301 (SHA-256 only).
"""

import base64
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct

from relay.transport.signing.keys import PrivateKey

VERSION = "DKIM1"
_STRING_OCTETS_MAX = 255  # RFC 1035 3.3
_RECORD_OCTETS_MAX = 8192  # ten times the record of an RSA key of 4,096 bits
_TAG = re.compile(r"[ \t\r\n]*([A-Za-z][A-Za-z0-9_]*)[ \t\r\n]*=([^;]*)", re.ASCII)
_WHITE = " \t\r\n"
_WITHOUT_WHITE = str.maketrans("", "", _WHITE)
_FOREIGN = re.compile(r"\s*v\s*=\s*+(?!dkim)", re.ASCII | re.IGNORECASE)  # such as v=spf1
_SHOWN_MAX = 60
_PRINTABLE = range(0x20, 0x7F)
_ESCAPES = {ord('"'): '\\"', ord("\\"): "\\\\"}


class RecordError(ValueError):
    """A text is not a list of tags; the message says what was found."""


class RecordVerdict(StrEnum):
    """What is published for a key."""

    OK = "ok"
    MISSING = "missing"
    WRONG = "wrong"


class RecordFault(Struct, frozen=True):
    """What is wrong with a published record."""

    found: str
    expected: str

    def __str__(self) -> str:
        return f"found {self.found}, expected {self.expected}"


class ComparedRecord(Struct, frozen=True):
    """A key compared with what is published; a wrong record has at least one fault."""

    verdict: RecordVerdict
    faults: tuple[RecordFault, ...] = ()


def key_record(private: PrivateKey) -> str:
    """Return the text to publish for a key: v=DKIM1; k=rsa; p=..."""
    public = base64.b64encode(private.public()).decode("ascii")
    return f"v={VERSION}; k={private.kind}; p={public}"


def txt_strings(text: str) -> tuple[bytes, ...]:
    """Return the strings of a TXT record with this text, of at most 255 octets each."""
    octets = text.encode("utf-8", "surrogateescape")
    starts = range(0, max(1, len(octets)), _STRING_OCTETS_MAX)
    return tuple([octets[at : at + _STRING_OCTETS_MAX] for at in starts])


def zone_line(name: str, text: str) -> str:
    """Return a TXT record as a line of a zone file (RFC 1035 5.1).

    `name` is absolute, with or without a dot at the end.
    """
    strings = " ".join(f'"{_escaped(string)}"' for string in txt_strings(text))
    return f"{name.removesuffix('.')}. IN TXT {strings}"


def _escaped(octets: bytes) -> str:
    return "".join(
        f"\\{octet:03}" if octet not in _PRINTABLE else _ESCAPES.get(octet, chr(octet))
        for octet in octets
    )


def parse_record(text: str) -> dict[str, str]:
    """Return the tags of a record in their order, without white space around the values.

    The case of names counts, and the record may end with a semicolon (RFC 6376 3.2). Raises
    RecordError.
    """
    if len(text) > _RECORD_OCTETS_MAX:
        raise RecordError(f"{len(text)} octets")
    pieces = text.split(";")
    if not pieces[-1].strip(_WHITE):
        pieces.pop()
    tags: dict[str, str] = {}
    for piece in pieces:
        match = _TAG.fullmatch(piece)
        if match is None:
            raise RecordError(f'"{_shown(piece.strip(_WHITE))}"')
        name, value = match.groups()
        if name in tags:
            raise RecordError(f"{_shown(name)}= twice")
        tags[name] = value.strip(_WHITE)
    if not tags:
        raise RecordError("no tags")
    return tags


def compare_record(published: Sequence[str], private: PrivateKey) -> ComparedRecord:
    """Compare a key with the texts of all TXT records at its name.

    A text with another version (v=spf1) is not the record of a key, and is ignored (RFC 6376
    3.6.1). Unknown tags, services and flags are ignored, and so are the order of tags and white
    space.
    """
    texts = [text for text in published if not _FOREIGN.match(text)]
    if not texts:
        return ComparedRecord(RecordVerdict.MISSING)
    if len(texts) > 1:
        faults = [RecordFault(f"{len(texts)} records", "one")]
    else:
        try:
            faults = _faults(parse_record(texts[0]), private)
        except RecordError as error:
            faults = [RecordFault(str(error), "tags such as k=rsa with ; between them")]
    return ComparedRecord(RecordVerdict.WRONG if faults else RecordVerdict.OK, tuple(faults))


def _faults(tags: Mapping[str, str], private: PrivateKey) -> list[RecordFault]:
    if tags.get("p") == "":
        return [RecordFault("p= without a key, which revokes it", "p= of this key")]
    faults = []
    if "v" in tags and (tags["v"] != VERSION or next(iter(tags)) != "v"):
        place = "" if tags["v"] != VERSION else " that is not the first tag"
        faults.append(RecordFault(f"v={_shown(tags['v'])}{place}", f"v={VERSION} first"))
    if (kind := tags.get("k", "rsa")) != private.kind:
        kind_tag = f"k={_shown(kind)}" if "k" in tags else "no k="
        faults.append(RecordFault(kind_tag, f"k={private.kind}"))
    for name, accepted in (("h", {"sha256"}), ("s", {"*", "email"})):
        if name in tags and not accepted & listed(tags[name]):
            expected = f"{name}={max(accepted)}, or no {name}="
            faults.append(RecordFault(f"{name}={_shown(tags[name])}", expected))
    if "y" in listed(tags.get("t", "")):
        faults.append(RecordFault(f"t={_shown(tags['t'])}, which is testing", "no y in t="))
    if fault := _fault_of_key(tags.get("p"), private.public()):
        faults.append(RecordFault(fault, "p= of this key"))
    return faults


def _fault_of_key(value: str | None, public: bytes) -> str:
    if value is None:
        return "no p="
    value = value.translate(_WITHOUT_WHITE)
    expected = base64.b64encode(public).decode("ascii")
    if value == expected:
        return ""
    if expected.startswith(value):  # only the first string was published
        return f"p= without its last {len(expected) - len(value)} letters"
    try:
        base64.b64decode(value, validate=True)
    except ValueError:
        return "p= that is no base64"
    return "p= of another key"


def listed(value: str) -> set[str]:
    """Return the parts of a value between colons."""
    return {part.strip(_WHITE) for part in value.split(":")}


def _shown(text: str) -> str:
    """Return the beginning of a text, printable."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[:_SHOWN_MAX])
    return printable + ("…" if len(text) > _SHOWN_MAX else "")
