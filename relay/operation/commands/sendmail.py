"""Send a message as sendmail(8) does, by SMTP to a relay.

The command is a client of the listener and has no other rights. It has no queue: a message that the
relay does not accept is not sent. Rejected recipients are reported. A message for the drop
directory is checked before, as far as the command can do it.

RFC 5322 3.6.3 (Bcc), 3.6.6 (resent fields).
"""

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from email.utils import formatdate
from io import FileIO
from typing import NoReturn

from msgspec import Struct

from relay.base.clock import Clock, Ids
from relay.base.message.address import AddressError, parse_mailbox
from relay.base.message.header import BCC_FIELDS, MBOX_LINES, Header, ParsedContent, with_crlf
from relay.base.message.properties import EmailAddress
from relay.base.running_relay import RejectedError
from relay.base.shares import Shares
from relay.base.socket_address import Address
from relay.formats.address_list import address_entries
from relay.formats.complete_addresses import with_domains
from relay.formats.encode_for_host import with_short_lines
from relay.formats.write_header import address_list_field, raw_field
from relay.transport.ingress.dropped_mail import FILE_BYTES_MAX, RECIPIENTS_MAX, DroppedEnvelope
from relay.transport.ingress.local_users import LocalUsers
from relay.transport.ingress.session_limits import SessionLimits

_FIELDS = ("To", "Cc", "Bcc")
_RESENT_FIELDS = ("Resent-To", "Resent-Cc", "Resent-Bcc")
_GREETING_S = 30.0
_BLOCK_BYTES = 65536
_of_list = re.compile("[,<]")
_bare_lf = re.compile(rb"(?<!\r)\n")
_LONG_LINE = rb"^[^\n]{%d,}\n?"
_long_in_header = re.compile(_LONG_LINE % SessionLimits().header_line_bytes, re.MULTILINE)
_long_in_body = re.compile(_LONG_LINE % SessionLimits().body_line_bytes, re.MULTILINE)


class NoRecipientsError(Exception):
    """Neither the command nor (with -t) the header names a recipient."""


class SendmailOptions(Struct, frozen=True):
    """The options of the command."""

    recipients: tuple[str, ...]  # the arguments
    from_header: bool  # -t: those in To, Cc and Bcc too, or in the Resent fields
    sender: str  # -f, "<>" for the null reverse-path
    name: str  # -F, in a From field that is added
    domain: str  # for addresses without a domain; "": the relay adds it


