"""The packets of the milter protocol, version 6, as libmilter and Postfix exchange them.

A packet is a length of four octets, a command of one octet, and data. Text is octets that end with
NUL. Every fault in what a milter sends raises MilterFaultError, whose text is for the log. A packet
longer than PACKET_OCTETS_MAX is not kept; only the text of a body may be longer, and is returned in
pieces as it arrives.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from relay.base.message.address import AddressError, parse_path

VERSION: Final = 6
PACKET_OCTETS_MAX: Final = 1024 * 1024
_BODY_OCTETS_MAX: Final = 1024 * 1024 * 1024
_REPLY_OCTETS_MAX: Final = 32 * 1024
_REPLY_LINE_MAX: Final = 510  # RFC 5321 4.5.3.1.5, without CRLF
_REASON_CHARACTERS_MAX: Final = 100  # as in Postfix

ACTIONS: Final = 0x1FF  # all: header, body, recipients, sender, quarantine, names of macros
SKIP: Final = 0x400  # the milter may answer "s"
LEADING_BLANK: Final = 0x100000  # values have the blank after the colon
# the milter may say which commands it does not want, and which it does not answer; and the above
STEPS: Final = 0x37F | 0xFF080 | SKIP | LEADING_BLANK

CONTINUE, ACCEPT, REJECT, DEFER, DISCARD = b"c", b"a", b"r", b"t", b"d"
REPLY, SKIP_REST, SHUTDOWN, PROGRESS = b"y", b"s", b"4", b"p"
_WITHOUT_DATA = frozenset((CONTINUE, ACCEPT, REJECT, DEFER, DISCARD, SKIP_REST, SHUTDOWN, PROGRESS))
ADD_FIELD, INSERT_FIELD, CHANGE_FIELD, REPLACE_BODY = b"h", b"i", b"m", b"b"
ADD_RECIPIENT, ADD_WITH_PARAMETERS, REMOVE_RECIPIENT = b"+", b"2", b"-"
CHANGE_SENDER, QUARANTINE, NEGOTIATE = b"e", b"q", b"O"
# for each change, the action that must be negotiated before
NEEDS: Final[Mapping[bytes, int]] = {
    ADD_FIELD: 0x1,
    INSERT_FIELD: 0x1,
    REPLACE_BODY: 0x2,
    ADD_RECIPIENT: 0x4,
    REMOVE_RECIPIENT: 0x8,
    CHANGE_FIELD: 0x10,
    QUARANTINE: 0x20,
    CHANGE_SENDER: 0x40,
    ADD_WITH_PARAMETERS: 0x80,
}

_LENGTH = struct.Struct(">I")
_NEGOTIATION = struct.Struct(">III")
_field_name = re.compile(rb"[!-9;-~]+").fullmatch
_not_folded = re.compile(rb"\r|\n(?![ \t])").search
_reply_line = re.compile(r"([45]\d\d)([ -])(\d?)", re.ASCII).match
_percent = re.compile(r"%(.?)")


class MilterFaultError(Exception):
    """A milter cannot be reached, or broke the protocol. The text says what was found."""


class MilterPacket(Struct, frozen=True):
    """A packet without its length; of the text of a body perhaps a piece."""

    command: bytes  # one octet
    data: bytes = b""


class PacketReader:
    """Splits what a milter sends into packets."""

    def __init__(self) -> None:
        self._octets = bytearray()
        self._body_octets = 0  # of a packet of a body that are still to come

    def feed(self, octets: bytes) -> None:
        """Add what was received."""
        self._octets += octets

    @property
    def is_empty(self) -> bool:
        """Whether nothing follows the last packet."""
        return not self._octets and not self._body_octets

    def next(self) -> MilterPacket | None:
        """Return the next packet, None while it is not complete. Raises MilterFaultError."""
        if self._body_octets:
            return self._body_piece()
        if len(self._octets) < _LENGTH.size:
            return None
        length: int = _LENGTH.unpack_from(self._octets)[0]
        command = bytes(self._octets[_LENGTH.size : _LENGTH.size + 1])
        most = PACKET_OCTETS_MAX if command and command != REPLACE_BODY else _BODY_OCTETS_MAX
        if not 0 < length <= most:
            raise MilterFaultError(f"a packet of {length} octets, expected 1 to {most}")
        if command == REPLACE_BODY:
            del self._octets[: _LENGTH.size + 1]
            self._body_octets = length - 1
            return self._body_piece() if self._body_octets else MilterPacket(command)
        end = _LENGTH.size + length
        if len(self._octets) < end:
            return None
        data = bytes(self._octets[_LENGTH.size + 1 : end])
        del self._octets[:end]
        return MilterPacket(command, data)

    def _body_piece(self) -> MilterPacket | None:
        piece = bytes(self._octets[: self._body_octets])
        del self._octets[: len(piece)]
        self._body_octets -= len(piece)
        return MilterPacket(REPLACE_BODY, piece) if piece else None


def encode(command: bytes, *data: bytes) -> bytes:
    """Return the octets of a packet."""
    octets = b"".join(data)
    return _LENGTH.pack(1 + len(octets)) + command + octets


def text_of(*texts: str | bytes) -> bytes:
    """Return texts in the form of a packet; each ends with NUL, so a NUL in a text is removed."""
    encoded = (text if isinstance(text, bytes) else text.encode(errors="replace") for text in texts)
    return b"".join(octets.replace(b"\0", b"") + b"\0" for octets in encoded)


class Negotiated(Struct, frozen=True):
    """The result of a negotiation with a milter."""

    version: int
    actions: int
    steps: int
    macros: Mapping[int, Sequence[str]]  # the macros that it asks for, by the number of the stage


def offer() -> bytes:
    """Return the packet that opens a connection."""
    return encode(NEGOTIATE, _NEGOTIATION.pack(VERSION, ACTIONS, STEPS))


def negotiated(packet: MilterPacket) -> Negotiated:
    """Read the answer of a milter to offer(). Raises MilterFaultError."""
    if packet.command != NEGOTIATE or len(packet.data) < _NEGOTIATION.size:
        raise MilterFaultError(f"{_shown(packet)} instead of a negotiation")
    version, actions, steps = _NEGOTIATION.unpack_from(packet.data)
    if not 1 < version <= VERSION:
        raise MilterFaultError(f"version {version} of the protocol, expected 2 to {VERSION}")
    if actions & ~ACTIONS:
        raise MilterFaultError(f"actions 0x{actions:x}, offered were 0x{ACTIONS:x}")
    macros: dict[int, list[str]] = {}
    rest = packet.data[_NEGOTIATION.size :]
    while rest:
        names, end, after = rest[_LENGTH.size :].partition(b"\0")
        if not end:
            raise MilterFaultError("a list of macros without its end")
        if macro_names := names.decode("ascii", "replace").replace(",", " ").split():
            macros[_LENGTH.unpack_from(rest)[0]] = macro_names
        rest = after
    return Negotiated(version, actions, steps & STEPS, macros)


class FieldChange(Struct, frozen=True):
    """A field that is added, inserted at a place, or changed: the `place`-th of its name."""

    command: bytes
    place: int
    name: bytes
    value: bytes  # lines end with LF; without, CHANGE_FIELD removes the field


class PathChange(Struct, frozen=True):
    """Another sender, or a recipient that is added or removed. ESMTP parameters do not count."""

    command: bytes
    address: str  # without angle brackets; "": the null reverse-path


def change_of(packet: MilterPacket) -> FieldChange | PathChange | str | bytes:
    """Return the change in a packet: a reason of quarantine is text, a piece of a body octets.
    Raises MilterFaultError.
    """
    command, data = packet.command, packet.data
    if command == REPLACE_BODY:
        return data
    if command == QUARANTINE:
        (reason,) = _texts(packet, data, 1)
        text = "".join(
            character if character.isprintable() else "?" for character in _decoded(packet, reason)
        )
        return text[:_REASON_CHARACTERS_MAX]
    if command in (ADD_FIELD, INSERT_FIELD, CHANGE_FIELD):
        place = 0
        if command != ADD_FIELD:
            if len(data) < _LENGTH.size:
                raise MilterFaultError(f"{_shown(packet)} without a number")
            place, data = _LENGTH.unpack_from(data)[0], data[_LENGTH.size :]
        name, value = _texts(packet, data, 2)
        if not _field_name(name):
            raise MilterFaultError(f"{_shown(packet)} with {name[:40]!r} as the name of a field")
        if _not_folded(value):
            raise MilterFaultError(f"{_shown(packet)} with a line in {name[:40]!r} that is no fold")
        return FieldChange(command, place, name, value)
    optional = command in (ADD_WITH_PARAMETERS, CHANGE_SENDER) and data.count(b"\0") > 1
    texts = [_decoded(packet, octets) for octets in _texts(packet, data, 2 if optional else 1)]
    path = texts[0].strip(" ")
    try:
        address, _ = parse_path(path if path.startswith("<") else f"<{path}>", smtputf8=True)
    except AddressError as error:
        raise MilterFaultError(f"{_shown(packet)}: {error}") from None
    if not all(map(str.isprintable, texts)):
        raise MilterFaultError(f"{_shown(packet)} with a control character")
    return PathChange(command, address)


def reply_of(packet: MilterPacket) -> str:
    """Return a well-formed reply, its lines with CRLF between them.

    libmilter's "%%" becomes "%". Lines that are too long for SMTP are cut. Raises MilterFaultError.
    """
    text = packet.data.removesuffix(b"\0").decode("ascii", "replace").replace("\ufffd", "?")
    lines = text.replace("\t", " ").split("\r\n")
    codes = set()
    for number, line in enumerate(lines, 1):
        match = _reply_line(line)
        code, end, digit = match.groups() if match else ("", "", "")
        is_fit = end == (" " if number == len(lines) else "-") and digit in ("", code[0])
        if not is_fit or not line.isprintable():
            raise MilterFaultError(f"the reply {line[:80]!r}")
        codes.add(code)
    if len(codes) > 1 or len(text) > _REPLY_OCTETS_MAX:
        raise MilterFaultError(f"a reply of {len(codes)} codes and {len(text)} octets")
    return "\r\n".join(_percent.sub(r"\1", line)[:_REPLY_LINE_MAX] for line in lines)


def check_bare(packet: MilterPacket) -> None:
    """Raise MilterFaultError unless the packet is one of the answers without data."""
    if packet.command not in _WITHOUT_DATA or packet.data:
        raise MilterFaultError(f"{_shown(packet)} with {len(packet.data)} octets of data")


def _texts(packet: MilterPacket, data: bytes, expected: int) -> list[bytes]:
    *texts, rest = data.split(b"\0")
    if rest or len(texts) != expected:
        raise MilterFaultError(f"{_shown(packet)} with {len(texts)} texts, expected {expected}")
    return texts


def _decoded(packet: MilterPacket, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise MilterFaultError(f"{_shown(packet)} with text that is not UTF-8") from None


def _shown(packet: MilterPacket) -> str:
    return f"the answer {packet.command!r}"
