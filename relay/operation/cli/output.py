"""Print facts to stdout: JSON, and text; the lines of a journey, of its recipients, and of rules.

JSON is UTF-8 on any terminal; a document is printed at once, a stream line by line. The text
functions are pure and return lines. print_lines() replaces their control characters: what prints
them in another way has to do that itself, by printable(). click.echo() flushes what it prints, so
that its failure is still reported, and what goes to stderr afterwards is seen after it.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import msgspec

from relay.base.message.lifecycle import rule_or_milter
from relay.base.phrases import counted, named, time_span
from relay.store.journeys.document import Journey, JourneyStep, Recipient
from relay.store.journeys.wording import client_line, describe


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


_RECIPIENTS_MAX = 20  # of one message, one line each; --json has all
_ADDRESS_WIDTH_MAX = 40
_UNREMARKABLE = ("delivered", "relayed", "captured", "queued")


def journey_lines(found: Journey, answer: Sequence[str] = ()) -> list[str]:
    """Return a journey: what became of it, a headline, its steps, its recipients."""
    recipients = named([one.address for one in found.recipients])
    headline = f'{found.key}  "{found.subject}"  {found.sender or "<>"} -> {recipients}'
    days = {step.at[:10] for step in found.steps}
    lines = [*answer, f"{headline}  {_state(found)}"]
    if client := client_line(found.known_client):
        lines.append(f"   {client}")
    for step in found.steps:
        lines += step_lines(step, with_date=len(days) > 1)
    return lines + recipient_lines(found.shown_recipients) + recipient_lines(found.added or ())


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
        more += f"  (added by {rule_or_milter(one.added_by)})" if one.added_by else ""
        said = f"to {named(one.successors)}" if one.successors else one.reply
        line = f"{indent}{one.address:<{width}}  {one.state:<9}  {said}".rstrip()
        lines.append(line + more)
    if rest:
        by_state = Counter(one.state for one in rest)
        states = ", ".join(f"{number} {state}" for state, number in by_state.items())
        lines.append(f"{indent}and {len(rest)} more: {states}")
    return lines


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


_MAILS = {"journal": "journal", "notify": "notice"}


def condition_text(condition: Mapping[str, Any]) -> str:
    """Return the key of a condition and the value that it compared."""
    return f'{condition["condition"]} "{condition["value"]}"'


def rule_text(rule: Mapping[str, Any]) -> str:
    """Return whether a rule matches, and what it does, without its conditions."""
    name, would = f'"{rule["rule"]}"', "would do (audit)" if rule["mode"] == "audit" else "does"
    if rule["skipped"]:
        return f"{name} is not evaluated: {rule['skipped']}"
    if not rule["matched"]:
        return f"{name} does not match"
    matched = " ".join(["matches", ", ".join(rule.get("recipients", ()))]).rstrip()
    return f"{name} {matched} and {would} {rule['outcome']}"


def verdict_lines(document: Mapping[str, Any]) -> list[str]:
    """Return a line for each rule, condition and recipient, and the verdict last."""
    lines = []
    for rule in document["rules"]:
        lines.append(f"rule {rule_text(rule)}")
        lines += [
            f"  {'yes' if each['holds'] else 'no':<4}{condition_text(each)}"
            for each in rule["conditions"]
        ]
    for one in document["charges"]:
        limit = f"{one['allowed']} in {time_span(one['period_s'])}"
        number = counted(one["recipients"], "recipient")
        lines.append(f"counts {number} against the {limit} of {one['key']} ({one['rule']})")
    if (deferred := document["deferred"]) is not None:
        lines.append(f"deferred: {deferred['status']} {deferred['text']} ({deferred['rule']})")
    else:
        lines += _recipient_lines(document)
    return [*lines, f"verdict: {document['verdict']}"]


def _recipient_lines(document: Mapping[str, Any]) -> Iterator[str]:
    for one in document["recipients"]:
        via = f" by {one['next_hop']}" if one["next_hop"] else ""
        yield _line(one, _fate(one) + via)
    for one in document["added"]:
        yield _line(one, _held(one) or "gets a copy")
    for one in document["mails"]:
        names = ", ".join(one["recipients"])
        yield f"{_MAILS[one['kind']]} to {one['to']} about {names} ({one['rule']})"


def _line(one: Mapping[str, Any], fate: str) -> str:
    return f"{one['address']}: {fate}" + (f" ({one['rule']})" if one["rule"] else "")


def _held(one: Mapping[str, Any]) -> str:
    return f"held: {one['hold']['reason']}" if one["hold"] is not None else ""


def _fate(one: Mapping[str, Any]) -> str:
    match one["fate"]:
        case "reject":
            return f"rejected: {one['status']} {one['text']}"
        case "discard":
            return "discarded"
        case "redirect":
            return f"redirected to {', '.join(one['successors'])}"
        case _:
            held = _held(one)
            if not one["quarantined"] or held == "held: quarantine":
                return held or "delivered"
            return f"{held}, then " * bool(held) + f"quarantined ({one['quarantined']})"
