"""Read delivery reports and read receipts (DSN, MDN).

read_report() returns the fields and a sentence for each recipient, for a page.
read_remote_report() returns what a report of another host claims, for the journey of the original,
read_feedback() what a feedback report says of it.
message_class() returns the class that Exchange's clients expect.

Any content is accepted: a message that is no report gives None, and damaged fields are left out.
Sizes are bounded. Reading blocks; raises OSError where the octets cannot be read.
RFC 3464 (message/delivery-status), RFC 6533 (the same beyond ASCII), RFC 8098
(message/disposition-notification), RFC 5965 (message/feedback-report), RFC 6522 (multipart/report),
MS-OXCMAIL 2.2.3.7.1.1 (classes).
"""

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.content import Content, Octets, memory_part
from relay.base.message.conversation import message_ids, own_message_id
from relay.base.message.envelope import decode_utf8_address
from relay.base.message.header import Header, cleaned, header_section, with_crlf
from relay.base.message.status import find_statuses, one_line, split_reply
from relay.formats.address_list import AddressBudget
from relay.formats.content_fields import content_field
from relay.formats.encoded_words import decode_words
from relay.formats.headers import is_auto_submitted
from relay.formats.read_header import content_type_of, read_addresses, read_token
from relay.formats.structure import IDENTITY, Entity, Structure, read_structure
from relay.formats.transfer_encoding import decoded_blocks

