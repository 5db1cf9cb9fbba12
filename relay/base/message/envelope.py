"""The envelope of a message (MAIL and RCPT with their parameters), and the facts about a message.

Ingress makes an Envelope from MAIL and a ForwardPath from each RCPT, the spool stores them,
delivery sends them, and reports are about them. Addresses are without angle brackets; "" is the
null reverse-path; domains are lower case.
The second half reads and writes xtext, NOTIFY, ORCPT, RET and ENVID. Case is kept, decoded values
are printable, and decoding is the inverse of encoding. The parsers raise ValueError with the
parameter, the value found and the value expected.
RFC 5321 2.3.1; RFC 3461 4 and 4.1 to 4.4; RFC 6533 3 (the utf-8 address type).
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from relay.base.message.address import ascii_address, excerpt, lower_case
from relay.base.message.tls_policy import IF_OFFERED, REQUIRETLS, TlsDemand


class Notify(StrEnum):
    """A NOTIFY keyword (RFC 3461 4.1)."""

    NEVER = "NEVER"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


class ForwardPath(Struct, frozen=True):
    """One RCPT TO: the address, and its DSN parameters as given.

    `notify` is empty when the client gave no NOTIFY, which means FAILURE (RFC 3461 4.1).
    `orcpt` is decoded, with its address type: "rfc822;Bob@example.net", or "".
    """

    address: str
    notify: frozenset[Notify] = frozenset()
    orcpt: str = ""


class Envelope(Struct, frozen=True):
    """The envelope without its recipients: MAIL FROM with its parameters.

    `ret` is "FULL", "HDRS" or ""; `envid` is decoded; `eight_bit` is BODY=8BITMIME; `tls` is what
    MAIL or the header demands of each hop.
    """

    reverse_path: str
    ret: Annotated[str, Meta(pattern=r"\A(FULL|HDRS)?\Z")] = ""
    envid: str = ""
    smtputf8: bool = False
    eight_bit: bool = False
    tls: TlsDemand = ""

    @property
    def has_requiretls(self) -> bool:
        """Whether MAIL has REQUIRETLS (RFC 8689), also if the mail may be sent without it."""
        return self.tls in (REQUIRETLS, IF_OFFERED)


class Source(StrEnum):
    """How a message was accepted: the `source` condition and the `via` label of metrics."""

    GRAPH = "graph"
    SMTP = "smtp"
    SENDMAIL = "sendmail"
    REPORT = "report"


# In place of a reverse-path where a route is looked up: a delivery report about mail of a trusted
# client or a login. No reverse-path has brackets.
OWN_REPORT = "<report>"


class MessageExtra(Struct, frozen=True, omit_defaults=True):
    """Fields of a message that no query selects by: one JSON text in its row.

    A new field needs a default, but no migration. A stored field keeps its name and meaning.
    """

    tls: TlsDemand = ""  # that of the envelope
    by_sender: bool = False  # without a login: the account is that of the reverse-path
    hides_client: bool = False  # reports do not name the client
    verified: bool = False  # a check passed for the domain of a stranger's reverse-path
    of_trusted: bool = False  # a delivery report about mail of a trusted client or a login
    sent_report: bool = False  # a report that left as mail, and came back: nothing is reported


NO_MESSAGE_EXTRA = MessageExtra()


class MessageFacts(Struct, frozen=True):
    """What is known about an accepted message, without its recipients and content.

    Times are microseconds in queue time (Clock.queue_us).
    """

    id: str  # the queue id; "" for a submission that was not queued
    envelope: Envelope  # reverse-path and parameters of MAIL
    source: Source  # how it arrived
    trusted: bool  # the client logged in or is in a listed network
    received_us: int  # when it was accepted
    expires_us: int = 0  # when recipients without a final state expire
    size: int = 0  # of the original content in octets
    account: str = ""  # owns the trace: the authenticated account or the sender's; "" for strangers
    submission_id: str = ""  # of pickup's submissions, else ""
    client: str = ""  # "name [address]" for Received-From-MTA (RFC 3464 2.2.4)
    message_id: str = ""  # of the header, with angle brackets
    subject: str = ""  # of the header, decoded
    extra: MessageExtra = NO_MESSAGE_EXTRA  # fields that no query selects by

    @property
    def routed_as(self) -> str:
        """The reverse-path by which routes decide, or OWN_REPORT."""
        return OWN_REPORT if self.extra.of_trusted else self.envelope.reverse_path


class Client(Struct, frozen=True):
    """The program that submitted a message by HTTP or SMTP.

    `address` is its IP address, "" on a Unix socket; `helo` the argument of EHLO, "" over HTTP;
    `account` the account that it authenticated as; `tls` the protocol version, such as "TLSv1.3".
    """

    address: str = ""
    helo: str = ""
    account: str = ""
    tls: str = ""


def domain_of(address: str) -> str:
    """Return the part after the last @ in lower case with A-labels; "" for the null path and bare
    Postmaster.
    """
    return lower_case(ascii_address(address).rpartition("@")[2]) if "@" in address else ""


def main_address(address: str, alias_domains: Mapping[str, str]) -> str:
    """Return an address of a domain with `alias_of` in the domain that `alias_of` names.

    Any other address is returned as it is.
    """
    main = alias_domains.get(domain_of(address))
    return f"{address.rpartition('@')[0]}@{main}" if main else address


# Of EHLO and MAIL on the socket of [sendmail], private to Relay (RFC 5321 4.1.5): 128 random bits,
# with which a message is accepted once.
KEY_PARAMETER = "XRELAYKEY"
is_key = re.compile(r"[0-9a-f]{32}").fullmatch

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
    """Return the decoded text; each +HH is one character. Raises ValueError."""
    if not _xtext(text):
        raise ValueError(f"{excerpt(text)} is not xtext: expected +HH in place of + = and spaces")
    if "+" not in text:
        return text
    return _hexchar.sub(lambda match: chr(int(match.group(1), 16)), text)


def encode_xtext(text: str) -> str:
    """Return printable ASCII `text` as xtext. Raises ValueError for anything else."""
    if not _printable(text):
        raise ValueError(f"{excerpt(text)} is not printable ASCII, and cannot be written as xtext")
    return _not_xchar.sub(lambda match: f"+{ord(match.group()):02X}", text)


def parse_notify(value: str) -> frozenset[Notify]:
    """Read NOTIFY=: NEVER alone, or SUCCESS, FAILURE and DELAY, each once (RFC 3461 4.1)."""
    words = value.upper().split(",")
    if len(words) != len(set(words)):
        raise ValueError(f"NOTIFY={excerpt(value)} names a keyword twice")
    try:
        notify = frozenset(Notify(word) for word in words)
    except ValueError:
        raise ValueError(
            f"NOTIFY={excerpt(value)}: expected NEVER, or any of SUCCESS,FAILURE,DELAY"
        ) from None
    if Notify.NEVER in notify and len(notify) > 1:
        raise ValueError("NOTIFY: NEVER must be the only keyword")
    return notify


def parse_ret(value: str) -> str:
    """Read RET=: "FULL" or "HDRS" (RFC 3461 4.3)."""
    ret = value.upper()
    if ret not in ("FULL", "HDRS"):
        raise ValueError(f"RET={excerpt(value)}: expected FULL or HDRS")
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
        raise ValueError(f"ORCPT={excerpt(value)}: expected an address type, ; and an address")
    if kind.lower() == "utf-8":
        return f"{kind};{_decoded_utf8_address(encoded)}"
    return f"{kind};{_decoded(encoded, name='ORCPT')}"


def encode_orcpt(orcpt: str) -> str:
    """Return the value of ORCPT= for "type;address", always in ASCII.

    Raises ValueError if it is not such a pair or not printable.
    """
    kind, semicolon, address = orcpt.partition(";")
    if not semicolon or not _address_type(kind):
        raise ValueError(f"{excerpt(orcpt)} is not an address type, ; and an address")
    if kind.lower() != "utf-8":
        return f"{kind};{encode_xtext(address)}"
    return f"{kind};{encode_utf8_address(address)}"


def encode_utf8_address(address: str, *, unicode: bool = False) -> str:
    r"""Return an address of type utf-8, special and non-ASCII characters as \x{HEX} (RFC 6533 3).

    With `unicode`, non-ASCII characters stay as they are (utf-8-addr-unitext).
    """
    if not _no_control(address):
        raise ValueError(f"{excerpt(address)} has control characters")

    def written(match: re.Match[str]) -> str:
        character = match.group()
        return character if unicode and character > "\x7f" else f"\\x{{{ord(character):02X}}}"

    return _not_qchar.sub(written, address)


def decode_utf8_address(encoded: str) -> str:
    r"""Return an address of type utf-8 with \x{HEX} decoded; an invalid number becomes NUL."""

    def read(match: re.Match[str]) -> str:
        number = int(match.group(1), 16)
        return chr(number) if number <= 0x10FFFF else "\0"

    return _embedded.sub(read, encoded)


def _decoded_utf8_address(encoded: str) -> str:
    address = decode_utf8_address(encoded)
    if not _no_control(address) or " " in encoded:
        raise ValueError(f"ORCPT={excerpt(encoded)} is not an address of type utf-8")
    return address


def _decoded(value: str, *, name: str) -> str:
    try:
        decoded = decode_xtext(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not _printable(decoded):
        raise ValueError(f"{name}={excerpt(value)} decodes to characters that are not printable")
    return decoded
