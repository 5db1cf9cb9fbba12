"""Clean up the header of an arriving message: drop Bcc; add Received, complete missing fields.

It works as Postfix's cleanup(8) and message_drop_headers. Milters see neither the dropped nor the
added fields; the mail rules see the result. All other fields keep their octets. A content without a
header gets one.

RFC 5321 4.4 (Received, Return-Path), 6.3 (loops); RFC 5322 3.6.3 (Bcc); RFC 6409 8 (Date,
Message-ID); RFC 8601 2.2, 5 (Authentication-Results); RFC 8689 4.1 (TLS-Required).
"""

import re
from collections.abc import Sequence

from msgspec.structs import replace

from relay.base.message.address import DOMAIN_OCTETS_MAX, AddressError, to_ascii_domain
from relay.base.message.conversation import own_message_id
from relay.base.message.envelope import Envelope, ForwardPath
from relay.base.message.header import BCC_FIELDS, Header
from relay.base.message.properties import EmailAddress
from relay.base.message.tls_policy import OPTIONAL
from relay.formats import headers
from relay.formats.encoded_words import decode_words
from relay.formats.headers import LINE_OCTETS_MAX, Priority, priority_of
from relay.formats.report_as_mail import REPORT_FIELD
from relay.formats.write_header import address_list_field
from relay.store.spool.types import PriorityLevel
from relay.transport.ingress.data import Origin

