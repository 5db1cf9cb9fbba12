"""Read and write the DSN parameters of MAIL and RCPT: xtext, NOTIFY, ORCPT, RET, ENVID.

On the path: ingress parses them, smtp writes them for a next hop that offers DSN.
Holds: case is kept; what comes out is printable; decoding undoes encoding.
Fails: ValueError that names the parameter, what was found and what was expected.
Standards: RFC 3461 4 and 4.1 to 4.4; RFC 6533 3 (the utf-8 address type).
"""

import re

from relay.message.address import shown
from relay.message.envelope import Notify

ENVID_CHARACTERS_MAX = 100
ORCPT_CHARACTERS_MAX = 500

_xtext = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*").fullmatch
_hexchar = re.compile(r"\+([0-9A-F]{2})")
_not_xchar = re.compile(r"[^!-*,-<>-~]")
_address_type = re.compile(r"[A-Za-z0-9-]{1,60}").fullmatch
_printable = re.compile(r"[ -~]*").fullmatch
_embedded = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")
_not_qchar = re.compile(r"[^!-*,-<>-\[\]-~]")
_no_control = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*").fullmatch


def decode_xtext(text: str) -> str:
    """Return what `text` stands for; each +HH is one character. Raises ValueError."""
    if not _xtext(text):
        raise ValueError(f"{shown(text)} is not xtext: expected +HH in place of + = and spaces")
    if "+" not in text:
        return text
    return _hexchar.sub(lambda found: chr(int(found.group(1), 16)), text)


def encode_xtext(text: str) -> str:
    """Return printable ASCII `text` as xtext. Raises ValueError for anything else."""
    if not _printable(text):
        raise ValueError(f"{shown(text)} is not printable ASCII, so it has no xtext")
    return _not_xchar.sub(lambda found: f"+{ord(found.group()):02X}", text)


def parse_notify(value: str) -> frozenset[Notify]:
    """Read NOTIFY=: NEVER alone, or SUCCESS, FAILURE and DELAY, each once (RFC 3461 4.1)."""
    words = value.upper().split(",")
    if len(words) != len(set(words)):
        raise ValueError(f"NOTIFY={shown(value)} names a keyword twice")
    try:
        notify = frozenset(Notify(word) for word in words)
    except ValueError:
        raise ValueError(
            f"NOTIFY={shown(value)}: expected NEVER, or any of SUCCESS,FAILURE,DELAY"
        ) from None
    if Notify.NEVER in notify and len(notify) > 1:
        raise ValueError("NOTIFY: NEVER stands alone")
    return notify


def parse_ret(value: str) -> str:
    """Read RET=: "FULL" or "HDRS" (RFC 3461 4.3)."""
    ret = value.upper()
    if ret not in ("FULL", "HDRS"):
        raise ValueError(f"RET={shown(value)}: expected FULL or HDRS")
    return ret


def parse_envid(value: str) -> str:
    """Read ENVID=, decoded, at most 100 printable characters (RFC 3461 4.4)."""
    envid = _decoded(value, name="ENVID")
    if not envid or len(envid) > ENVID_CHARACTERS_MAX:
        raise ValueError(f"ENVID has {len(envid)} characters: expected 1 to {ENVID_CHARACTERS_MAX}")
    return envid


def parse_orcpt(value: str) -> str:
    """Read ORCPT=: "rfc822;Bob@example.net" with the address decoded (RFC 3461 4.2)."""
    if len(value) > ORCPT_CHARACTERS_MAX:
        raise ValueError(f"ORCPT is longer than {ORCPT_CHARACTERS_MAX} characters")
    kind, semicolon, encoded = value.partition(";")
    if not semicolon or not encoded or not _address_type(kind):
        raise ValueError(f"ORCPT={shown(value)}: expected an address type, ; and an address")
    if kind.lower() == "utf-8":
        return f"{kind};{_decoded_utf8_address(encoded)}"
    return f"{kind};{_decoded(encoded, name='ORCPT')}"


def encode_orcpt(orcpt: str) -> str:
    """Return the value for ORCPT= of "type;address", in ASCII whatever the next hop takes.

    Raises ValueError for what is no such pair or not printable.
    """
    kind, semicolon, address = orcpt.partition(";")
    if not semicolon or not _address_type(kind):
        raise ValueError(f"{shown(orcpt)} is not an address type, ; and an address")
    if kind.lower() != "utf-8":
        return f"{kind};{encode_xtext(address)}"
    return f"{kind};{encode_utf8_address(address)}"


def encode_utf8_address(address: str, *, unicode: bool = False) -> str:
    r"""Return an address of type utf-8: what is special, or not ASCII, as \x{HEX} (RFC 6533 3).

    With `unicode` what is not ASCII stays as it is (utf-8-addr-unitext).
    """
    if not _no_control(address):
        raise ValueError(f"{shown(address)} has control characters")

    def written(found: re.Match[str]) -> str:
        character = found.group()
        return character if unicode and character > "\x7f" else f"\\x{{{ord(character):02X}}}"

    return _not_qchar.sub(written, address)


def _decoded_utf8_address(encoded: str) -> str:
    def read(found: re.Match[str]) -> str:
        number = int(found.group(1), 16)
        return chr(number) if number <= 0x10FFFF else "\0"

    address = _embedded.sub(read, encoded)
    if not _no_control(address) or " " in encoded:
        raise ValueError(f"ORCPT={shown(encoded)} is no address of type utf-8")
    return address


def _decoded(value: str, *, name: str) -> str:
    try:
        decoded = decode_xtext(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not _printable(decoded):
        raise ValueError(f"{name}={shown(value)} stands for characters that are not printable")
    return decoded