_STATUS = ("message/delivery-status", "message/global-delivery-status")
_DISPOSITION = ("message/disposition-notification", "message/global-disposition-notification")
_STATUS_OCTETS_MAX = 64 * 1024
_GROUPS_MAX = 100
_FIELDS_MAX = 30
_VALUE_CHARACTERS_MAX = 500
_ACTIONS = {
    "failed": "was not delivered",
    "delayed": "is not delivered yet",
    "delivered": "was delivered",
    "relayed": "was passed on to a host that sends no reports",
    "expanded": "was delivered to a list, and sent to its members",
}
# Of a report from outside; each recipient may have several hundred octets.
_REMOTE_OCTETS_MAX = 4 * 1024 * 1024  # of the message, from its beginning
_REMOTE_STATUS_OCTETS_MAX = 1024 * 1024
_REMOTE_RECIPIENTS_MAX = 1000
_OTHER_ACTIONS = {"failure": "failed", "expired": "failed"}  # of programs that ignore RFC 3464
_ACTIONS_OF_CLASSES = {"5": "failed", "4": "delayed", "2": "delivered"}
_PERMANENT = 500  # the least of the codes 5yz
_KINDS_OF_DISPOSITIONS = {"displayed": "read", "deleted": "notread"}
_RECIPIENT_FIELDS = ("original-recipient", "final-recipient")
_RETURNED = ("message/rfc822", "message/global")
_RETURNED_HEADERS = ("text/rfc822-headers", "message/rfc822-headers", "message/global-headers")
_RETURNED_HEADER_OCTETS_MAX = 64 * 1024
_TEXT_OCTETS_MAX = 64 * 1024  # of a report that is a text
_LINES_BETWEEN_MAX = 5  # between an address in a text and its code
_RETURNED_OCTETS_MAX = 2 * 1024 * 1024
COMPLAINTS = ("abuse", "fraud", "opt-out")  # the types that are complaints
_FEEDBACK_TYPES = (*COMPLAINTS, "not-spam", "auth-failure", "virus")  # all others are "other"
ORDINARY_CLASS = "IPM.Note"
_CLASSES = {  # by kind; the worst first, which a report about several recipients has
    "failure": "NDR",
    "delayed": "Delayed.DR",
    "relayed": "Relayed.DR",
    "expanded": "Expanded.DR",
    "delivered": "DR",
    "notread": "IPNNRN",
    "read": "IPNRN",
}
_blank_line = re.compile(rb"\r\n(?:[ \t]*\r\n)+")
_white = re.compile(rb"\s+")
_type = re.compile(r"\A[!-'*-:<-~]+ *; *")
_word = re.compile(r"[^\s;,()]+")
_in_brackets = re.compile(r"<([^<>]+)>")
_blank_in_name = re.compile(rb"(?im)^(final|original) (?=recipient[ \t]*:)")
# The line above a copy of the message: of Exim, qmail, old Gmail, sendmail, and others.
_copy_line = re.compile(
    r"^(?:[ |]{0,4}-{2,} ?(?:(?:This is|Below this line is) a copy of (?:the|your) message\b.*"
    r"|(?:(?:Original|Unsent) message(?: follows)?|Message header follows)[.:]?[ |-]*)"
    r"|    Below is a copy of the original message:)\n(?:[ -]*\n|-{2,} .*\n)*",
    re.IGNORECASE | re.MULTILINE,
)
_ADDRESS = r"[\w.!#$%&'*/=?^`{|}~+-]{1,64}+@[\w-]++(?:\.[\w-]++)*+"
# The sender, in MAIL FROM:<address>, is no recipient; sendmail has "(expanded from: <alias>)".
_text_address = re.compile(rf"(?<![\w.+-])(?<!F(?i:rom):<)(?<!F(?i:rom): <){_ADDRESS}")
_QMAIL_ADDRESS = r"<[^\s>]++>:[ \t]*+"  # a line above those of qmail about the address
# The lines about an address, up to a quotation: of qmail up to a blank line, of others, such as
# Postfix and Exim, those with a larger indent.
_item = re.compile(
    rf"^(?:{_QMAIL_ADDRESS}(?:\n[ \t]*+[^\s>][^\n]*+)++"
    rf"|([ \t]*+)<?{_ADDRESS}[^\n]*+(?:\n\1[ \t]++[^\s>][^\n]*+)++)",
    re.MULTILINE,
)
# Of OpenSMTPD, whose reasons may have no code.
_address_and_reason = re.compile(rf"(?m)^({_ADDRESS}): ([^\n]{{1,500}})")
# A reason, which may name others than the recipient, begins with a code. Directly behind the code,
# before any word, stands the recipient.
_reason = re.compile(rf"(?<![\w.+-])[45][0-5]\d(?![\w.@])(?:[\W\d_]*?((?<![\w.+-]){_ADDRESS}))?")
# A code next to a status of its class, or what a host said; a telephone number is no code. Behind
# the whole name of the host it may have a number behind it. The last form is that of qmail.
_text_code = re.compile(
    r"(?<![\w.+-])([45])[0-5]\d[ :#(-]{1,3}(?=\1\.\d{1,3}\.\d{1,3}(?![\d.]))"
    r"|(?:(?:\b(?:host|server)|\]|[\w-]\.[\w-]\S{0,80}) said:|\bRemote host\b)[^\n\d]{0,80}\b"
    r"([45])[0-5]\d(?![\w.]|[ -]\d)"
    r"|(?:\bRemote host|\bhost [\w-]++\.[\w.-]++(?: ?\[\S{1,80})?) (?:said|refused to talk to me):"
    r"[^\n\d]{0,80}\b([45])[0-5]\d(?![\w.])"
    rf"|\A{_QMAIL_ADDRESS}(?=.*\(#([45])\.\d{{1,3}}\.\d{{1,3}}\)\s*+(?:\Z|I'm not going to try))",
    re.IGNORECASE,
)

ReportFields = tuple[tuple[str, str], ...]


class RecipientReport(Struct, frozen=True):
    """The fields of a report about one recipient; `text` is a sentence with the same meaning."""

    address: str
    text: str
    fields: ReportFields


class DeliveryReport(Struct, frozen=True):
    """A report: the fields about the message as a whole, and its recipients.

    `envelope_id` is the Original-Envelope-Id: the submission id of a message that Relay sent.
    `message_id` is that of the message that it returns, "" if it returns none.
    """

    fields: ReportFields
    recipients: tuple[RecipientReport, ...]
    envelope_id: str
    message_id: str = ""

    @property
    def reporter(self) -> str:
        """The name that the reporting host gives itself, "" without."""
        return _first_word(_typed(self.fields, "reporting-mta"))

    @property
    def tables(self) -> list[tuple[str, ReportFields]]:
        """The fields of each recipient, with its address."""
        return [(recipient.address, recipient.fields) for recipient in self.recipients]


