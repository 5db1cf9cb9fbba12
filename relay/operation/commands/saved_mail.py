"""Read saved mail as acceptance passes it to the rules, for `relay policy diff`.

Mail is *.eml, and the files of a Maildir in cur and new. Links are not followed, and no FIFO is
waited for. Messages are read one at a time, large ones by a temporary file. For a copy that was
delivered, the envelope is taken from the journey, if a running relay knows it; else it is taken
from the header. Nothing is changed, and no lock is taken. Functions raise NotMailError and OSError.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from msgspec import Struct, structs

from relay.base.clock import SystemClock
from relay.base.files import OpenOctets
from relay.base.message.address import AddressError, parse_mailbox
from relay.base.message.content import LARGE_BYTES, Content, LargeContent, edit_header, join_octets
from relay.base.message.envelope import Source, main_address
from relay.base.message.header import Header, ParsedContent, header_end, with_crlf
from relay.base.message.lifecycle import RecipientState
from relay.base.message.verdict import ExaminedMessage
from relay.base.running_relay import ControlError, ControlUnavailableError
from relay.base.settings.tree import Settings
from relay.base.settings.validation import is_trusted
from relay.formats.address_list import address_entries
from relay.formats.headers import read_relay_id, without_delivery_fields
from relay.operation.commands.operator_client import OperatorClient
from relay.store.journeys.details import RoutedDetail
from relay.store.journeys.document import Journey, details_in
from relay.store.mailbox.maildir import open_message
from relay.transport.ingress.data import HEADER_BYTES_MAX
from relay.transport.ingress.header_cleanup import without_dropped
from relay.transport.policy.rule_tests import examined_message

MAIL_BYTES_MAX = 256 * 1024 * 1024
_MAILDIR = ("cur", "new")
_RECIPIENTS = ("To", "Cc", "Bcc")
_queue_id = re.compile(rb"\sid ([0-9a-z]{16})\b")  # in the Received field of this relay


class NotMailError(Exception):
    """A file is not mail that can be compared; the text says why."""


class SavedEnvelope(Struct, frozen=True):
    """Sender and recipients of a message. Mail without a client came by a socket of Relay."""

    sender: str  # "" is the null reverse-path
    recipients: tuple[str, ...]  # after the expansion of aliases, if from a journey
    source: Source = Source.SMTP
    client: str = ""  # its IP address
    login: str = ""  # the account


def find_saved(folder: Path, skip: Callable[[Path, str], object]) -> Iterator[Path]:
    """Yield the files with mail below a folder in the order of their names; `skip` gets each
    folder that cannot be read, with the reason.
    """
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                names = sorted((file.name, file.is_dir(follow_symlinks=False)) for file in entries)
        except OSError as error:
            skip(place, reason_of(error))
            continue
        for name, is_folder in names:
            is_mail = name.lower().endswith(".eml") or place.name in _MAILDIR
            if is_mail and not is_folder and not name.startswith("."):
                yield place / name
        waiting += [place / name for name, is_folder in reversed(names) if is_folder]


def reason_of(error: NotMailError | OSError) -> str:
    """Return why a file is not compared."""
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    return str(error)


class SavedMailReader:
    """Reads files; `settings` is None without a configuration."""

    def __init__(self, settings: Settings | None) -> None:
        self._settings = settings
        self._clock = SystemClock()
        self._relay = OperatorClient(settings, self._clock) if settings else None
        # why no journey is asked for, "" while a relay answers
        self.without_journeys = "" if settings else "there is no configuration, nor a local domain"

    def read(self, file: Path) -> tuple[ExaminedMessage, str]:
        """Return a message, and where its envelope comes from: "journey" or "header"."""
        content = _content_of(file)
        header = Header.of(content)
        if not header.names():
            raise NotMailError("no message")
        settings = self._settings
        alias_domains = settings.alias_domains if settings else {}
        if settings and _is_report(header, settings.hostname):
            raise NotMailError("a report or notice of this relay, for which no rule runs")
        known_by, envelope = "journey", self._of_journey(header)
        if envelope is None:
            known_by, envelope = "header", envelope_in(header)
            to = (main_address(address, alias_domains) for address in envelope.recipients)
            envelope = structs.replace(envelope, recipients=tuple(dict.fromkeys(to)))
        if not envelope.recipients:
            raise NotMailError("no recipient")
        client, login = envelope.client, envelope.login
        is_known = settings is not None and bool(client) and is_trusted(settings.smtp, client)
        message = examined_message(
            envelope.sender,
            envelope.recipients,
            edit_header(content, without_delivery_fields),
            source=envelope.source,
            local_domains=settings.own_domains if settings else (),
            client=client,
            login=login,
            is_trusted=not client or bool(login) or is_known,
        )
        edited = message.content
        parsed = ParsedContent(without_dropped(edited.header), edited.rest)
        now_us = self._clock.time_us()  # for the dates of rules
        message = structs.replace(
            message, content=parsed, time_us=now_us, alias_domains=alias_domains
        )
        return message, known_by

    def _of_journey(self, header: Header) -> SavedEnvelope | None:
        """Return the envelope of a copy that local delivery wrote, from the journey of the running
        relay, or None. It asks by the queue id in Received, which is faster than by the copy.
        """
        copy = read_relay_id(header.octets)
        queue_id = _queue_id.search(header.first("Received") or b"")
        if self._relay is None or self.without_journeys or not (copy and queue_id):
            return None
        try:
            journey = self._relay.message_from_relay(queue_id[1].decode())
        except ControlUnavailableError as error:
            self.without_journeys = str(error)
            return None
        except ControlError:  # the relay no longer knows the message
            return None
        is_recipient = any(recipient.graph_id == copy for recipient in journey.recipients)
        return envelope_of(journey) if is_recipient else None


def envelope_of(journey: Journey) -> SavedEnvelope:
    """Return the envelope of a message as the rules got it."""
    routed = next(details_in(journey.steps, RoutedDetail), RoutedDetail())
    recipients = [
        recipient.address
        for recipient in journey.recipients
        if recipient.state != RecipientState.EXPANDED
        and not (
            recipient.state == RecipientState.REDIRECTED and recipient.address in routed.aliases
        )
    ]
    return SavedEnvelope(
        routed.sender.given if routed.sender else journey.sender,
        tuple(dict.fromkeys(recipients)),
        source=Source.GRAPH if journey.submission_id else Source.SMTP,
        client=journey.known_client.address,
        login=journey.known_client.account,
    )


def _is_report(header: Header, hostname: str) -> bool:
    """Return whether a message is a report or notice of this relay, for which no rule runs."""
    author = f"MAILER-DAEMON@{hostname}".casefold()
    authors = [address.casefold() for address in _addresses(header.values("From"))]
    return authors == [author] and "Auto-Submitted" in header


def envelope_in(header: Header) -> SavedEnvelope:
    """Return the envelope from Return-Path, else From; and Delivered-To, else To, Cc and Bcc."""
    author = header.first("Return-Path") if "Return-Path" in header else header.first("From")
    delivered_to = header.first("Delivered-To")
    names = [delivered_to] if delivered_to else [v for n in _RECIPIENTS for v in header.values(n)]
    sender = next(iter(_addresses([author or b""])), "")
    return SavedEnvelope(sender, tuple(dict.fromkeys(_addresses(names))))


def _addresses(values: Iterable[bytes]) -> Iterator[str]:
    for value in values:
        for entry in address_entries(value.decode("utf-8", "replace")):
            try:
                yield parse_mailbox(entry.address, smtputf8=True)
            except AddressError:
                continue


def _content_of(file: Path) -> Content:
    """Return the content of a file, with CRLF line ends."""
    with open_message(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAIL_BYTES_MAX:
            raise NotMailError(f"more than {MAIL_BYTES_MAX >> 20} MiB")
        if size <= LARGE_BYTES:
            return with_crlf(stream.read(LARGE_BYTES))
        with TemporaryFile() as copy:
            eight_bit = False
            for block in _with_crlf(stream):
                copy.write(block)
                eight_bit |= not block.isascii()
            copy.flush()
            octets = OpenOctets.of(copy)
    head = octets.read(0, HEADER_BYTES_MAX)
    end = header_end(head)
    if end.header == len(head):
        raise NotMailError(f"a header of more than {HEADER_BYTES_MAX >> 20} MiB")
    blank = b"" if end.body > end.header else b"\r\n"
    body = join_octets([blank, octets.part(end.header, octets.size)])
    return LargeContent(head[: end.header], body.pieces, eight_bit=eight_bit)


def _with_crlf(stream: BinaryIO) -> Iterator[bytes]:
    kept = b""  # a CR whose LF may be in the next block
    while block := stream.read(LARGE_BYTES):
        block = kept + block
        kept = block[-1:] if block.endswith(b"\r") else b""
        yield with_crlf(block.removesuffix(kept))
    yield b"\r\n" if kept else b""
