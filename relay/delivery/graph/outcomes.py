"""The table from answers of Microsoft Graph to outcomes.

Only 201 and 202 mean that a message was taken. What the operator has to correct is deferred with
the class auth, so that no mail is lost because of it. An answer that is not in the table is
deferred. The codes are in learn.microsoft.com/graph/errors and in the reports of users.
"""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.outcome import DeferralClass, Deferred, Failed, Outcome, Peer
from relay.base.phrases import printable
from relay.delivery.http_connection import HttpResponse

TAKEN = frozenset((201, 202))
_INVALID_RECIPIENT = "5.1.3"  # RFC 3463 3.2
PAUSE_S_MAX = 3600.0
_MESSAGE_CHARACTERS_MAX = 300
_CODE_CHARACTERS_MAX = 80
_UNSURE = frozenset((404, 408))  # a gateway, or a copy that is not there yet, may answer so
_GRANT = (
    "Mail.ReadWrite or Mail.Send is missing, or this mailbox is outside of their scope (RBAC,"
    " access policy); grant both, or set confirm = false in the route, which needs Mail.Send alone"
)
_USER = "the user of the route's auth is no mailbox of Exchange Online"


class _Row(Struct, frozen=True):
    """An outcome: its RFC 3463 status, its class (None: failed), what the operator can do."""

    status: str
    kind: DeferralClass | None = None
    advice: str = ""


_AUTH, _SITE = DeferralClass.AUTH, DeferralClass.SITE
# By the status, and the beginning of the code; "" is for all others.
_ROWS: Mapping[tuple[int, str], _Row] = {
    (200, ""): _Row("5.3.4", advice="only 201 and 202 mean taken: it may be too large"),
    (400, "ErrorInvalidRecipients"): _Row(_INVALID_RECIPIENT),
    (400, "ErrorMessageSizeExceeded"): _Row("5.3.4"),
    (400, "ErrorMimeContentInvalid"): _Row("5.6.0"),
    (401, ""): _Row("4.7.8", _AUTH),
    (403, "ErrorSendAsDenied"): _Row("5.7.1", advice="the mailbox has no SendAs for its From"),
    (403, "ErrorAccessDenied"): _Row("4.7.0", _AUTH, _GRANT),
    (403, "ErrorQuotaExceeded"): _Row("4.2.2", _SITE),
    (403, ""): _Row("4.7.0", _AUTH),
    (404, "ErrorInvalidUser"): _Row("4.7.0", _AUTH, _USER),
    (404, "MailboxNotEnabledForRESTAPI"): _Row("4.7.0", _AUTH, _USER),
    (404, "ResourceNotFound"): _Row("4.7.0", _AUTH, _USER),
    (413, "ErrorQuotaExceeded"): _Row("4.2.2", _SITE),
    (413, ""): _Row("5.3.4"),
    (429, ""): _Row("4.3.2", _SITE),
}
_OTHER = _Row("4.3.0", _SITE)


class _Error(Struct):
    code: str = ""
    message: str = ""


class _ErrorBody(Struct):
    error: _Error = msgspec.field(default_factory=_Error)


def outcome_of(answer: HttpResponse, peer: Peer) -> Deferred | Failed:
    """Return the outcome of an answer that is not what was asked for."""
    row = _row_of(answer)
    reply = reply_of(answer) + (f"; {row.advice}" if row.advice else "")
    evidence = replace(peer.evidence(row.status, reply, remote=True), pause_s=pause_s(answer))
    return Failed(evidence) if row.kind is None else Deferred(evidence, row.kind)


def is_of_one(outcome: Outcome) -> bool:
    """Return whether it is for one recipient of the request: Graph does not say which."""
    return outcome.evidence.status == _INVALID_RECIPIENT


def is_refused(answer: HttpResponse) -> bool:
    """Return whether an answer proves that the request had no effect."""
    status, has_code = answer.status, bool(_error_of(answer).code)
    is_sure = status not in _UNSURE or _row_of(answer) is not _OTHER
    return status in (401, 413, 429) or (400 <= status < 500 and is_sure and has_code)


def is_missing(answer: HttpResponse) -> bool:
    """Return whether Graph says that there is no such message, in a mailbox that is there."""
    return answer.status == 404 and bool(_error_of(answer).code) and _row_of(answer) is _OTHER


def reply_of(answer: HttpResponse) -> str:
    """Return an answer as one line: "HTTP 403 ErrorAccessDenied: Access is denied. (…)"."""
    error = _error_of(answer)
    reply = f"HTTP {answer.status} {error.code}".rstrip()
    if error.message:
        reply += f": {error.message[:_MESSAGE_CHARACTERS_MAX]}"
    if request_id := answer.fields.get("request-id", "")[:_CODE_CHARACTERS_MAX]:
        reply += f" (request-id {request_id})"
    return printable(reply)


def pause_s(answer: HttpResponse) -> float:
    """Return how many seconds a host asks to wait, by the Retry-After of 429 and 5xx: it is a
    number of seconds, or a date, which counts from the date of the answer (RFC 9110 10.2.3).
    """
    text = answer.fields.get("retry-after", "")
    if (answer.status != 429 and answer.status // 100 != 5) or not text:
        return 0.0
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return min(float(text), PAUSE_S_MAX)
    try:
        at = parsedate_to_datetime(text)
        wait_s = (at - parsedate_to_datetime(answer.fields.get("date", ""))).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(wait_s, 0.0), PAUSE_S_MAX)


def _row_of(answer: HttpResponse) -> _Row:
    code = _error_of(answer).code
    rows = (
        row
        for (status, start), row in _ROWS.items()
        if status == answer.status and code.startswith(start)
    )
    return next(rows, _OTHER)


def _error_of(answer: HttpResponse) -> _Error:
    try:
        error = msgspec.json.decode(answer.body, type=_ErrorBody).error
    except (ValueError, RecursionError):
        return _Error()
    return _Error(error.code[:_CODE_CHARACTERS_MAX], error.message)