class RemoteClaim(Struct, frozen=True):
    """What a report from outside claims of one recipient.

    `original` is the address that the sender used, "" if the report does not have it; `final` is
    the address that the reporting host used. `kind` is a ReportKind, "read" or "notread".
    """

    original: str
    final: str
    kind: str
    status: str = ""
    reply: str = ""
    host: str = ""


class RemoteReport(Struct, frozen=True):
    """A DSN, MDN or feedback report of another host.

    `envelope_id` and `message_id` are those of the original, "" if the report does not have them.
    `reporter` is the name that the reporting host gives itself. `feedback` is the type of a
    feedback report, whose claims only name recipients: of _FEEDBACK_TYPES, or "other"; else "".
    """

    envelope_id: str
    message_id: str
    reporter: str
    claims: tuple[RemoteClaim, ...]
    feedback: str = ""


def read_report(content: Octets) -> DeliveryReport | None:
    """Return what a delivery report says, None for another message."""
    structure = read_structure(content)
    if structure.message.content_type != "multipart/report":
        return None
    for entity in structure.entities:
        if entity.content_type in _STATUS:
            size = min(entity.end - entity.body_start, _STATUS_OCTETS_MAX)
            report = _report_of(with_crlf(content.read(entity.body_start, size)))
            message_id = _original_id(content, structure)
            return report and replace(report, message_id=message_id)
    return None


def read_remote_report(content: Octets) -> RemoteReport | None:
    """Return what a DSN or MDN claims, None for other messages and for a report without claims.

    Some hosts send multipart/mixed instead of multipart/report. Exim sends neither, but a field
    that names the recipients. Others send a text: see _report_in_text().
    """
    head = content.part(0, _REMOTE_OCTETS_MAX)
    structure = read_structure(head)
    for entity in structure.entities[1:]:
        if entity.is_forwarded or entity.content_type not in (*_STATUS, *_DISPOSITION):
            continue
        body = _decoded(head, entity, _REMOTE_STATUS_OCTETS_MAX)
        groups = [_fields(group) for group in _groups(body, _REMOTE_RECIPIENTS_MAX + 1)]
        about = groups[0] if groups else ()
        if entity.content_type in _DISPOSITION:
            claims = tuple(_disposition(about))
            reporter = _typed(about, "mdn-gateway") or _value(about, "reporting-ua")
        else:
            per_recipient = chain.from_iterable(map(_recipient_groups, groups))
            claims = tuple(islice(filter(None, map(_claim, per_recipient)), _REMOTE_RECIPIENTS_MAX))
            reporter = _typed(about, "reporting-mta")
        if not claims:
            return None
        return RemoteReport(
            _value(about, "original-envelope-id"),
            own_message_id(
                _value(about, "original-message-id") or _value(about, "x-original-message-id")
            )
            or _original_id(head, structure),
            _first_word(reporter),
            claims,
        )
    fields = structure.message.fields
    people = read_addresses(fields, "x-failed-recipients", AddressBudget(_STATUS_OCTETS_MAX))
    failed = [person.address for person in people if person.address]
    if report := _report_in_text(head, structure, failed):
        return report
    if failed and is_auto_submitted(Header.parse(structure.message.header)):
        claims = tuple(RemoteClaim("", address, "failure") for address in failed)
        return RemoteReport("", _original_id(head, structure), "", claims)
    return None


def is_feedback_report(content: Content) -> bool:
    """Return whether the header of a message says that it is a feedback report."""
    header = header_section(memory_part(content))
    if b"feedback-report" not in header.lower():  # nearly always
        return False
    named = content_field(content_type_of(Header.parse(cleaned(header))))
    kind = named.raw("report-type").lower()
    return (named.value, kind) == ("multipart/report", "feedback-report")


