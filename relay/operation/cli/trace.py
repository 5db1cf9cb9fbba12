"""`relay trace` and `relay wait`: show the journey of a message, or wait for a state first. `relay
list` (`log`) and `relay search`: the messages that match, one line each, the newest first.

trace and wait exit 65 for an unknown message. wait exits 75 with a diagnosis after its time-out, or
when the state can no longer be reached. wait and search exit 69 without a daemon. log prints the
answer of GET /relay/v1/log, search the answer of GET /relay/v1/messages; both note on stderr that
older messages may exist.
"""

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any

import click
from msgspec import UNSET, to_builtins
from msgspec.structs import replace

from relay.base.message import lifecycle
from relay.base.phrases import counted, named, shown
from relay.base.running_relay import ControlError
from relay.base.settings.values import is_ip
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.option_types import Parsed
from relay.operation.cli.options import KEY, CommandContext, common_options, once
from relay.operation.cli.output import UNREMARKABLE, journey_lines, print_json_list, printable
from relay.operation.cli.relay_client import no_mail, operator_client, unknown_message
from relay.operation.commands.operator_client import LIST_MAX, OperatorClient
from relay.store.journeys.details import ClaimDetail, ComplaintDetail
from relay.store.journeys.document import Journey, Recipient
from relay.store.journeys.wording import REASONS, WAITS_FOR
from relay.transport.refusals.refusal import Refusal, line_of

_STATES = ["final", *map(str, (*lifecycle.SubmissionState, *lifecycle.RecipientState))]
_WORDS = ("client", "login", "id", "after", "before", "has")  # parameters that are search words
_OPTIONS = {"id": "message-id", "after": "since", "before": "until"}  # with other names than these


def _part(text: str) -> str:
    """Return the pattern that matches a part. A text with "*" is a pattern already."""
    return f"*{text}*" if text and "*" not in text else text


def _address(text: str) -> str:
    """Return the pattern that matches an address, or a part of one, such as the domain."""
    if text.startswith("@"):
        return f"*{text}"
    return text if "@" in text or text == "<>" else _part(text)


_SHOWN = 100
_LIMIT = click.option(
    "--limit", type=click.IntRange(1, LIST_MAX), help=f"Default: {_SHOWN}; with --json: all."
)
_PART, _ADDRESS = Parsed("TEXT", _part), Parsed("ADDRESS", _address)


@click.command()
@once("--address", "mailbox", metavar="ADDRESS", help='Sender or recipient, or "*@example.org".')
@once("--from", "sender", type=_ADDRESS, help='The reverse-path, or a part; "<>" is the null one.')
@once("--to", type=_ADDRESS, help="A recipient, or a part.")
@once("--subject", type=_PART, help="A part of the Subject; ? is any character.")
@once("--client", metavar="IP|NETWORK|NAME", help="Who brought it; NAME: in EHLO.")
@once("--login", metavar="ADDRESS", help="The account that it is from, or a part.")
@once("--state", type=click.Choice(_STATES), metavar="STATE", help="Of a recipient.")
@once("--message-id", "id", metavar="ID", help="A Message-ID, or another id.")
@once("--since", "after", metavar="WHEN", help="Then or later.")
@once("--until", "before", metavar="WHEN", help="Before then.")
@click.option("--complaints", is_flag=True, help="Only messages that a recipient complained about.")
@_LIMIT
@common_options
def log(context: CommandContext, *, complaints: bool, limit: int | None, **conditions: str) -> None:
    """List messages, the newest first, with their state: also those that have left the queue.

    A message must match all conditions. A value with "*" is a pattern of the whole. WHEN is a day
    such as 2027-01-31, today, yesterday; a time such as "yesterday 14:03", 14:03 (the last one) or
    "2027-01-31 09:00:00Z", in UTC without a zone; or a duration such as 2h: that long ago. What
    SMTP sessions refused is no message; relay trace shows it.
    """
    client = operator_client(context)
    conditions["has"] = "complaint" if complaints else ""
    query = log_query(**conditions)
    try:
        if context.json and limit is None:
            print_json_list(client.log_rows(query))
            return
        page = client.log(query | {"limit": str(limit or _SHOWN)})
    except ControlError as error:
        raise click.UsageError(_with_option(str(error))) from None
    for name in ("since", "until"):
        if name in page:
            click.echo(f"relay log: {name} {_moment(page[name])}", err=True)
    rows, older = page["messages"], page["older"]
    # `relay log`, `list`: `messages` of `GET log`
    context.show(rows, lambda: log_lines(rows))
    if older:
        text = f"{counted(len(rows), 'message')} back to {older}; older ones: --until {older}"
        click.echo(f"relay log: {text}", err=True)
    elif not rows:
        click.echo("relay log: no message matches", err=True)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="WORDS")
