"""Print facts to stdout: JSON, and text for journeys, queue entries, statistics and findings.

JSON is UTF-8 on any terminal; a document is printed at once, a stream line by line. The text
functions are pure and return lines. print_lines() replaces their control characters: what prints
them in another way has to do that itself, by printable().
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
import msgspec

from relay.journeys.document import Journey, JourneyStep, Recipient
from relay.journeys.wording import client_line, describe, named
from relay.message.lifecycle import hold_text
from relay.phrases import counted
from relay.spool.queue_commands import EntryList


def print_json(value: Any) -> None:
    """Print one JSON document, indented."""
    click.echo(msgspec.json.format(_as_json(value), indent=2))


def print_json_line(value: Any) -> None:
    """Print one JSON document as a line."""
    click.echo(_as_json(value))


def _as_json(value: Any) -> bytes:
    """Return the JSON, with "?" for each octet of a file name that is not UTF-8."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
        return text.encode("utf-8", "replace")


def print_lines(lines: Sequence[str]) -> None:
    """Print lines of text, without control characters; without any, nothing."""
    if lines:
        click.echo("\n".join(map(printable, lines)))


def print_progress(text: str) -> None:
    """Print a line on stderr if that is a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo(text, err=True)


def flush() -> None:
    """Flush stdout while an error can still be reported."""
    if sys.stdout is not None:
        sys.stdout.flush()


_RECIPIENTS_MAX = 20  # of one message, one line each; --json has all
_ADDRESS_WIDTH_MAX = 40
_UNREMARKABLE = ("delivered", "relayed", "captured", "queued")


def journey_lines(found: Journey, answer: Sequence[str] = ()) -> list[str]:
    """Return a journey: what became of it, a headline, its steps, its recipients."""
    recipients = named([one.address for one in found.recipients])
    headline = f'{found.key}  "{found.subject}"  {found.sender or "<>"} -> {recipients}'
    days = {step.at[:10] for step in found.steps}
    lines = [*answer, f"{headline}  {_state(found)}"]
    if client := client_line(found.client):
        lines.append(f"   {client}")
    for step in found.steps:
        lines += step_lines(step, with_date=len(days) > 1)
    return lines + recipient_lines(found.shown_recipients)


def step_lines(step: JourneyStep, *, with_date: bool = False) -> list[str]:
    """Return a step: number, name, time of day (UTC) and details, one line for each detail."""
    at = step.at
    clock = f"{at[:10]} {at[11:23]}" if with_date else at[11:23]
    details = [*describe(step.step, step.detail)] or [""]
    node = f"[{step.detail['node']}]  " if "node" in step.detail else ""
    head = f" {step.step} {step.name:<18} {clock}Z  {node}"
    first, *rest = details
    return [f"{head}{first}".rstrip(), *(" " * len(head) + one for one in rest)]


def recipient_lines(
    recipients: Sequence[Recipient], *, indent: str = "   ", most: int = _RECIPIENTS_MAX
) -> list[str]:
    """Return a line per recipient, failed and deferred ones first, and a count of the rest."""
    ordered = sorted(recipients, key=lambda one: one.state in _UNREMARKABLE)
    shown, rest = ordered[:most], ordered[most:]
    width = min(max((len(one.address) for one in shown), default=0), _ADDRESS_WIDTH_MAX)
    lines = []
    for one in shown:
        number = sum(tried.outcome != "expired" for tried in one.attempts)
        more = f"  ({number} attempts)" if number > 1 else ""
        more += f"  Graph id {one.graph_id}" if one.graph_id else ""
        said = f"to {named(one.successors)}" if one.successors else one.reply
        line = f"{indent}{one.address:<{width}}  {one.state:<9}  {said}".rstrip()
        lines.append(line + more)
    if rest:
        by_state = Counter(one.state for one in rest)
        states = ", ".join(f"{number} {state}" for state, number in by_state.items())
        lines.append(f"{indent}and {len(rest)} more: {states}")
    return lines


def entry_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return entries as a table, and a line with their number."""
    head = ("ID", "STATE", "BYTES", "ATTEMPTS", "NEXT ATTEMPT (UTC)", "SENDER -> NEXT HOP")
    rows = [head, *map(_entry_cells, entries)] if entries else []
    widths = [max(len(row[column]) for row in rows) if rows else 0 for column in range(5)]
    lines = []
    for number, row in enumerate(rows):
        name, state, size, tries, due = (
            cell.rjust(width) if column in (2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        lines.append(f"{name}  {state}  {size}  {tries}  {due}  {row[5]}")
        if number:
            entry = entries[number - 1]
            lines += [f"    {remark}" for remark in _remarks(entry)]
            recipients = msgspec.convert(entry["recipients"], list[Recipient])
            lines += recipient_lines(recipients, indent="    ", most=10)
    return [*lines, _count(entries)]


def before_queue_lines(entries: EntryList) -> list[str]:
    """Return the line about messages that are not in the queue yet, if they were counted."""
    counts = entries.before_queue or {}
    numbers = [f"{number} {state}" for state, number in counts.items()]
    return [f"and {', '.join(numbers)}"] if numbers else []


def stats_lines(stats: Mapping[str, Any], *, now_us: int) -> list[str]:
    """Return the statistics of the queue."""
    if not stats:
        return ["the queue is empty: there is no spool"]
    by_state = ", ".join(f"{number} {state}" for state, number in stats["entries"].items())
    unaccounted = "not counted yet" if stats["unaccounted"] is None else stats["unaccounted"]
    levels = ", ".join(f"{one['entries']} {level}" for level, one in stats["priorities"].items())
    lines = [
        f"entries      {by_state}",
        f"recipients   {stats['recipients']}",
        f"due now      {stats['due']}, with delivery {stats['in_delivery']}",
        f"oldest       {_age(stats['oldest'], now_us)}",
        f"priorities   {levels}",
        f"unaccounted  {unaccounted}",
    ]
    hops = stats["next_hops"]
    rows = [("NEXT HOP", "ENTRIES", "ACTIVE", "DEFERRED", "OLDEST")] + [
        (
            one["next_hop"], str(one["entries"]), str(one["in_delivery"]), str(one["deferred"]),
            _age(one["oldest"], now_us),
        )
        for one in hops
    ]  # fmt: skip
    width = max(len(row[0]) for row in rows)
    table = [f"{hop:<{width}}  {'  '.join(f'{x:>8}' for x in rest)}" for hop, *rest in rows]
    table[0] += "  LAST REPLY"
    for number, one in enumerate(hops, 1):
        if last := one["last"]:
            host = f"{last['host']}, " if last["host"] else ""
            age = _age(last["at"], now_us)
            table[number] += f"  {age} ago, {host}for {last['domain']}: {last['reply']}"
    if hops:
        lines += ["", *table]
    if nodes := stats.get("nodes"):
        lines += ["", *_node_lines(nodes)]
    return lines


def _node_lines(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the nodes of a spool as a table, and whether those that live have one version."""
    rows = [("NODE", "STATE", "VERSION", "LAST BEAT", "CLAIMS")] + [
        (
            one["name"] + (" (this)" if one["is_this"] else ""), one["state"], one["version"],
            f"{_duration(one['beat_age_s'])} ago", str(one["claims"]),
        )
        for one in nodes
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    versions = sorted({one["version"] for one in nodes if one["state"] == "alive"})
    if len(versions) > 1:
        lines.append(f"living nodes have several versions: {', '.join(versions)}")
    return lines


def finding_line(one: Mapping[str, Any]) -> str:
    """Return a finding of `relay storage verify`, and the action taken."""
    state = "repaired" if one["repaired"] else "REMAINS"
    action = f"; {one['action']}" if one["action"] else ""
    result = f"found {one['found']}, expected {one['expected']}{action}"
    return f"{state:<9} {one['kind']:<17} {one['where']}: {result}"


def backup_lines(result: Mapping[str, Any], directory: str, *, dry_run: bool) -> list[str]:
    """Return what `relay storage backup` has copied, or would copy."""
    database, contents = result["database"], result["contents"]
    size_mib = (database["bytes"] + contents["bytes"]) / 2**20
    files = counted(contents["files"], "content file")
    letters = counted(result["dead_letters"], "dead letter")
    lines = [f"{size_mib:.1f} MiB: the spool, {files}, {letters}"]
    if not dry_run:
        entries = counted(sum(result["entries"].values()), "entry")
        lines.append(f"in the queue: {entries}, {counted(result['recipients'], 'recipient')}")
        lines += [f"missing: {name}" for name in contents["missing"]]
        lines.append(f"copied to {directory}")
    return lines


def recover_lines(result: Mapping[str, Any]) -> list[str]:
    """Return what `relay storage recover` has copied and lost."""
    if not result["faults"]:
        return ["the spool is not damaged: nothing was done"]
    lines = [f"found: {fault}" for fault in result["faults"]]
    recovered = ", ".join(f"{n} {table}" for table, n in result["rows"].items())
    lines.append(f"recovered: {recovered or 'nothing'}")
    lines += [f"lost: {_hole(hole)}" for hole in result["holes"]]
    if result["log_damaged"]:
        lines.append(
            "the log is damaged: its readable part is recovered, the last changes may be lost"
        )
    if result["recipients_lost"] is None:
        lines.append("the number of lost recipients is unknown")
    elif result["recipients_lost"]:
        lines.append(f"lost from the queue: {counted(result['recipients_lost'], 'recipient')}")
    if result["without_content"]:
        lines.append(f"without their content: {counted(result['without_content'], 'entry')}")
    if result["without_recipients"]:
        held = counted(result["without_recipients"], "entry")
        lines.append(f"without their recipients, now held: {held}")
    lines.append(f"in the queue: {counted(result['entries_waiting'], 'entry')}")
    lines.append(f"the damaged spool is kept as {result['aside']}")
    return lines


def recovered_keys_lines(result: Mapping[str, Any]) -> list[str]:
    """Return what `relay storage recover --keys` has moved aside."""
    if not result["damage"]:
        return ["the records of keys are not damaged: nothing was done"]
    lines = [f"found: {result['damage']}", *(f"kept as {one}" for one in result["kept"])]
    lines.append("the next start begins new records: earlier keys are unknown")
    return lines


def _hole(hole: Mapping[str, Any]) -> str:
    """Return the rows of a table between which rows are unreadable; without both ends, all."""
    ends = [
        f"{name} {' '.join(map(str, hole[name]))}"
        for name in ("after", "before")
        if hole[name] is not None
    ]
    return f"rows of {hole['table']}" + (f" {', '.join(ends)}" if ends else ": none could be read")


def verified_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the counts of `relay storage verify`."""
    submissions = document["submissions"]
    checked = (
        counted(document["mailboxes"], "mailbox"),
        counted(document["messages"], "message"),
        counted(document["indexes"], "index"),
    )
    waiting = (
        f"{counted(submissions['ready'], 'submission')} ready, {submissions['scheduled']} scheduled"
    )
    lines = [f"{', '.join(checked)}; {waiting}"]
    for name, result in (
        ("without_draft", "the draft was removed, the submission is sent without it"),
        ("accepted", "accepted already, the next start removes the submission"),
        ("corrupt", "in corrupt/, to be examined"),
    ):
        if found := submissions[name]:
            lines.append(f"{result}: {named(found)}")
    if spool := document["spool"]:
        queue = f"{counted(spool['entries'], 'entry')} in the queue"
        contents = counted(spool["contents"], "content")
        lines.append(f"{counted(spool['messages'], 'message')} in the spool, {queue}, {contents}")
    repaired = counted(document["repaired"], "fault")
    lines.append(f"{repaired} repaired, {document['remaining']} remaining")
    return lines


def _entry_cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    due = str(entry["due"])[:19].replace("T", " ") if entry["due"] else "-"
    is_lost = entry["sender"] is None
    numbers = ("-" if is_lost else str(entry["size"]), str(entry["attempts"]))
    way = f"{'?' if is_lost else entry['sender'] or '<>'} -> {entry['next_hop']}"
    return (f"{entry['id']}-{entry['entry']}", str(entry["state"]), *numbers, due, way)


def _remarks(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield remarks about an entry: hold, reason, last result."""
    if entry["sender"] is None:
        yield "its message is lost: see relay storage verify"
    if entry.get("held_until"):
        yield f"held until {str(entry['held_until'])[:19].replace('T', ' ')}"
    if entry.get("reason"):
        held_by = f"held by {hold_text(entry['reason'], entry.get('rule', ''))}"
        since = str(entry.get("since", ""))[:19].replace("T", " ")  # a list has it, a change not
        yield f"{held_by}, since {since}" if since else held_by
        if entry.get("subject"):
            yield f"subject: {entry['subject']}"
    if entry.get("note"):
        yield f"{entry['result']}: {entry['note']}"


def _age(at: str | None, now_us: int) -> str:
    """Return the age of an RFC 3339 time in its two largest units."""
    if at is None:
        return "-"
    return _duration(max(0, now_us // 1_000_000 - int(datetime.fromisoformat(at).timestamp())))


def _duration(left_s: int) -> str:
    parts: list[str] = []
    for unit, unit_s in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, left_s = divmod(left_s, unit_s)
        if number or parts or unit == "s":
            parts.append(f"{number}{unit}")
    return "".join(parts[:2])


def _count(entries: Sequence[Mapping[str, Any]]) -> str:
    recipients = sum(len(entry["recipients"]) for entry in entries)
    states = Counter(str(entry["state"]) for entry in entries)
    by_state = ", ".join(f"{number} {state}" for state, number in states.items())
    total = f"{counted(len(entries), 'entry')}, {counted(recipients, 'recipient')}"
    return total + (f": {by_state}" if by_state else "")


def _state(found: Journey) -> str:
    """Return the state, and the number of recipients in it if not all are."""
    state, recipients = found.state, found.shown_recipients
    count = sum(1 for one in recipients if one.state == state)
    return state.upper() + (f" ({count} of {len(recipients)})" if count < len(recipients) else "")


def printable(text: str) -> str:
    """Return `text` with control characters replaced, for a terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)