def read_feedback(content: Octets) -> RemoteReport | None:
    """Return what a feedback report says, None without its part for machines, or without the
    original: the first message or header beside that part.
    """
    head = content.part(0, _REMOTE_OCTETS_MAX)
    structure = read_structure(head)
    parts = {entity.content_type: entity for entity in reversed(structure.parts(structure.message))}
    part = parts.get("message/feedback-report")
    returned = [parts[kind] for kind in (*_RETURNED, *_RETURNED_HEADERS) if kind in parts]
    if part is None or not returned:
        return None
    fields = _fields(_decoded(head, part, _STATUS_OCTETS_MAX).strip(b"\r\n") + b"\r\n")
    kind = _first_word(_value(fields, "feedback-type")).lower()
    named = (_address_in(text) for name, text in fields if name.lower() == "original-rcpt-to")
    return RemoteReport(
        "",
        _message_id_in(_header_of(head, structure, returned[0])),
        _first_word(_typed(fields, "reporting-mta")) or _value(fields, "user-agent"),
        tuple(RemoteClaim(address, "", "complaint") for address in named),
        kind if kind in _FEEDBACK_TYPES else "other",
    )


def _report_in_text(
    content: Octets, structure: Structure, failed: Sequence[str]
) -> RemoteReport | None:
    """Return what a text says of the recipients near the codes in it, and of those in `failed`.

    The id is that of a returned message, or of a copy below a line that is known. An automatic
    reply also has a null reverse-path and an In-Reply-To: these fields do not count.
    """
    leaves = (entity for entity in structure.entities if entity.is_leaf and not entity.is_forwarded)
    entity = next((leaf for leaf in leaves if leaf.content_type == "text/plain"), None)
    octets = _decoded(content, entity, _TEXT_OCTETS_MAX) if entity else b""
    text = octets.replace(b"\r\n", b"\n").decode("utf-8", "replace")
    copy = _copy_line.search(text)
    message_id = _returned_message_id(content, structure)
    if copy and not message_id:
        message_id = _message_id_in(header_section(text[copy.end() :].encode()))
    text = text[: copy.start()] if copy else text
    claims = {claim.final: claim for claim in _claims_in(text, failed)}
    if copy and "original message:" in copy[0] and "list of recipients:" in text:  # of OpenSMTPD
        kind = "delayed" if "is delayed for" in text else "failure"
        for address, reason in _address_and_reason.findall(text):
            claims.setdefault(address, RemoteClaim("", address, kind, "", reason))
    if copy and "Below this line" in copy[0]:  # of qmail, which reports no delay
        failed = (*failed, *claims)
    for address in failed:
        claim = claims.get(address) or RemoteClaim("", address, "failure")
        claims[address] = replace(claim, kind="failure")
    first = tuple(islice(claims.values(), _REMOTE_RECIPIENTS_MAX))
    return RemoteReport("", message_id, "", first) if message_id and first else None


def _claims_in(text: str, listed: Sequence[str]) -> Iterator[RemoteClaim]:
    """Yield what each code in a text says of the addresses that its line names, else of those of
    the nearest line above, else of the nearest below that begins with one. If `listed` is not
    empty, only the lines that name one of these count.
    """
    lines = _item.sub(lambda item: one_line(item[0]), text).splitlines()
    known, in_lines = set(listed), map(_named_in, lines)
    named = [[] if known and known.isdisjoint(names) else names for names in in_lines]
    for number, line in enumerate(lines):
        code = _text_code.search(line)
        if not code or line.lstrip().startswith(">"):  # a quotation
            continue
        form = code.lastindex or 0
        begin = code.end() if code[4] else code.start(form)  # of qmail it is no code
        reply = one_line(line[begin:])[:_VALUE_CHARACTERS_MAX]
        kind = "failure" if code[form] == "5" else "delayed"
        above = range(number, max(number - _LINES_BETWEEN_MAX, 0) - 1, -1)
        below = range(number + 1, min(number + _LINES_BETWEEN_MAX + 1, len(lines)))
        listed_below = (at for at in below if _text_address.match(lines[at].lstrip(" \t<")))
        nearest = next((at for at in chain(above, listed_below) if named[at]), number)
        status = next(iter(find_statuses(reply)), "")
        yield from (RemoteClaim("", address, kind, status, reply) for address in named[nearest])


def _named_in(line: str) -> list[str]:
    """Return the addresses before the first code of a line, else the one directly behind it."""
    reason = _reason.search(line)
    before: list[str] = _text_address.findall(line[: reason.start()] if reason else line)
    return before or [reason[1]] if reason and reason[1] else before