@_LIMIT
@common_options
def search(context: CommandContext, *, words: tuple[str, ...], limit: int | None) -> None:
    """List the messages that the search of the pages finds, the newest first.

    WORDS are parts of the subject or an address, or begin a word of the text; from:, to:, subject:,
    state:, id:, client:, login:, has:attachment, has:suppressed, larger:, after:, before: and
    is:unread are others. In a service, which searches no texts here, only these with a prefix, but
    is:unread.
    """
    shown_max = limit or (None if context.json else _SHOWN)
    found = islice(operator_client(context).search(" ".join(words)), shown_max)
    try:
        if context.json:
            # `relay search`: `messages` of `GET messages`
            print_json_list(found)
            return
        journeys = [*found]
    except ControlError as error:
        raise click.UsageError(str(error).removeprefix("q: ")) from None
    lines = [f"{_moment(journey.steps[0].at)}  {journey_lines(journey)[0]}" for journey in journeys]
    context.show(journeys, lambda: lines)
    if len(journeys) in (0, shown_max):
        more = f"the newest {shown_max}; --limit shows more" if journeys else "no message matches"
        click.echo(f"relay search: {more}", err=True)


def log_lines(rows: Sequence[Mapping[str, Any]], *, width: int = 0) -> list[str]:
    """Return a line for each row of the log: time, id, state in at least `width` columns, sender,
    recipients, Subject, and the reply that explains the state.
    """
    width = max((width, *(len(row["state"]) for row in rows)))
    return [_line(row, width) for row in rows]


def _line(row: Mapping[str, Any], width: int) -> str:
    to = [
        rcpt["address"] + (f" ({rcpt['state']})" if rcpt["state"] != row["state"] else "")
        for rcpt in row["recipients"]
    ]
    name = row["id"] or row["submission_id"]
    who = f"{row['sender'] or '<>'} -> {named(to, row['recipient_count'])}"
    for copy in row.get("added", ()):
        by = lifecycle.rule_or_milter(copy["added_by"])
        who += f", {copy['address']} ({copy['state']}, added by {by})"
    line = f'{_moment(row["at"])}  {name}  {row["state"]:<{width}}  {who}  "{row["subject"]}"'
    if row["next_attempt"]:
        line += f"  next attempt {_moment(row['next_attempt'])}"
    return line if row["state"] in UNREMARKABLE else f"{line}  {row['reply']}".rstrip()


def _moment(at: str) -> str:
    return f"{at[:10]} {at[11:19]}Z"


def log_query(**values: str) -> dict[str, str]:
    """Return the query of GET /log. Parameters in _WORDS become search words in `q`."""
    quoted = {word: values[word].replace('"', '""') for word in _WORDS if values.get(word)}
    words = [f'{word}:"{value}"' for word, value in quoted.items()]
    rest = {name: value for name, value in values.items() if value and name not in _WORDS}
    return rest | {"q": " ".join(words)}


def _with_option(text: str) -> str:
    """Replace the search word at the begin of an error by the name of the option."""
    word, colon, rest = text.removeprefix("q: ").partition(":")
    return f"--{_OPTIONS.get(word, word)}{colon}{rest}"


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
    client = operator_client(context)
    refused = client.refused(key) if is_ip(key) or _is_address(key) else []
    journey = None if is_ip(key) else client.journey(key)
    if journey is None and _is_address(key):  # a name is looked for among the newest messages only
        older = client.log(log_query(mailbox=key, limit="1"))["messages"]
        journey = client.journey(older[0]["id"] or older[0]["submission_id"]) if older else None
    listed = _listed(client, {"client": key}) if is_ip(key) else {"messages": []}
    rows = listed["messages"][:_ROWS_MAX]
    if is_ip(key) and not refused and not rows:
        reason = f"; {client.without_daemon}" if client.without_daemon else ""
        raise CommandError(ExitCode.DATA, f"relay trace: nothing came from {key}{reason}")
    if journey is None and not refused and not rows:
        raise unknown_message("trace", key, client)
    document: dict[str, Any] = {} if journey is None else to_builtins(journey)
    if rows:
        document["messages"] = rows
    if refused:
        document["refused"] = refused

    def lines() -> list[str]:
        texts, full = log_lines(rows), listed
        option, value = "client", key
        if journey is not None:
            texts = journey_lines(journey, client.answer(journey))
            option, name, value = "message-id", "id", journey.message_id or key
            if _is_address(key):
                option, name, value = "address", "mailbox", key
            full = _listed(client, {name: value, "pages": "1"})
        more = len(full["messages"]) - (len(rows) or 1)
        if key != "last" and more > 0:
            least = "at least " if full["older"] else ""
            command = f"relay log --{option} {shlex.quote(value)}"
            texts.append(f"{least}{counted(more, 'more message')}: {command}")
        return [*texts, *map(_refusal_line, refused)]

    # `relay trace ID`: as `GET messages/{id}`; with an address also `refused`, with an IP address
    # `messages` and `refused`
    context.show(document, lines)


