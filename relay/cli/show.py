"""Journeys and queue entries as lines for people (pure).

On the path: trace, wait, queue and dev print what these return.
Holds: no control character of a message reaches the terminal; a message for a thousand people
    still fits on a screen.
Fails: never.
Standards: none.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_PEOPLE_MAX = 20  # of one message, one line each; --json has all
_NAMES_MAX = 5  # on one line
_ADDRESS_WIDTH_MAX = 40
_DETAIL_CHARACTERS_MAX = 300
_UNREMARKABLE = ("delivered", "relayed", "captured", "queued")


def journey_lines(found: Mapping[str, Any]) -> list[str]:
    """A message's journey: a headline, its steps, its recipients."""
    name = found["id"] or found["submission_id"]
    people = _names([one["address"] for one in found["recipients"]])
    headline = f'{name}  "{found["subject"]}"  {found["sender"] or "<>"} -> {people}'
    days = {str(step["at"])[:10] for step in found["steps"]}
    lines = [printable(f"{headline}  {_state(found)}")]
    for step in found["steps"]:
        lines += step_lines(step, with_date=len(days) > 1)
    return lines + recipient_lines(found["recipients"])


def step_lines(step: Mapping[str, Any], *, with_date: bool = False) -> list[str]:
    """One step: number, name, time of day (UTC), what happened; what does not fit goes below."""
    at = str(step["at"])
    clock = f"{at[:10]} {at[11:23]}" if with_date else at[11:23]
    told = [*describe(int(step["step"]), step["detail"])] or [""]
    head = f" {step['step']} {step['name']:<18} {clock}Z  "
    first, *rest = told
    return [printable(f"{head}{first}".rstrip()), *(printable(" " * len(head) + x) for x in rest)]


def describe(step: int, detail: Mapping[str, Any]) -> Iterator[str]:
    """What an event's detail says, in a few words a line."""
    if step == 5:
        for hit in detail.get("rules", []):
            yield f'rule "{hit["rule"]}": {hit["outcome"]}'
        counts = detail.get("counts", {})  # an event does not name all of many
        for hop, people in detail.get("next_hops", {}).items():
            yield f"{hop}: {_names(people, counts.get(hop))}"
        refused = [f"refused: {x['address']} {x['reply']}" for x in detail.get("refused", [])]
        yield from _few(refused, counts.get("refused"))
    elif step == 6 and "recipients" in detail:
        host = f" by {detail['host']}" if detail.get("host") else ""
        outcomes = ((x["address"], x["outcome"], x["reply"]) for x in detail["recipients"])
        yield from _few([f"{who} {outcome}{host}: {reply}" for who, outcome, reply in outcomes])
    elif step == 4 and detail.get("folder", "") is None:
        yield f"not kept, queue_id {detail['queue_id']}"
    elif detail:
        yield ", ".join(f"{name} {_short(value)}" for name, value in detail.items())


def recipient_lines(
    people: Sequence[Mapping[str, Any]], *, indent: str = "   ", most: int = _PEOPLE_MAX
) -> list[str]:
    """A line for each recipient, those with trouble first, and one that counts the rest."""
    ordered = sorted(people, key=lambda one: one["state"] in _UNREMARKABLE)
    shown, rest = ordered[:most], ordered[most:]
    width = min(max((len(one["address"]) for one in shown), default=0), _ADDRESS_WIDTH_MAX)
    lines = []
    for one in shown:
        tries = len(one.get("attempts", ()))
        tried = f"  ({tries} attempts)" if tries > 1 else ""
        line = f"{indent}{one['address']:<{width}}  {one['state']:<9}  {one['reply']}".rstrip()
        lines.append(printable(line + tried))
    if rest:
        counted = ", ".join(
            f"{n} {state}" for state, n in Counter(x["state"] for x in rest).items()
        )
        lines.append(f"{indent}and {len(rest)} more: {counted}")
    return lines


