"""A message for a test: its content, its state, and the reports about it."""

import email
import email.policy
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage, MIMEPart
from typing import Any, Protocol, TypeVar

import msgspec

from relay.base.message.address import own_mailbox
from relay.base.message.content import MemoryOctets
from relay.formats.body_checks import Checks, check_bodies
from relay.formats.charsets import decode_octets
from relay.formats.content_fields import charset_of, filename_of
from relay.formats.html_tokens import content_ids
from relay.formats.links import find_codes, link_targets, text_of_html
from relay.formats.read_header import parse_header
from relay.formats.read_report import read_remote_report
from relay.store.journeys.document import Journey

WAIT_S = 10.0  # the default of `timeout`
_TEXT_SHOWN_MAX = 400
_ACTIONS = {"failure": "failed", "read": "", "notread": ""}  # other actions equal the kind
# Python's parser raises these for some malformed header fields.
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Bounce:
    """The part of a report that is about one recipient.

    `kind` is "failure", "delayed", "held", "delivered", "relayed" or "expanded", or of a read
    receipt "read" or "notread". `action` is that of a delivery report: "failed" for a failure.
    `reply` is the reply of the remote host or of Relay, such as "550 5.1.1 no such user here".
    """

    recipient: str
    kind: str
    action: str
    status: str
    reply: str
    eml: EmailMessage = field(repr=False, compare=False)


def read_reports(content: bytes, eml: EmailMessage, *, about: str = "") -> list[Bounce]:
    """Return the recipients of a report or a read receipt, none for another message.

    With `about`, only reports about the message with this Message-ID.
    """
    report = read_remote_report(MemoryOctets(content))
    if report is None or (about and report.message_id.strip("<>") != about.strip("<>")):
        return []
    return [
        Bounce(
            claim.final or claim.original,
            claim.kind,
            _ACTIONS.get(claim.kind, claim.kind),
            claim.status,
            claim.reply,
            eml,
        )
        for claim in report.claims
    ]


class MessageSource(Protocol):
    """Reads the journey and the reports of a message, again at each call."""

    def journey(self) -> Journey | None:
        """Return the journey, None if there is none."""

    def reports(self) -> Sequence[Bounce]:
        """Return the reports and read receipts about it, failures first."""

    def wait_for_bounce(self, timeout_s: float) -> Bounce:
        """Return the report of its failure; raise WaitTimeout."""


@dataclass(frozen=True, slots=True)
class MessageAttachment:
    """An attachment; `content_id` is without its brackets."""

    name: str
    content_type: str
    content: bytes
    content_id: str = ""
    inline: bool = False