def _listed(client: OperatorClient, query: Mapping[str, str]) -> dict[str, Any]:
    return client.log(log_query(**query, limit=str(_ROWS_MAX + _MORE_MAX)))


def _refusal_line(refusal: Refusal) -> str:
    return f"{refusal.at[:10]} {refusal.at[11:23]}Z  {refusal.client}  {line_of(refusal)}"


def _is_address(key: str) -> bool:
    return "@" in key and not key.startswith("<")


_RECIPIENTS_MAX = 10


def diagnosis(
    journey: Journey, entries: Sequence[Mapping[str, Any]], *, ok: Collection[str] = lifecycle.FINAL
) -> list[str]:
    """Return the last step of a message, what the message waits for, and the reason for each
    recipient that is not in one of the states `ok`. `entries` are the queue entries.
    """
    of_others = (ClaimDetail, ComplaintDetail)
    steps = [step for step in journey.steps if not isinstance(step.read(), of_others)]
    last = max(steps, key=lambda step: step.step, default=None)
    lines = []
    if last is not None:
        is_scheduled = journey.state == lifecycle.SubmissionState.SCHEDULED
        what = "it " + REASONS[journey.state] if is_scheduled else WAITS_FOR[last.step]
        lines.append(f"it is at step {last.step} ({last.name}): {what}")
    if journey.state in lifecycle.BEFORE_QUEUE:
        return lines
    waiting = [recipient for recipient in journey.recipients if recipient.state not in ok]
    due = {row["address"]: entry["due"] for entry in entries for row in entry["recipients"]}
    listed = waiting[:_RECIPIENTS_MAX]
    lines += [printable(_reason(recipient, due.get(recipient.address))) for recipient in listed]
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


def _states_at_rest(text: str) -> frozenset[str]:
    """Return the states between commas. Raises ValueError."""
    states = frozenset(text.split(","))
    if not states <= lifecycle.AT_REST:
        raise ValueError(
            f"some of {', '.join(sorted(lifecycle.AT_REST))}, with commas between them"
        )
    return states


@click.command()
@click.argument("key", type=KEY, metavar="ID")
@click.option(
    "--state",
    default="there",
    show_default=True,
    type=click.Choice(["there", *_STATES]),
    metavar="STATE",
    help="The state to wait for: there (all recipients are captured or final), final, or a state "
    "of the message as a whole.",
)
@click.option(
    "--ok",
    type=Parsed("STATE,…", _states_at_rest),
    metavar="STATE,…",
    help="Exit 0 only if each recipient is in one of these, such as delivered,relayed,captured.",
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
def wait(
    context: CommandContext, key: str, *, state: str, ok: frozenset[str] | None, timeout_s: float
) -> None:
    """Wait until a message reaches a state, then show its journey.

    An unknown message is waited for as well. If the time is up, or the state can no longer come,
    exits 75 and prints the last step of the message and the reason.
    """
    if not math.isfinite(timeout_s):
        raise click.UsageError("--timeout: expected a number of seconds")
    client = operator_client(context)
    if key == "last" and client.journey(key) is None and not client.without_daemon:
        click.echo(f"relay wait: {no_mail(client)}; waiting {timeout_s:g} s", err=True)
    awaited = client.wait(key, state=state, timeout_s=timeout_s)
    if awaited is None:
        text = f"relay wait: no message appeared as {shown(key)} within {timeout_s:g} s"
        raise CommandError(ExitCode.TRY_LATER, text)
    journey = replace(awaited, reached=UNSET)
    context.show(journey, lambda: journey_lines(journey, client.answer(journey)))
    expected = "final or captured" if state == "there" else state
    if not awaited.reached and awaited.may_become(state):
        text = f"{awaited.state} after {timeout_s:g} s, expected {expected}"
    elif not awaited.reached:
        text = f"{awaited.state}: {expected} can no longer come by itself"
    elif ok and not ok.issuperset(to.state for to in awaited.recipients if not to.successors):
        text = f"{awaited.state}, expected {' or '.join(sorted(ok))}"
    else:
        return
    ok = ok or frozenset({state} if state in {*lifecycle.RecipientState} else lifecycle.FINAL)
    entries = client.entries_of(awaited.id) if awaited.id else []
    lines = [f"relay wait: {text}", *diagnosis(awaited, entries, ok=ok)]
    raise CommandError(ExitCode.TRY_LATER, "\n  ".join(lines))
