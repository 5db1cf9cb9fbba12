"""Add a domain to addresses of a header that have none, as cron and logwatch write them.

A field stays as it is if programs may read it in different ways, if an address would be invalid, or
if it is too long. In "Doe, Ann <ann@a.test>" the first word is probably a part of the name.
RFC 5322 3.6.2, 3.6.3, 3.6.6 (Resent fields).
"""

from contextlib import suppress
from itertools import pairwise

from relay.base.message.address import AddressError, parse_mailbox
from relay.base.message.header import Header
from relay.base.message.properties import EmailAddress
from relay.formats.address_list import Entry, address_entries
from relay.formats.encoded_words import decode_words
from relay.formats.write_header import address_list_field

_AUTHORS, _RECIPIENTS = (b"from", b"sender"), (b"to", b"cc")
_OCTETS_MAX = 64 * 1024


def with_domains(header: Header, *, senders: str, recipients: str, author: str = "") -> Header:
    """Return a header in which addresses have a domain: `recipients` in To and Cc, `senders` in
    From, Sender and Reply-To; the same in their Resent fields.

    If From or Sender has one address, and that has no domain, it becomes `author`, unless that is
    "".
    """
    ways = dict.fromkeys(_AUTHORS, (senders, author)) | {b"reply-to": (senders, "")}
    ways |= dict.fromkeys(_RECIPIENTS, (recipients, ""))
    fields = []
    for name, octets in header.fields:
        way = ways.get(name.removeprefix(b"resent-"))
        fields.append((name, _completed(octets, *way) if way else octets))
    return Header(tuple(fields))


def _completed(octets: bytes, domain: str, author: str) -> bytes:
    name, _, body = octets.partition(b":")
    text = body.replace(b"\r\n", b"").decode("utf-8", "replace")
    mailboxes = [] if len(octets) > _OCTETS_MAX else [*address_entries(text, unqualified=True)]
    if all(map(_is_complete, mailboxes)) or not all(mailbox.is_plain for mailbox in mailboxes):
        return octets
    if any(_is_word(word) and "<" in mailbox.text for word, mailbox in pairwise(mailboxes)):
        return octets
    with suppress(AddressError):
        people = [_person(mailbox, domain, author * (len(mailboxes) == 1)) for mailbox in mailboxes]
        return address_list_field(name.decode().strip(), people).encode()
    return octets


def _is_complete(mailbox: Entry) -> bool:
    return "@" in mailbox.address


def _is_word(mailbox: Entry) -> bool:
    return not _is_complete(mailbox) and "<" not in mailbox.text


def _person(mailbox: Entry, domain: str, author: str) -> EmailAddress:
    """Return whom a mailbox names. Raises AddressError."""
    address = mailbox.address
    if not _is_complete(mailbox):
        address = author or parse_mailbox(f"{address}@{domain}")
    return EmailAddress(address, decode_words(mailbox.name.encode()))
