"""`relay trace` and `relay wait`: show the journey of a message, or wait for a state first.

Both exit 65 for an unknown message. wait exits 75 with a diagnosis after its time-out, 69 without
a daemon.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import click
from msgspec import UNSET, to_builtins
from msgspec.structs import replace

from relay.base.clock import SystemClock
from relay.base.phrases import counted, shown
from relay.cli.errors import CommandError, ExitCode
from relay.cli.log import log_lines, log_query
from relay.cli.options import KEY, CommandContext, common_options, unknown_message
from relay.cli.output import journey_lines, printable
from relay.commands.operator_client import OperatorClient
from relay.journeys.document import Journey, Recipient
from relay.journeys.sentences import is_remote
from relay.journeys.wording import REASONS, WAITS_FOR
from relay.message.lifecycle import BEFORE_QUEUE, FINAL, RecipientState, SubmissionState
from relay.refusals.refusal import Refusal, line_of
from relay.settings.values import is_ip

_ROWS_MAX = 20  # messages of a client; relay log has all
_MORE_MAX = 100  # that are counted


@click.command()
@click.argument("key", type=KEY, metavar="ID|ADDRESS|IP|last")
@common_options
def trace(context: CommandContext, key: str) -> None:
    """Show the journey of a message through the seven steps.

    ID is a Graph id, a submission id, a queue id or a Message-ID; an ADDRESS selects the
    newest message of that sender or recipient, and what SMTP sessions refused from or to it; an
    IP address selects the messages of that client, and what they refused of it.
    """
    client = OperatorClient(context.settings(), SystemClock())
    refused = client.refused(key) if is_ip(key) or _is_address(key) else []
    found = None if is_ip(key) else client.journey(key)
    if found is None and _is_address(key):  # a name is looked for among the newest messages only
        older = client.log(log_query(mailbox=key, limit="1"))["messages"]
        found = client.journey(older[0]["id"] or older[0]["submission_id"]) if older else None
    listed = _listed(client, {"client": key}) if is_ip(key) else {"messages": []}
    rows = listed["messages"][:_ROWS_MAX]
    if is_ip(key) and not refused and not rows:
        reason = f"; {client.without_daemon}" if client.without_daemon else ""
        raise CommandError(ExitCode.DATA, f"relay trace: nothing came from {key}{reason}")
    if found is None and not refused and not rows:
        raise unknown_message("trace", key, without_daemon=client.without_daemon)
    document: dict[str, Any] = {} if found is None else to_builtins(found)
    if rows:
        document["messages"] = rows
    if refused:
        document["refused"] = refused

    def lines() -> list[str]:
        shown, full = log_lines(rows), listed
        option, value = "client", key
        if found is not None:
            shown = journey_lines(found, client.answer(found))
            option, name, value = "message-id", "id", found.message_id or key
            if _is_address(key):
                option, name, value = "address", "mailbox", key
            full = _listed(client, {name: value, "pages": "1"})
        if key != "last" and (more := len(full["messages"]) - (len(rows) or 1)) > 0:
            least = "at least " if full["older"] else ""
            command = f"relay log --{option} {shlex.quote(value)}"
            shown.append(f"{least}{counted(more, 'more message')}: {command}")
        return [*shown, *map(_refusal_line, refused)]

    context.show(document, lines)


def _listed(client: OperatorClient, wanted: Mapping[str, str]) -> dict[str, Any]:
    return client.log(log_query(**wanted, limit=str(_ROWS_MAX + _MORE_MAX)))


def _refusal_line(refusal: Refusal) -> str:
    return f"{refusal.at[:10]} {refusal.at[11:23]}Z  {refusal.client}  {line_of(refusal)}"


def _is_address(key: str) -> bool:
    return "@" in key and not key.startswith("<")


_RECIPIENTS_MAX = 10


def diagnosis(found: Journey, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the last step of a message and what it waits for; `entries` are its queue entries."""
    steps = [step for step in found.steps if not is_remote(step.detail)]
    last = max(steps, key=lambda step: step.step, default=None)
    lines = []
    if last is not None:
        is_scheduled = found.state == SubmissionState.SCHEDULED
        what = "it " + REASONS[found.state] if is_scheduled else WAITS_FOR[last.step]
        lines.append(f"it is at step {last.step} ({last.name}): {what}")
    if found.state in BEFORE_QUEUE:
        return lines
    waiting = [one for one in found.recipients if one.state not in FINAL]
    due = {one["address"]: entry["due"] for entry in entries for one in entry["recipients"]}
    shown = waiting[:_RECIPIENTS_MAX]
    lines += [printable(_reason(one, due.get(one.address))) for one in shown]
    if len(waiting) > _RECIPIENTS_MAX:
        lines.append(f"and {counted(len(waiting) - _RECIPIENTS_MAX, 'more recipient')}")
    return lines


def _reason(recipient: Recipient, due: str | None) -> str:
    state = recipient.state
    text = f"{recipient.address} {REASONS.get(state, f'is {state}')}"
    if state == "deferred" and due:
        text += f" at {due[11:19]}Z"
    if attempts := recipient.attempts:
        host = attempts[-1].host
        text += f", {counted(len(attempts), 'attempt')} so far"
        text += f", the last by {host}" if host else ""
    return f"{text}: {recipient.reply}" if recipient.reply else text


_STATES = ["there", "final", *map(str, (*SubmissionState, *RecipientState))]


@click.command()
@click.argument("key", type=KEY, metavar="ID")
@click.option(
    "--state",
    default="there",
    show_default=True,
    type=click.Choice(_STATES),
    metavar="STATE",
    help="The state to wait for: there (all recipients are captured or final), final, or a state "
    "of the message as a whole.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait.",
)
@common_options
def wait(context: CommandContext, key: str, *, state: str, timeout_s: float) -> None:
    """Wait until a message reaches a state, then show its journey.

    An unknown message is waited for as well. If the time is up, or the message ended in another
    state, exits 75 and prints its last step and the reason.
    """
    if not math.isfinite(timeout_s):
        raise click.UsageError("--timeout: expected a number of seconds")
    client = OperatorClient(context.settings(), SystemClock())
    found = client.wait(key, state=state, timeout_s=timeout_s)
    if found is None:
        text = f"relay wait: no message appeared as {shown(key)} within {timeout_s:g} s"
        raise CommandError(ExitCode.TRY_LATER, text)
    journey = replace(found, reached=UNSET)
    context.show(journey, lambda: journey_lines(journey, client.answer(journey)))
    if not found.reached:
        entries = client.entries_of(found.id) if found.id else []
        so_far = "permanently" if found.is_final else f"after {timeout_s:g} s"
        expected = "final or captured" if state == "there" else state
        text = f"relay wait: {found.state} {so_far}, expected {expected}"
        raise CommandError(ExitCode.TRY_LATER, "\n  ".join([text, *diagnosis(found, entries)]))
