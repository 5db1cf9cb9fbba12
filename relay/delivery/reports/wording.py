"""What the templates of a report are given: its fields, its class of failure, its language.

Values from outside are clipped to one line. Only the first recipients are given; the second part
of a report has all.
RFC 3463 and its registry (the classes), RFC 3282 (Accept-Language).
"""

import re
from collections.abc import Collection, Sequence
from enum import StrEnum

from msgspec import Struct

from relay.base.message.envelope import domain_of
from relay.base.message.header import Header
from relay.base.message.status import SPAM_WORDS, one_line, split_reply
from relay.formats import dsn
from relay.formats.headers import date_field
from relay.formats.mdn import Receipt

SHOWN_RECIPIENTS_MAX = 100  # in the text and the html; the second part has all
_ACCEPTED_CHARACTERS_MAX = 500  # of an Accept-Language
_CANCELLED = "5.0.0"  # of this relay: no other status says that an operator ended it
_LAST = "; last: "  # in the reply of an expired recipient, before what the last attempt gave
# An answer of Microsoft Graph, or what it is not asked to take: no host of the recipient replied.
_of_own_way = re.compile(r"HTTP (\d+) ?(\w*)|5\.3\.4 ").match
_sizes = re.compile(r"\b\d++(?:[.,]\d++)?+ ?[KMG]B\b").findall


class FailureClass(StrEnum):
    """Why a recipient failed, as users see it; also the name of the text about it."""

    UNKNOWN_ADDRESS = "unknown_address"
    MOVED = "moved"
    NO_SUCH_DOMAIN = "no_such_domain"  # or one that accepts no mail
    SENDER_REFUSED = "sender_refused"
    MAILBOX_FULL = "mailbox_full"
    MAILBOX = "mailbox"  # another problem with it
    TOO_LARGE = "too_large"
    OWN_WAY = "own_way"  # refused by Microsoft Graph, by which this relay sends
    SPAM = "spam"
    RULE = "rule"  # of this relay, which has a text
    REFUSED = "refused"  # by rules of the remote host
    TLS_REQUIRED = "tls_required"
    LOOP = "loop"
    TIME_OUT = "time_out"
    UNREACHABLE = "unreachable"
    CONTENT = "content"
    CANCELLED = "cancelled"  # by an operator of this relay
    DUPLICATE_RISK = "duplicate_risk"  # it is unknown whether the message was sent
    OTHER = "other"


_CLASSES = {  # by detail, else by subject
    "1": FailureClass.UNKNOWN_ADDRESS,
    "1.2": FailureClass.NO_SUCH_DOMAIN,
    "1.6": FailureClass.MOVED,
    "1.7": FailureClass.SENDER_REFUSED,
    "1.8": FailureClass.SENDER_REFUSED,
    "1.10": FailureClass.NO_SUCH_DOMAIN,
    "2": FailureClass.MAILBOX,
    "2.2": FailureClass.MAILBOX_FULL,
    "2.3": FailureClass.TOO_LARGE,
    "3": FailureClass.UNREACHABLE,
    "3.4": FailureClass.TOO_LARGE,
    "4": FailureClass.UNREACHABLE,
    "4.4": FailureClass.NO_SUCH_DOMAIN,
    "4.6": FailureClass.LOOP,
    "4.7": FailureClass.TIME_OUT,
    "5": FailureClass.CONTENT,
    "6": FailureClass.CONTENT,
    "7": FailureClass.REFUSED,
    "7.4": FailureClass.TLS_REQUIRED,
    "7.5": FailureClass.TLS_REQUIRED,
    "7.10": FailureClass.TLS_REQUIRED,
}
_SUCCESSES = frozenset({dsn.ReportKind.DELIVERED, dsn.ReportKind.RELAYED, dsn.ReportKind.EXPANDED})


class RecipientFields(Struct, frozen=True):
    """`recipient`: one recipient, as templates see it. Fields that do not apply are ""."""

    address: str  # as the message was sent to it
    domain: str  # of the address
    status: str  # such as "5.2.2"
    detail: str  # "2.2" of "5.2.2", or Graph's code; of the last reply, if the recipient expired
    host: str  # who gave the reply: the remote host, or this relay
    reply: str  # word for word
    text: str  # the reply without its codes
    rule: str  # of this relay that refused the message
    time: str  # of the last attempt
    limit: str = ""  # the size in the reply, such as "25 MB", if it names one
    why: str = ""  # it failed or is delayed; "" for a success
    advice: str = ""  # what to do; "" for a success or a delay


