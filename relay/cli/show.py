"""Journeys and queue entries as lines for people (pure).

On the path: trace, wait, queue and dev print what these return.
Holds: no control character of a message reaches the terminal.
Fails: never.
Standards: none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

STEPS = {
    1: "created",
    2: "notified",
    3: "converted",
    4: "accepted",
    5: "policy and routing",
    6: "delivery",
    7: "report",
}
_DETAIL_CHARACTERS_MAX = 300


def journey_lines(found: Mapping[str, Any]) -> list[str]:
    """A message's journey: a headline, its steps, its recipients."""
    name = found["id"] or found["submission_id"]
    who = ", ".join(one["address"] for one in found["recipients"][:5])
    more = len(found["recipients"]) - 5
    who += f" and {more} more" if more > 0 else ""
    lines = [
        printable(f'{name}  "{found["subject"]}"  {found["sender"] or "<>"} -> {who}')
        + f"  {_headline(found)}"
    ]
    lines += [step_line(step) for step in found["steps"]]
    for one in found["recipients"]:
        reply = f"  {one['reply']}" if one["reply"] else ""
        tries = len(one["attempts"])
        tried = f"  ({tries} attempts)" if tries > 1 else ""
        lines.append(printable(f"   {one['address']}  {one['state']}{reply}{tried}"))
    return lines


def _headline(found: Mapping[str, Any]) -> str:
    """The state, and of how many recipients it holds where not of all."""
    state, people = str(found["state"]), found["recipients"]
    count = sum(1 for one in people if one["state"] == state)
    return state.upper() + (f" ({count} of {len(people)})" if count < len(people) else "")


def step_line(step: Mapping[str, Any]) -> str:
    """One step: number, name, time of day, what happened."""
    clock = str(step["at"])[11:23]
    told = describe(int(step["step"]), step["detail"])
    return printable(f" {step['step']} {step['name']:<18} {clock}  {told}").rstrip()


def describe(step: int, detail: Mapping[str, Any]) -> str:
    """What an event's detail says, in a few words."""
    if step == 5:
        hops = "; ".join(
            f"{hop}: {', '.join(people)}" for hop, people in detail.get("next_hops", {}).items()
        )
        rules = ", ".join(f'"{hit["rule"]}" {hit["outcome"]}' for hit in detail.get("rules", []))
        refused = ", ".join(f"{one['address']} {one['reply']}" for one in detail.get("refused", []))
        parts = (f"rules: {rules}" if rules else "", hops, f"refused: {refused}" if refused else "")
        return "; ".join(part for part in parts if part)
    if step == 6 and "recipients" in detail:
        host = f" by {detail['host']}" if detail.get("host") else ""
        outcomes = ", ".join(
            f"{one['address']} {one['outcome']} {one['reply']}" for one in detail["recipients"]
        )
        return f"{outcomes}{host}"
    return ", ".join(f"{name} {_short(value)}" for name, value in detail.items())


def entry_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Entries as a table, and a line that counts them."""
    lines = []
    for entry in entries:
        lines.append(
            printable(
                f"{entry['id']}-{entry['entry']}  {entry['state']:<9} {entry['size']:>9}"
                f"  {entry['sender'] or '<>'} -> {entry['next_hop']}"
                f"  try {entry['attempts']}, due {str(entry['due'])[:19]}"
            )
        )
        lines += [
            printable(f"    {one['address']}  {one['state']}  {one['reply']}")
            for one in entry["recipients"]
        ]
    people = sum(len(entry["recipients"]) for entry in entries)
    return [*lines, f"{len(entries)} entries, {people} recipients"]


def printable(text: str) -> str:
    """`text` without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:_DETAIL_CHARACTERS_MAX]
