"""Join a report that came in to the message that it is about: events of what its sender claims.

It runs in the transaction that settles the report's delivery, so that a crash neither loses nor
repeats them. The original is found by its submission id, which Relay sends as ENVID, by its
Message-ID, or by the ENVID of a trusted client (decoded; its case counts: RFC 3464 2.2.1); it must
have one of the reported recipients, and the report must have been delivered to its reverse-path.
States and counters never change.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import msgspec

from relay.journeys.events import Event, Step
from relay.message.address import own_mailbox
from relay.mime.read_report import RemoteClaim, RemoteReport
from relay.spool.shared.columns import json_text
from relay.spool.shared.tables import OpenTransaction, Tables
from relay.spool.types import DeliveredReport, Settlement

_CLAIMS_MAX = 20  # of a recipient; the rest are counted in the last one
_ROWS_MAX = 20_000  # recipients of all messages with one Message-ID, or one ENVID
# The name is a range of one, so that only the index on it has the order: PostgreSQL goes through
# all messages for a name that it takes to be frequent, and a report may name any.
_RECIPIENTS = (
    "SELECT m.id, m.reverse_path, m.envid, m.message_id, r.address, r.orcpt FROM message m"
    " JOIN recipient r ON r.message_id = m.id"
    " WHERE m.{0} >= ? AND m.{0} <= ? AND m.{0} <> ''{1} AND r.added_by = ''"
    " ORDER BY m.{0} DESC, m.id DESC LIMIT ?"
)
_OF_SUBMISSION = _RECIPIENTS.format("submission_id", "")
_OF_MESSAGE_ID = _RECIPIENTS.format("message_id", "")
_OF_ENVID = _RECIPIENTS.format("envid", " AND m.submission_id = '' AND m.trusted = 1")
_CLAIMS = (
    "SELECT sequence, detail FROM event WHERE message_id = ? AND step = ?"
    ' AND detail LIKE \'%"by":"remote"%\' ORDER BY sequence'
)
_DETAIL = "SELECT detail FROM event WHERE message_id = ? AND sequence = ?"
_SET_DETAIL = "UPDATE event SET detail = ? WHERE message_id = ? AND sequence = ?"


def join_report(
    transaction: OpenTransaction, settlement: Settlement, delivered: DeliveredReport
) -> None:
    """Append what a report claims to the journey of its original, if that is here.

    A further claim about a recipient that has enough of them is only counted.
    """
    report, carrier = delivered.report, settlement.claim.message
    original = _find(transaction, report, set(map(own_mailbox, delivered.to)))
    if original is None:
        return
    message_id, claims = original
    kept = _kept(transaction, message_id)
    source = {"client": _address(carrier.client), "reporting_mta": report.reporter}
    events = []
    for address, claim in claims.items():
        known = kept.get(address, [])
        if any(report_id == carrier.id for _, report_id in known):
            continue
        if len(known) >= _CLAIMS_MAX:
            _count_one_more(transaction, message_id, known[-1][0])
            continue
        detail = {
            "by": "remote", "kind": claim.kind, "recipients": [address], "status": claim.status,
            "reply": claim.reply, "host": claim.host, "source": source,
            "received": carrier.id,
        }  # fmt: skip
        events.append(Event(Step.REPORT, settlement.at_us, detail))
    transaction.append_events(message_id, events)


def _find(
    tables: Tables, report: RemoteReport, owners: set[str]
) -> tuple[str, dict[str, RemoteClaim]] | None:
    """Return the message, and the claims by the recipient's address in its envelope.

    Of several it is the newest that has a recipient; one with the Message-ID goes first.
    """
    for message_id, some in groupby(_candidates(tables, report), lambda row: row[0]):
        recipients = list(some)
        reverse_path = recipients[0][1]
        if not reverse_path or own_mailbox(reverse_path) not in owners:
            continue
        names: dict[str, str] = {}
        for *_, address, orcpt in recipients:
            names.setdefault(own_mailbox(orcpt.partition(";")[2] or address), address)
        for *_, address, _ in recipients:
            names.setdefault(own_mailbox(address), address)
        claims: dict[str, RemoteClaim] = {}
        for claim in report.claims:
            found = [name for name in map(own_mailbox, _names(claim)) if name in names]
            if found:
                claims.setdefault(names[found[0]], claim)
        if claims:
            return message_id, claims
    return None


def _candidates(tables: Tables, report: RemoteReport) -> list[Any]:
    """Return the recipients of the messages that may be meant, those of a message together.

    An ENVID that names a submission decides alone. A message that has another ENVID or Message-ID
    than the report is not meant.
    """
    envid, message_id = report.envelope_id, report.message_id
    if rows := _recipients(tables, _OF_SUBMISSION, envid):
        return rows
    rows = _recipients(tables, _OF_MESSAGE_ID, message_id) + _recipients(tables, _OF_ENVID, envid)
    return [row for row in rows if _agree(row[2], envid) and _agree(row[3], message_id)]


def _recipients(tables: Tables, sql: str, name: str) -> list[Any]:
    return tables.fetch(sql, (name, name, _ROWS_MAX)) if name else []


def _agree(known: str, reported: str) -> bool:
    return not known or not reported or known == reported


def _names(claim: RemoteClaim) -> Iterator[str]:
    """Yield the addresses of a reported recipient, that of the original envelope first."""
    yield from filter(None, (claim.original, claim.final))


def _kept(tables: Tables, message_id: str) -> dict[str, list[tuple[int, str]]]:
    """Return what is recorded of each recipient: the sequence of each claim, and its report."""
    found: dict[str, list[tuple[int, str]]] = {}
    for sequence, text in tables.fetch(_CLAIMS, (message_id, int(Step.REPORT))):
        detail = msgspec.json.decode(text, type=dict[str, Any])
        for address in detail.get("recipients", ()):
            found.setdefault(address, []).append((sequence, detail.get("received", "")))
    return found


def _count_one_more(transaction: OpenTransaction, message_id: str, sequence: int) -> None:
    (text,) = transaction.fetch_one(_DETAIL, (message_id, sequence))
    detail = msgspec.json.decode(text, type=dict[str, Any])
    detail["more"] = detail.get("more", 0) + 1
    transaction.execute(_SET_DETAIL, (json_text(detail), message_id, sequence))


def _address(client: str) -> str:
    """Return the IP address in "name [address]", "" without one."""
    return client.rpartition("[")[2].removesuffix("]") if client.endswith("]") else ""