def message_class(content: Octets, content_type: str) -> str:
    """Return the class of a message for Exchange's clients.

    The class of a report, also of one from another host, is REPORT.IPM.Note and its kind.
    """
    report = read_remote_report(content) if content_type == "multipart/report" else None
    if report is None:
        return ORDINARY_CLASS
    kinds = {claim.kind for claim in report.claims}
    worst = next((suffix for kind, suffix in _CLASSES.items() if kind in kinds), "")
    return f"REPORT.{ORDINARY_CLASS}.{worst}" if worst else ORDINARY_CLASS


def _decoded(content: Octets, entity: Entity, octets_max: int) -> bytes:
    """Return the beginning of a body with CRLF line ends and without its transfer encoding."""
    body = content.part(entity.body_start, min(entity.end - entity.body_start, octets_max))
    return with_crlf(b"".join(decoded_blocks(body, entity.encoding)))


def _original_id(content: Octets, structure: Structure) -> str:
    """Return the Message-ID of the returned message or header.

    If the report returns neither, it is the id of the message that the report answers.
    """
    if returned := _returned_message_id(content, structure):
        return returned
    fields, kind = structure.message.fields, structure.message.content_type
    if kind != "multipart/report" and not is_auto_submitted(Header.parse(structure.message.header)):
        return ""
    answered = message_ids(read_token(fields, "in-reply-to"))[:1]
    return next(iter(answered or message_ids(read_token(fields, "references"))[-1:]), "")


def _returned_message_id(content: Octets, structure: Structure) -> str:
    """Return the Message-ID of the message that is returned, or of its header.

    Some hosts return the header as text/plain, or have the id in a field of their report.
    """
    is_report = structure.message.content_type == "multipart/report"
    for entity in structure.entities[1:]:
        is_text = entity.content_type == "text/plain" and entity.parent == 0 and entity.number > 1
        is_returned = entity.content_type in (*_RETURNED, *_RETURNED_HEADERS)
        if entity.is_forwarded or not (is_returned or (is_report and is_text)):
            continue
        if message_id := _message_id_in(_header_of(content, structure, entity)):
            return message_id
    named = read_token(structure.message.fields, "x-original-message-id")
    return own_message_id(named[:_VALUE_CHARACTERS_MAX])


def _header_of(content: Octets, structure: Structure, returned: Entity) -> bytes:
    if returned.is_message:
        return structure.entities[returned.number + 1].header
    return header_section(_decoded(content, returned, _RETURNED_HEADER_OCTETS_MAX))


def _message_id_in(header: bytes) -> str:
    message_id = Header.parse(cleaned(header)).first("message-id") or b""
    return own_message_id(message_id[:_VALUE_CHARACTERS_MAX].decode("utf-8", "replace"))


def _recipient_groups(fields: ReportFields) -> Iterator[ReportFields]:
    """Yield the fields of each recipient; some hosts leave out the blank lines between them."""
    start, seen = 0, set[str]()
    for place, (name, _) in enumerate(fields):
        if (key := name.lower()) in _RECIPIENT_FIELDS:
            if key in seen:
                yield fields[start:place]
                start, seen = place, set()
            seen.add(key)
    yield fields[start:]


def _claim(fields: ReportFields) -> RemoteClaim | None:
    """Return what a group of fields claims of a recipient; None if it names no recipient."""
    original, final = (_address(fields, name) for name in _RECIPIENT_FIELDS)
    reply = _typed(fields, "diagnostic-code")
    status = _status_of(fields, reply)
    reply = reply or ("" if status else _value(fields, "status"))
    action = _action(fields)
    if action not in _ACTIONS:
        action = _ACTIONS_OF_CLASSES.get(status[:1], "")
        has_no_other = not (_value(fields, "action") or _value(fields, "status"))
        if has_no_other and split_reply(reply).code >= _PERMANENT:
            action = "failed"
    if not action or not (original or final):
        return None
    kind = "failure" if action == "failed" else action
    host = _first_word(_typed(fields, "remote-mta"))
    return RemoteClaim(original, final, kind, status, reply, host)


def _action(fields: ReportFields) -> str:
    word = _first_word(_value(fields, "action")).lower()
    return _OTHER_ACTIONS.get(word, word)