class Message:
    """A message that arrived, or that the test sent. Its content does not change.

    `journey`, `state`, `bounce` and properties that depend on them are read at each access.
    """

    def __init__(self, read: Callable[[], bytes], source: MessageSource) -> None:
        """`read` returns the content; it is called once."""
        self._read = read
        self._source = source
        self._eml: EmailMessage | None = None
        self._content: bytes | None = None

    def __repr__(self) -> str:
        return f"<Message {self.subject!r} from {field_text(self.eml, 'From')}>"

    # -- content

    @property
    def source(self) -> bytes:
        """The message as octets."""
        if self._content is None:
            self._content = self._read()
        return self._content

    @property
    def eml(self) -> EmailMessage:
        """The message as email.message.EmailMessage."""
        if self._eml is None:
            parsed = email.message_from_bytes(self.source, policy=email.policy.default)
            assert isinstance(parsed, EmailMessage)
            self._eml = parsed
        return self._eml

    @property
    def subject(self) -> str:
        """The subject, decoded."""
        known = None if self.source else self._source.journey()  # the content is gone
        return known.subject if known else field_text(self.eml, "Subject")

    @property
    def text(self) -> str:
        """The text part, "" if there is none."""
        return self._body("plain")

    @property
    def html(self) -> str:
        """The HTML part, "" if there is none."""
        return self._body("html")

    @property
    def attachments(self) -> list[MessageAttachment]:
        """All parts except the text and HTML of the body; images of the HTML are included."""
        bodies = [self.eml.get_body((kind,)) for kind in ("plain", "html")]
        shown_ids = content_ids(self.html)
        return [
            _attachment(part, shown_ids)
            for part in _leaves(self.eml)
            if not any(part is body for body in bodies)
        ]

    def links(self) -> list[str]:
        """Return the URLs in HTML and text, each once, in their order."""
        return link_targets(self.html, self.text)

    def checks(self) -> Checks:
        """Return how many mail programs support the HTML, and what is wrong in the links."""
        return check_bodies(self.html, self.text)

    def code(self, pattern: str | re.Pattern[str] | None = None) -> str:
        """Return the first match of `pattern`, or of its group, in text or HTML.

        Without a pattern: four to eight digits near a word such as "code" or "PIN", else six
        digits, else four to eight digits. Raises AssertionError without a match.
        """
        texts = (self.text, text_of_html(self.html))
        if pattern is None:
            matches = find_codes(texts)
        else:
            hits = filter(None, (re.search(pattern, text) for text in texts))
            matches = [match[1] if match.re.groups else match[0] for match in hits]
        if matches:
            return matches[0]
        excerpt = (self.text or self.html)[:_TEXT_SHOWN_MAX]
        expected = "code" if pattern is None else f"match of {pattern!r}"
        raise AssertionError(f"no {expected} in {self.subject!r}: {excerpt}")

    # -- its state

    @property
    def sender(self) -> str:
        """The reverse-path; "" for a report."""
        if (known := self._source.journey()) is not None:
            return known.sender
        return field_text(self.eml, "Return-Path").strip().strip("<>")

    @property
    def recipients(self) -> list[str]:
        """The recipients of the envelope."""
        known = self._source.journey()
        return [recipient.address for recipient in known.recipients] if known else []

    def recipient(self, address: str) -> Mapping[str, Any]:
        """Return state, status, reply and attempts of a recipient, as in the journey."""
        known = self.journey.get("recipients", ())
        for recipient in known:
            if own_mailbox(recipient["address"]) == own_mailbox(address):
                state: Mapping[str, Any] = recipient
                return state
        names = ", ".join(recipient["address"] for recipient in known)
        raise LookupError(f"{address} is no recipient of this message; those are {names}")

    @property
    def journey(self) -> Mapping[str, Any]:
        """The journey, as `relay trace --json` prints it."""
        known = self._source.journey()
        fields: Mapping[str, Any] = msgspec.json.decode(msgspec.json.encode(known)) if known else {}
        return fields

    @property
    def state(self) -> str:
        """The state of the message as in the journey: that of the least finished recipient."""
        known = self._source.journey()
        return known.state if known else ""

    @property
    def bounce(self) -> Bounce | None:
        """The delivery report about it, None without a report.

        If the message is a report itself, its content.
        """
        return next(iter(self.bounces), None)

    @property
    def bounces(self) -> Sequence[Bounce]:
        """Like `bounce`, for each recipient that a report names; failures first."""
        return [report for report in self.reports if report.action]

    @property
    def reports(self) -> Sequence[Bounce]:
        """Like `bounces`, and read receipts."""
        return read_reports(self.source, self.eml) or self._source.reports()

    def wait_for_bounce(self, timeout: float = WAIT_S) -> Bounce:
        """Return the report that the message could not be delivered, for the first recipient.

        Raises WaitTimeout, whose text describes the state; immediately if the message has ended
        without a report. If the message is a report itself, its content is returned.
        """
        __tracebackhide__ = True
        failed = (dsn for dsn in read_reports(self.source, self.eml) if dsn.action == "failed")
        return next(failed, None) or self._source.wait_for_bounce(timeout)

    def _body(self, kind: str) -> str:
        part = self.eml.get_body((kind,))
        return _text_of(part).replace("\r\n", "\n") if part is not None else ""


def _text_of(part: MIMEPart) -> str:
    content = part.get_payload(decode=True)
    octets = content if isinstance(content, bytes) else b""
    is_html = part.get_content_subtype() == "html"
    return decode_octets(octets, charset_of(str(part["content-type"] or "")), is_html=is_html)[0]


def _leaves(part: EmailMessage) -> Iterator[EmailMessage]:
    """Yield the parts that contain no other parts; an attached message counts as one part."""
    if part.get_content_maintype() != "multipart":
        yield part
        return
    for child in part.iter_parts():
        assert isinstance(child, EmailMessage)
        yield from _leaves(child)


def _attachment(part: EmailMessage, shown_ids: Collection[str]) -> MessageAttachment:
    """Return an attachment; an image whose content id is in `shown_ids` is inline."""
    content = part.get_payload(decode=True)
    if part.get_content_maintype() == "message":
        inner = part.get_payload()
        first = inner[0] if isinstance(inner, list) and inner else None
        content = first.as_bytes() if isinstance(first, EmailMessage) else content
    header = "".join(f"{name}: {value}\r\n" for name, value in part.raw_items())
    content_id = field_text(part, "Content-ID").strip("<> ")
    return MessageAttachment(
        name=filename_of(parse_header(header.encode("utf-8", "surrogateescape"))),
        content_type=part.get_content_type(),
        content=content if isinstance(content, bytes) else b"",
        content_id=content_id,
        inline=part.get_content_disposition() == "inline"
        or (content_id in shown_ids and part.get_content_maintype() == "image"),
    )


def field_text(eml: EmailMessage, name: str) -> str:
    """Return the first field of this name, "" if there is none.

    It is decoded, or undecoded if that fails.
    """
    return _read_or(lambda: str(eml.get(name, "")), lambda: _written(eml, name))


def field_addresses(eml: EmailMessage, name: str) -> list[str]:
    """Return the addresses in a field, none if it cannot be read."""
    return _read_or(
        lambda: [address.addr_spec for address in getattr(eml.get(name), "addresses", ())], list
    )


def _read_or(read: Callable[[], _Found], otherwise: Callable[[], _Found]) -> _Found:
    try:
        return read()
    except (AttributeError, IndexError, LookupError, TypeError, ValueError):
        return otherwise()


def _written(eml: EmailMessage, name: str) -> str:
    values = (value for key, value in eml.raw_items() if key.lower() == name.lower())
    return " ".join(str(next(values, "")).encode("utf-8", "replace").decode().split())