class OutgoingMessage(Struct, frozen=True):
    """A message for SMTP, with CRLF; `sender` is "" for the null reverse-path."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


def prepare(text: bytes, options: SendmailOptions, *, clock: Clock) -> OutgoingMessage:
    """Return the message of `text`, which has CRLF or LF. Bcc and NULs are removed, lines over the
    limit of a session are folded; From, Date and Message-ID are added if they are missing, and
    domains of addresses. If `options` have no domain, the relay adds the Message-ID, and domains.

    Raises NoRecipientsError, and RejectedError for an invalid address.
    """
    content = with_crlf(text.replace(b"\0", b""))  # what a program prints may have NULs
    if content.startswith(MBOX_LINES):
        content = content.partition(b"\r\n")[2]
    parsed = ParsedContent.of(content)
    header = Header.parse(_folded(_long_in_header, parsed.header.octets))
    addresses = list[str]()
    for words in options.recipients:  # an address, or a list of them with names
        addresses += _addresses("recipient", words) if _of_list.search(words) else [words]
    addresses += _recipients_in(header) if options.from_header else ()
    recipients = tuple(dict.fromkeys(_qualified(address, options.domain) for address in addresses))
    if not recipients:
        raise NoRecipientsError
    is_null = options.sender in ("", "<>")
    sender = "" if is_null else _qualified(options.sender.strip("<>"), options.domain)
    author = EmailAddress(sender or _in_domain("MAILER-DAEMON", options.domain), options.name)
    message_id = f"<{Ids(clock).new()}@{options.domain}>"
    date = formatdate(clock.time_us() / 1_000_000, localtime=True)
    for name, octets in (
        ("From", address_list_field("From", [author])),
        ("Date", raw_field("Date", date)),
        ("Message-ID", raw_field("Message-ID", message_id)),
    ):
        if name not in header and (options.domain or name != "Message-ID"):
            header = header.append(octets.encode())
    if options.domain:
        header = with_domains(header, senders=options.domain, recipients=options.domain)
    assert isinstance(parsed.rest, bytes)  # only what SMTP receives is split
    rest = _folded(_long_in_body, parsed.rest)
    return OutgoingMessage(sender, recipients, header.remove(BCC_FIELDS).octets + rest)


def _folded(long_line: "re.Pattern[bytes]", octets: bytes) -> bytes:
    return long_line.sub(lambda line: with_short_lines(line[0]), octets)


def check_dropped(envelope: DroppedEnvelope, content: bytes, users: LocalUsers | None) -> None:
    """Raise RejectedError for a message that a relay would not take from the drop directory,
    because the sender would get no report. `users` is None if it is not known which senders a user
    may use.
    """
    # slow, and seldom needed
    from relay.transport.ingress.data import ContentCollector  # noqa: PLC0415
    from relay.transport.ingress.send_as import local_rejection  # noqa: PLC0415

    if len(envelope.recipients) > RECIPIENTS_MAX:
        count = len(envelope.recipients)
        raise RejectedError(f"found {count} recipients, expected at most {RECIPIENTS_MAX}")
    size_max_bytes = FILE_BYTES_MAX - len(envelope.line)
    collector = ContentCollector(
        size_max_bytes=size_max_bytes,
        limits=SessionLimits(),
        arrival=_no_arrival,
        budget=Shares("a message", 2 * FILE_BYTES_MAX),
    )
    collector.add(content, is_last=True)
    if collector.rejection is not None:
        raise RejectedError(collector.rejection)
    if users is not None and envelope.sender:
        sender = _in_domain(envelope.sender, users.hostname)
        if rejection := local_rejection(users.find(os.geteuid()), sender):
            raise RejectedError(rejection)


def _no_arrival() -> NoReturn:
    raise AssertionError("nothing is written")


def _recipients_in(header: Header) -> list[str]:
    """Return the addresses in To, Cc and Bcc, or in the Resent fields if there are any.

    Raises RejectedError for an invalid or ambiguous address.
    """
    is_resent = any(name in header for name in _RESENT_FIELDS)
    addresses: list[str] = []
    for name in _RESENT_FIELDS if is_resent else _FIELDS:
        for octets in header.values(name):
            value = octets.decode("utf-8", "replace")
            addresses += _addresses(name, value)
    return addresses


def _addresses(name: str, text: str) -> Iterator[str]:
    for mailbox in address_entries(text, unqualified=True):
        if not mailbox.is_plain:
            unlike = " that all programs read alike" if mailbox.address else ""
            raise RejectedError(f"{name}: {mailbox.text[:200]!a} is not an address{unlike}")
        if mailbox.address:  # a comment has none
            yield mailbox.address


def _qualified(address: str, domain: str) -> str:
    """Return an address, in `domain` if it has none. If `domain` is "", the relay adds it, and it
    knows no localhost. Raises RejectedError.
    """
    full = _in_domain(address, domain) if domain else address.removesuffix("@localhost")
    try:
        if "@" in full:
            return parse_mailbox(full, smtputf8=True)
        return parse_mailbox(f"{full}@localhost", smtputf8=True).rpartition("@")[0]
    except AddressError as error:
        raise RejectedError(f"{address[:200]!a} is not an address: {error}") from None


def _in_domain(address: str, domain: str) -> str:
    return address if "@" in address or not domain else f"{address}@{domain}"


def talk(address: Address, heard: FileIO, said: FileIO) -> None:
    """Pass SMTP from `heard` to the relay, and its replies to `said`, until it closes.

    A line end LF becomes CRLF. Nothing is passed before the greeting. Raises OSError if nobody
    listens.
    """
    with _connected(address) as connection:
        greeting = connection.recv(_BLOCK_BYTES)
        connection.settimeout(None)  # the relay has a time-out for silent clients
        said.write(greeting)
        threading.Thread(target=_pass_on, args=(heard, connection), daemon=True).start()
        with suppress(OSError):  # the connection broke, or the program has closed its end
            while replies := connection.recv(_BLOCK_BYTES):
                said.write(replies)


def _connected(address: Address) -> socket.socket:
    if not address.path:
        return socket.create_connection((address.host, address.port), _GREETING_S)
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(_GREETING_S)
        made.connect(address.path)
    except OSError:
        made.close()
        raise
    return made


def _pass_on(heard: FileIO, connection: socket.socket) -> None:
    last = b""
    with suppress(OSError, ValueError):  # the session is over
        while block := heard.read(_BLOCK_BYTES):
            connection.sendall(_bare_lf.sub(b"\r\n", last + block)[len(last) :])
            last = b"\r" if block.endswith(b"\r") else b""
        connection.shutdown(socket.SHUT_WR)