# The final delivery writes Return-Path, and Content-Length is wrong once the content changes.
_DROPPED = (*BCC_FIELDS, "Content-Length", "Return-Path")
_PRIVATE_PREFIX = "X-Relay-"  # a client could forge them
_RESULTS = "Authentication-Results"
_PARENTHESES = re.compile(r"\\.|\(+|\)+", re.DOTALL)
_QUOTED = r'"(?P<quoted>(?>[^"\\]|\\.)*+)"'
_COMMENT = r"\((?>[^()\\]|\\.)*+\)"  # without another one inside
_WORD = r"(?P<word>[^\s()<>@,;:\\\"/\[\]?=]++)"
_TOKEN = re.compile(rf'{_QUOTED}|(?>{_COMMENT}|[\s)])++|"|(?P<open>\()|{_WORD}', re.DOTALL)
_TOKEN_AFTER_UNCLOSED = re.compile(rf'{_QUOTED}|(?>{_COMMENT}|[\s()])++|"|{_WORD}', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_IDEOGRAPHIC_STOPS = re.compile("[\u3002\uff0e\uff61]")  # dots between labels (RFC 3490 3.1)


def cleaned(header: Header, *, origin: Origin, hostname: str) -> Header:
    """Return a header without X-Relay-*, Bcc, Resent-Bcc, Return-Path and Content-Length fields.
    X-Relay-Report stays: it ends loops, and a client that forges it hears of no failure.

    Mail from a client that is not trusted loses the Authentication-Results fields of `hostname`.
    """
    header = header.remove(_DROPPED, prefix=_PRIVATE_PREFIX, but=REPORT_FIELD)
    if _RESULTS in header and not origin.trusted:
        header = _without_results_of(hostname, header)
    return header


def completed(
    header: Header,
    envelope: Envelope,
    paths: Sequence[ForwardPath],
    *,
    origin: Origin,
    hostname: str,
    queue_id: str,
    time_us: int,
    top: bytes = b"",
) -> Header:
    """Return a header with this hop's Received, after the fields in `top`.

    Mail from a trusted client also gets a missing Date and Message-ID. Mail from an account that
    logged in, or from a user of this machine, also gets a missing From. For a hidden client,
    Received names this host: RFC 5321 4.4 demands `from`, which Postfix's smtpd_hide_client_session
    leaves out.
    """
    new = top + headers.received(
        helo=hostname if origin.is_hidden else origin.helo,
        ip="" if origin.is_hidden else origin.ip,
        hostname=hostname,
        protocol=headers.protocol(
            extended=origin.extended,
            tls=bool(origin.tls),
            authenticated=bool(origin.login),
            smtputf8=envelope.smtputf8,
        ),
        queue_id=queue_id,
        time_us=time_us,
        recipient=paths[0].address if len(paths) == 1 else "",
    )
    if origin.trusted:
        if "Date" not in header:
            new += headers.field("Date", headers.date_field(time_us))
        if "Message-ID" not in header:
            new += headers.field("Message-ID", f"<{queue_id}@{hostname}>")
    author = origin.login
    if origin.user is not None:
        author = envelope.reverse_path or origin.user.address
    if author and "From" not in header:
        new += address_list_field("From", [EmailAddress(author)]).encode()
    return header.prepend(new)


def _without_results_of(hostname: str, header: Header) -> Header:
    """Return a header without Authentication-Results that a reader may take for this host's."""
    field_name, name = _RESULTS.lower().encode(), to_ascii_domain(hostname)
    kept = tuple(
        [
            (key, octets)
            for key, octets in header.fields
            if key != field_name or name not in _authserv_ids(octets)
        ]
    )
    return header if len(kept) == len(header.fields) else Header(kept)


def _authserv_ids(field: bytes) -> set[str]:
    """Return the id of an Authentication-Results field in lower case with A-labels.

    There are two ids if programs that decode encoded words (RFC 2047) read another id.
    """
    value = field.partition(b":")[2].replace(b"\r", b"").replace(b"\n", b"")
    texts = [value.decode("utf-8", "replace")]
    if b"=?" in value:
        texts.append(decode_words(value))
    ids = set()
    for text in texts:
        try:
            ids.add(to_ascii_domain(_authserv_id(text)))
        except AddressError:  # an id, but no host name
            continue
    return ids


def _authserv_id(text: str) -> str:
    """Return the id that a lenient reader finds: the first word or quoted string.

    Comments and white space are skipped, also around dots. A single quote or parenthesis counts as
    white space. The time is linear.
    """
    authserv_id, position, in_word, pattern = "", 0, False, _TOKEN
    while len(authserv_id) <= DOMAIN_OCTETS_MAX and (token := pattern.match(text, position)):
        position = token.end()
        match token.lastgroup:
            case "word":
                piece = token["word"]
            case "quoted":
                piece = _ESCAPED.sub(r"\1", token["quoted"]).strip()
            case kind:
                if kind == "open" and (end := _comment_end(text, position)):
                    position = end
                elif kind == "open":
                    pattern = _TOKEN_AFTER_UNCLOSED
                in_word = False
                continue
        piece = _IDEOGRAPHIC_STOPS.sub(".", piece)
        begins_another = authserv_id and not in_word and "." not in (authserv_id[-1], piece[:1])
        if begins_another or not piece:
            break
        authserv_id, in_word = authserv_id + piece, True
    authserv_id = authserv_id.rstrip(".")
    return authserv_id if len(authserv_id) <= DOMAIN_OCTETS_MAX else ""


def _comment_end(text: str, position: int) -> int:
    """Return where the comment that began before `position` ends, 0 if it does not."""
    depth = 1
    for match in _PARENTHESES.finditer(text, position):
        if match[0][0] == "(":
            depth += len(match[0])
        elif match[0][0] == ")":
            depth -= len(match[0])
            if depth <= 0:
                return match.end() + depth
    return 0


def message_id(header: Header) -> str:
    """Return the Message-ID of the message as it is stored, or ""."""
    octets = header.first("Message-ID") or b""
    return own_message_id(octets[:LINE_OCTETS_MAX].decode("utf-8", "replace"))


def with_demand(envelope: Envelope, header: Header, origin: Origin) -> Envelope:
    """Return the envelope with what the field TLS-Required says (RFC 8689 4.1).

    The field counts if it is there once, the client is trusted, and MAIL had no REQUIRETLS.
    """
    if "TLS-Required" not in header or envelope.tls or not origin.trusted:  # nearly always
        return envelope
    values = [value.strip().lower() for value in header.values("TLS-Required")]
    return replace(envelope, tls=OPTIONAL) if values == [b"no"] else envelope


def priority(header: Header, origin: Origin) -> PriorityLevel:
    """Return the priority in the header, after the rules; only trusted clients have one."""
    level = priority_of(header) if origin.trusted else Priority.NORMAL
    return PriorityLevel.NORMAL if level is Priority.NORMAL else PriorityLevel(level)
