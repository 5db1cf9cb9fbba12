"""The record of a refusal, its line of text, and the search for records.

The fields of a record and their order are those of GET /relay/v1/refused (docs/names.md). No two
records of a store have the same time, so the time is the position of a record. The cursor of a page
is such a time.
"""

import re
from collections import deque
from collections.abc import Iterable
from enum import StrEnum

import msgspec
from msgspec import Struct

from relay.base.clock import rfc3339, time_us_of
from relay.base.message.address import own_mailbox
from relay.base.phrases import named

RECIPIENTS_MAX = 10  # named in a record
PAGE_MAX = 1000  # records
_DAY_US = 86_400_000_000
_is_time = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z").fullmatch


class RefusalReason(StrEnum):
    """Why something was refused."""

    RULE = "rule"  # a mail-flow rule, or the rules could not be applied
    SENDER = "sender"  # an address that the account may not use, or of an unknown domain
    CLIENT = "client"  # its name in EHLO; its address: no PTR record, or listed by a DNSBL
    RECIPIENT = "recipient"  # unknown, relaying, or a full mailbox
    LOGIN = "login"  # missing, wrong, delayed or ended
    TLS = "tls"  # missing, or its handshake failed
    SIZE = "size"  # of the message
    SYNTAX = "syntax"  # of a command or of the content, or the order of commands
    LIMIT = "limit"  # of recipients, sessions, errors, hops, or what an account sends
    PRESSURE = "pressure"  # Relay takes no mail now, stops, or has an internal error
    MILTER = "milter"  # a milter, or one that is down
    CHECKS = "checks"  # DMARC


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """One refused command, connection or TLS handshake. Values that do not apply are ""."""

    at: str  # RFC 3339 UTC with six fraction digits and Z
    client: str = ""  # its IP address
    helo: str = ""  # the argument of EHLO
    listener: str = ""  # the address that the client connected to
    account: str = ""  # the login; of a refused AUTH, the user name that the client sent
    sender: str = ""  # the reverse-path
    recipients: tuple[str, ...] = ()  # at most 10 of them
    recipient_count: int = 0  # the number of all recipients
    subject: str = ""  # only of a content that was refused
    command: str = ""  # the verb, CONNECT for a connection, "" for what is no command
    reply: str = ""  # for a failed TLS handshake, what failed
    reason: RefusalReason
    rule: str = ""  # the name of the rule, or of the milter
    times: int = 1  # more: further ones were only counted, beyond 1,000 a day of a client

    def concerns(self, address: str) -> bool:
        """Whether `address`, as own_mailbox() returns it, is the client, the login, the sender or
        a recipient.
        """
        named = (self.client, self.account, self.sender, *self.recipients)
        return address in map(own_mailbox, named)


def line_of(refusal: Refusal) -> str:
    """Return a line such as `refused 550 5.7.1 app@example.test -> ann@customer.example "Setup"
    (rule "no executables": Send no programs)`. It may have control characters of a terminal.
    """
    code, text = _split(refusal.reply)
    by = "milter" if refusal.reason is RefusalReason.MILTER else "rule"
    why = ": ".join(filter(None, (f'{by} "{refusal.rule}"' if refusal.rule else "", text)))
    words = ["refused", code, *_who(refusal)]
    if refusal.subject:
        words.append(f'"{refusal.subject}"')
    if why:
        words.append(f"({why})")
    if refusal.times > 1:
        words.append(f"{refusal.times} times")
    return " ".join(filter(None, words))


def _split(reply: str) -> tuple[str, str]:
    """Split a reply into its codes and its text; a failed TLS handshake has no codes."""
    code, _, rest = reply.partition(" ")
    if not (len(code) == 3 and code.isdigit()):
        return "", reply
    status, _, text = rest.partition(" ")
    return (f"{code} {status}", text) if status[:1] == code[:1] else (code, rest)


def _who(refusal: Refusal) -> list[str]:
    """Return who was refused: sender and recipients, the login, or the client."""
    is_transaction = refusal.command in ("MAIL", "RCPT", "DATA", "BDAT")
    if is_transaction and (refusal.sender or refusal.recipients):
        sender = refusal.sender or "<>"
        to = named(refusal.recipients, refusal.recipient_count, most=3)
        return [f"{sender} -> {to}" if refusal.recipients else sender]
    if refusal.command == "AUTH" and refusal.account:
        return ["login", refusal.account]
    return [refusal.command, "from", refusal.client] if refusal.client else [refusal.command]


class RefusalSearch(Struct, frozen=True):
    """A search for records.

    `address` is a mail or IP address, or "" for all. `account` is the login whose records may be
    seen, None for all. `after` and `before` are cursors, or "".
    """

    address: str = ""
    account: str | None = None
    after: str = ""
    before: str = ""
    limit: int = 100

    def matches(self, refusal: Refusal) -> bool:
        """Whether a record matches, whatever its time."""
        if self.account is not None and own_mailbox(refusal.account) != own_mailbox(self.account):
            return False
        return not self.address or refusal.concerns(own_mailbox(self.address))


class RefusalPage(Struct, frozen=True):
    """A page of records, the newest first.

    Records after `cursor` are later. `older` is the cursor for `before`; None: none is older.
    """

    refused: list[Refusal] = []
    cursor: str = ""
    older: str | None = None


def is_cursor(text: str) -> bool:
    """Whether `text` has the form of a cursor."""
    return _is_time(text) is not None


def place_after(last: str, at: str) -> str:
    """Return the time of a new record at the time `at`, after a record with the time `last`.

    It is `at`, or a microsecond after `last` if the clock has not advanced. If `last` is far in the
    future, the clock was wrong, and `at` is returned.
    """
    if at > last:
        return at
    last_us = time_us_of(last)
    return at if last_us - time_us_of(at) > _DAY_US else rfc3339(last_us + 1)


def select(newest_first: Iterable[Refusal], search: RefusalSearch, *, last: str) -> RefusalPage:
    """Return a page of the records that match. `last` is the time of the newest record of all."""
    refusals: deque[Refusal] = deque(maxlen=search.limit)
    older: str | None = None
    for refusal in newest_first:
        if refusal.at <= search.after:
            break
        if (search.before and refusal.at >= search.before) or not search.matches(refusal):
            continue
        if not search.after and len(refusals) == search.limit:
            older = refusals[-1].at
            break
        refusals.append(refusal)
    cursor = refusals[0].at if refusals else max(search.after, last)
    return RefusalPage(list(refusals), cursor, older)