def entry_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Entries as a table, and a line that counts them."""
    head = ("ID", "STATE", "BYTES", "TRIES", "NEXT TRY (UTC)", "SENDER -> NEXT HOP")
    rows = [head, *map(_entry_cells, entries)] if entries else []
    widths = [max(len(row[column]) for row in rows) if rows else 0 for column in range(5)]
    lines = []
    for number, row in enumerate(rows):
        name, state, size, tries, due = (
            cell.rjust(width) if column in (2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        lines.append(printable(f"{name}  {state}  {size}  {tries}  {due}  {row[5]}"))
        if number:
            lines += recipient_lines(entries[number - 1]["recipients"], indent="    ", most=10)
    return [*lines, _count(entries)]


def finding_line(one: Mapping[str, Any]) -> str:
    """What `relay storage verify` has found, and what was done."""
    state = "mended" if one["mended"] else "REMAINS"
    action = f"; {one['action']}" if one["action"] else ""
    told = f"found {one['found']}, expected {one['expected']}{action}"
    return printable(f"{state:<7} {one['kind']:<17} {one['where']}: {told}")


def verified_lines(document: Mapping[str, Any]) -> list[str]:
    """What `relay storage verify` has looked at."""
    notes = document["notes"]
    indexes = f"{document['indexes']} indexes"
    waiting = f"{notes['ready']} notes ready, {notes['deferred']} deferred"
    lines = [
        f"{document['mailboxes']} mailboxes, {document['messages']} messages, {indexes}; {waiting}"
    ]
    for name, told in (
        ("without_draft", "the draft was removed, the note alone is sent"),
        ("accepted", "accepted already, the next start removes the note"),
        ("put_aside", "put aside, for you to look at"),
    ):
        if found := notes[name]:
            lines.append(f"{told}: {_names(found)}")
    lines.append(f"{document['mended']} faults mended, {document['remaining']} remain")
    return [printable(line) for line in lines]


def _entry_cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    due = str(entry["due"])[:19].replace("T", " ") if entry["due"] else "-"
    numbers = (str(entry["size"]), str(entry["attempts"]))
    way = f"{entry['sender'] or '<>'} -> {entry['next_hop']}"
    return (f"{entry['id']}-{entry['entry']}", str(entry["state"]), *numbers, due, way)


def _count(entries: Sequence[Mapping[str, Any]]) -> str:
    people = sum(len(entry["recipients"]) for entry in entries)
    states = Counter(str(entry["state"]) for entry in entries)
    by_state = ", ".join(f"{number} {state}" for state, number in states.items())
    noun = "entry" if len(entries) == 1 else "entries"
    persons = "recipient" if people == 1 else "recipients"
    return f"{len(entries)} {noun}, {people} {persons}" + (f": {by_state}" if by_state else "")


def _state(found: Mapping[str, Any]) -> str:
    """The state, and of how many recipients it holds where not of all."""
    state, people = str(found["state"]), found["recipients"]
    count = sum(1 for one in people if one["state"] == state)
    return state.upper() + (f" ({count} of {len(people)})" if count < len(people) else "")


def printable(text: str) -> str:
    """`text` without what a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _names(addresses: Sequence[str], count: int | None = None) -> str:
    """The first of them, and how many more; `count` where there are more than `addresses`."""
    more = (count or len(addresses)) - _NAMES_MAX
    return ", ".join(addresses[:_NAMES_MAX]) + (f" and {more} more" if more > 0 else "")


def _few(lines: Sequence[str], count: int | None = None) -> list[str]:
    more = (count or len(lines)) - _NAMES_MAX
    return [*lines[:_NAMES_MAX], *([f"and {more} more"] if more > 0 else [])]


def _short(value: Any) -> str:
    text = _names([str(one) for one in value]) if isinstance(value, list) else str(value)
    return text[:_DETAIL_CHARACTERS_MAX]
