"""Print JSON and text to stdout; the lines of journeys, recipients and rules.

JSON is UTF-8 on any terminal; a document is printed at once, a stream line by line. The text
functions are pure and return lines. print_lines() replaces control characters. Code that prints
text in another way calls printable(). click.echo() flushes its output: a failure is still reported,
and later output to stderr appears after it.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
import msgspec

from relay.base.message.authentication_results import check_words
from relay.base.message.lifecycle import rule_or_milter
from relay.base.phrases import counted, named, time_span
from relay.store.journeys.document import Journey, JourneyStep, Recipient
from relay.store.journeys.wording import client_line, describe


def print_json(value: Any) -> None:
    """Print one JSON document, indented."""
    click.echo(msgspec.json.format(_as_json(value), indent=2))


def print_json_list(rows: Iterable[Any]) -> None:
    """Print a JSON array as print_json() does, each row as soon as it is there."""
    before = "["
    for row in rows:
        text = msgspec.json.format(_as_json(row), indent=2).decode()
        click.echo(f"{before}\n  " + text.replace("\n", "\n  "), nl=False)
        before = ","
    click.echo("[]" if before == "[" else "\n]")


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
    """Print lines of text, with control characters replaced; no lines print nothing."""
    if lines:
        click.echo("\n".join(map(printable, lines)))


def print_progress(text: str) -> None:
    """Print a line on stderr if that is a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo(text, err=True)


_RECIPIENTS_MAX = 20  # of one message, one line each; --json has all
_ADDRESS_WIDTH_MAX = 40
UNREMARKABLE = ("delivered", "relayed", "captured", "queued")


def journey_lines(journey: Journey, answer: Sequence[str] = ()) -> list[str]:
    """Return the lines of a journey: `answer`, a headline, the steps, the recipients."""
    recipients = named([recipient.address for recipient in journey.recipients])
    headline = f'{journey.key}  "{journey.subject}"  {journey.sender or "<>"} -> {recipients}'
    days = {step.at[:10] for step in journey.steps}
    lines = [*answer, f"{headline}  {_state(journey)}"]
    if client := client_line(journey.known_client):
        lines.append(f"   {client}")
    if journey.checks:
        lines.append(f"   {check_words(journey.checks)}")
    for step in journey.steps:
        lines += step_lines(step, with_date=len(days) > 1)
    return lines + recipient_lines(journey.shown_recipients) + recipient_lines(journey.added or ())


def step_lines(step: JourneyStep, *, with_date: bool = False) -> list[str]:
    """Return a step: number, name, time of day (UTC) and details, one line for each detail."""
    at = step.at
    clock = f"{at[:10]} {at[11:23]}" if with_date else at[11:23]
    details = [*describe(step.step, step.detail)] or [""]
    node = f"[{step.detail['node']}]  " if "node" in step.detail else ""
    head = f" {step.step} {step.name:<18} {clock}Z  {node}"
    first, *rest = details
    return [f"{head}{first}".rstrip(), *(" " * len(head) + text for text in rest)]


def recipient_lines(
    recipients: Sequence[Recipient], *, indent: str = "   ", most: int = _RECIPIENTS_MAX
) -> list[str]:
    """Return a line per recipient, failed and deferred ones first, and a count of the rest."""
    ordered = sorted(recipients, key=lambda recipient: recipient.state in UNREMARKABLE)
    listed, rest = ordered[:most], ordered[most:]
    longest = max((len(recipient.address) for recipient in listed), default=0)
    width = min(longest, _ADDRESS_WIDTH_MAX)
    lines = []
    for recipient in listed:
        number = sum(tried.outcome != "expired" for tried in recipient.attempts)
        more = f"  ({number} attempts)" if number > 1 else ""
        more += f"  Graph id {recipient.graph_id}" if recipient.graph_id else ""
        more += f"  (added by {rule_or_milter(recipient.added_by)})" if recipient.added_by else ""
        said = f"to {named(recipient.successors)}" if recipient.successors else recipient.reply
        line = f"{indent}{recipient.address:<{width}}  {recipient.state:<9}  {said}".rstrip()
        lines.append(line + more)
    if rest:
        by_state = Counter(recipient.state for recipient in rest)
        states = ", ".join(f"{number} {state}" for state, number in by_state.items())
        lines.append(f"{indent}and {len(rest)} more: {states}")
    return lines


def _state(journey: Journey) -> str:
    """Return the state of a message; if not all recipients are in it, the number of those too.
    Aliases and others that were replaced do not count.
    """
    states = [recipient.state for recipient in journey.shown_recipients if not recipient.successors]
    count = states.count(journey.state)
    return journey.state.upper() + (f" ({count} of {len(states)})" if count < len(states) else "")


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
    """Return a line that says whether a rule matches and what it does, without its conditions."""
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
            f"  {'yes' if condition['holds'] else 'no':<4}{condition_text(condition)}"
            for condition in rule["conditions"]
        ]
    for charge in document["charges"]:
        limit = f"{charge['allowed']} in {time_span(charge['period_s'])}"
        number = counted(charge["recipients"], "recipient")
        lines.append(f"counts {number} against the {limit} of {charge['key']} ({charge['rule']})")
    if (deferred := document["deferred"]) is not None:
        lines.append(f"deferred: {deferred['status']} {deferred['text']} ({deferred['rule']})")
    else:
        lines += _recipient_lines(document)
    return [*lines, f"verdict: {document['verdict']}"]


def _recipient_lines(document: Mapping[str, Any]) -> Iterator[str]:
    for recipient in document["recipients"]:
        via = f" by {recipient['next_hop']}" if recipient["next_hop"] else ""
        yield _line(recipient, _fate(recipient) + via)
    rejected = ", unless a client hears the reject" if document["verdict"] == "reject" else ""
    for recipient in document["added"]:
        yield _line(recipient, (_held(recipient) or "gets a copy") + rejected)
    for mail in document["mails"]:
        names = ", ".join(mail["recipients"])
        yield f"{_MAILS[mail['kind']]} to {mail['to']} about {names} ({mail['rule']})"


def _line(recipient: Mapping[str, Any], fate: str) -> str:
    rule = f" ({recipient['rule']})" if recipient["rule"] else ""
    return f"{recipient['address']}: {fate}{rule}"


def _held(recipient: Mapping[str, Any]) -> str:
    return f"held: {recipient['hold']['reason']}" if recipient["hold"] is not None else ""


def _fate(recipient: Mapping[str, Any]) -> str:
    match recipient["fate"]:
        case "reject":
            return f"rejected: {recipient['status']} {recipient['text']}"
        case "discard":
            return "discarded"
        case "redirect":
            return f"redirected to {', '.join(recipient['successors'])}"
        case _:
            held = _held(recipient)
            if not recipient["quarantined"] or held == "held: quarantine":
                return held or "delivered"
            first = f"{held}, then " if held else ""
            return f"{first}quarantined ({recipient['quarantined']})"