def _status_of(fields: ReportFields, reply: str) -> str:
    """Return a recipient's status, the most specific one if there are several.

    A status in the reply of a remote host has precedence, because the Status field is often
    general: 5.0.0, or 4.4.7 when the reporter gave up.
    """
    of_field = find_statuses(_value(fields, "status"))[:1]
    is_of_host = _value(fields, "diagnostic-code").lower().startswith("smtp")
    of_reply = find_statuses(reply)
    candidates = [*of_reply, *of_field] if is_of_host else [*of_field, *of_reply]
    return max(candidates, key=lambda status: 2 - status.count(".0"), default="")


def _disposition(fields: ReportFields) -> Iterator[RemoteClaim]:
    """Yield what an MDN claims; only the dispositions displayed and deleted are used."""
    disposition = _value(fields, "disposition").rpartition(";")[2].partition("/")[0]
    kind = _KINDS_OF_DISPOSITIONS.get(_first_word(disposition).lower())
    original, final = (_address(fields, name) for name in _RECIPIENT_FIELDS)
    if kind and (original or final):
        yield RemoteClaim(original, final, kind)


def _address(fields: ReportFields, name: str) -> str:
    """Return the address of a field; an address of type utf-8 is unescaped (RFC 6533 3)."""
    return _address_in(_value(fields, name))


def _address_in(value: str) -> str:
    address = _type.sub("", value, count=1)
    if match := _in_brackets.search(address):
        address = match[1]
    is_utf8 = value.lower().startswith("utf-8")
    return decode_utf8_address(address).strip("<>") if is_utf8 else address.strip("<>")


def _first_word(text: str) -> str:
    match = _word.search(text)
    return match[0] if match else ""


def returned_message(content: Octets) -> bytes | None:
    """Return the message that a report returns, None if it returns none or only a header.

    Reading blocks; raises OSError where the octets cannot be read.
    """
    structure = read_structure(content)
    if structure.message.content_type != "multipart/report":
        return None
    for entity in structure.entities:
        size = entity.end - entity.body_start
        is_whole = entity.content_type in _RETURNED and entity.encoding in IDENTITY
        if is_whole and entity.parent == 0 and 0 < size <= _RETURNED_OCTETS_MAX:
            return content.read(entity.body_start, size)
    return None


def _report_of(status: bytes) -> DeliveryReport | None:
    groups = [fields for group in _groups(status, _GROUPS_MAX) if (fields := _fields(group))]
    if not groups:
        return None
    about, *recipients = groups
    return DeliveryReport(
        about,
        tuple(_recipient(fields) for fields in recipients),
        _value(about, "original-envelope-id"),
    )


def _groups(status: bytes, most: int) -> Iterator[bytes]:
    """Yield the first groups of fields, which have blank lines between them."""
    for group in _blank_line.split(status.strip(b"\r\n"), maxsplit=most)[:most]:
        yield group.strip(b"\r\n") + b"\r\n"


def _fields(group: bytes) -> ReportFields:
    """Return names and values, unfolded and decoded."""
    fields = []
    group = _blank_in_name.sub(rb"\1-", group)
    for name, line in Header.parse(cleaned(group)).fields[:_FIELDS_MAX]:
        if name:
            written, _, value = line.partition(b":")
            text = decode_words(_white.sub(b" ", value).strip())[:_VALUE_CHARACTERS_MAX]
            fields.append((written.decode("ascii", "replace").strip(), text))
    return tuple(fields)


def _value(fields: ReportFields, name: str) -> str:
    return next((text for field_name, text in fields if field_name.lower() == name), "")


def _typed(fields: ReportFields, name: str) -> str:
    """Return the value of a field without its type, as in "rfc822; bob@example.org"."""
    return _type.sub("", _value(fields, name), count=1)


def _recipient(fields: ReportFields) -> RecipientReport:
    address = _typed(fields, "original-recipient") or _typed(fields, "final-recipient")
    action = _action(fields)
    status, reply = _value(fields, "status"), _typed(fields, "diagnostic-code")
    said = reply if status in reply else f"{status} {reply}".strip()
    by = _typed(fields, "remote-mta")
    text = f"{address or 'A recipient'} {_ACTIONS.get(action, f'has the action {action!r}')}"
    if said:
        text += f": {f'{by} said ' if by else ''}{said}"
    return RecipientReport(address, f"{text}.", fields)