class Reason(Struct, frozen=True):
    """Recipients that have the same text."""

    why: str
    advice: str
    recipients: Sequence[RecipientFields]


class Failure(Struct, frozen=True):
    """A recipient's failure: its class; whether attempts were made and have been given up."""

    kind: FailureClass
    detail: str
    gave_up: bool


def failure_of(kind: dsn.ReportKind, recipient: dsn.ReportedRecipient) -> Failure:
    """Return how a failure or delay is explained. What expired is explained by its last reply."""
    evidence = recipient.evidence
    first, _, detail = evidence.status.partition(".")
    gave_up, reply = first == "4", evidence.reply
    if detail == "4.7" and _LAST in reply:
        reply = reply.partition(_LAST)[2]
        last = recipient.last_status or split_reply(reply).status
        if last_detail := last.partition(".")[2]:
            gave_up, detail = True, last_detail
    if kind is dsn.ReportKind.UNKNOWN:
        return Failure(FailureClass.DUPLICATE_RISK, detail, gave_up=False)
    own_status = "" if evidence.remote else evidence.status
    if own_status == _CANCELLED:
        return Failure(FailureClass.CANCELLED, detail, gave_up=False)
    failure = _CLASSES.get(detail) or _CLASSES.get(detail.partition(".")[0], FailureClass.OTHER)
    if answer := _of_own_way(reply):
        failure, detail = FailureClass.OWN_WAY, answer[2] or answer[1] or detail
    elif recipient.rule or own_status == "5.7.1":
        failure = FailureClass.RULE
    elif failure is FailureClass.REFUSED and SPAM_WORDS.search(reply):
        failure = FailureClass.SPAM
    return Failure(failure, detail, gave_up=gave_up and kind is dsn.ReportKind.FAILED)


def recipient_fields(
    recipient: dsn.ReportedRecipient, *, detail: str, hostname: str
) -> RecipientFields:
    """Return a recipient without its explanation."""
    evidence, address = recipient.evidence, one_line(recipient.path.address)
    reply = dsn.clipped(evidence.reply)
    sizes = _sizes(reply)
    return RecipientFields(
        address=address,
        domain=domain_of(address),
        status=evidence.status,
        detail=detail,
        host=dsn.clipped(evidence.host) if evidence.remote and evidence.host else hostname,
        reply=reply,
        text=split_reply(reply).text,
        rule=dsn.clipped(recipient.rule),
        time=date_field(recipient.last_attempt_us) if recipient.last_attempt_us else "",
        limit=sizes[0] if len(sizes) == 1 else "",  # of two, one is the message's
    )


def message_fields(report: dsn.Report, header: Header) -> dict[str, str]:
    """Return what templates are given about the message; times are wall-clock time."""
    message = report.message
    until_us = message.expires_us if report.kind is dsn.ReportKind.DELAYED else 0
    return {
        "kind": str(report.kind),
        "sender": one_line(message.envelope.reverse_path),
        "subject": one_line(dsn.short_subject(header)),
        "message_id": dsn.message_id_of(header),
        "arrived": date_field(message.received_us),
        "until": date_field(until_us) if until_us else "",
        "hostname": report.hostname,
        "queue_id": message.id,  # a submission that was not queued has none
    }


def receipt_fields(receipt: Receipt) -> dict[str, str]:
    """Return what the templates of a read receipt are given, without its language."""
    request = receipt.request
    return {
        "kind": str(receipt.kind),
        "sender": one_line(request.to),
        "address": one_line(request.recipient),
        "subject": one_line(request.subject),
        "message_id": request.message_id,
        "time": date_field(receipt.now_us),
        "hostname": receipt.hostname,
        "queue_id": receipt.queue_id,
    }


def is_success(kind: dsn.ReportKind) -> bool:
    """Return whether a report of this kind is good news."""
    return kind in _SUCCESSES


def accepted_language(value: str, known: Collection[str]) -> str:
    """Return the first known language in the value of Accept-Language, "" if none is."""
    tags = (part.strip().partition(";")[0] for part in value[:_ACCEPTED_CHARACTERS_MAX].split(","))
    languages = (tag.partition("-")[0].strip().lower() for tag in tags)
    return next((language for language in languages if language in known), "")
