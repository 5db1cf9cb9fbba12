"""`relay log`: the messages that match, one line each, the newest first.

The rows are those of GET /relay/v1/log. That older ones may follow is said on stderr.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from relay.base.clock import SystemClock, rfc3339
from relay.base.phrases import counted
from relay.cli.options import CommandContext, Parsed, common_options, once
from relay.client import ControlError
from relay.commands.operator_client import LIST_MAX, OperatorClient
from relay.journeys.wording import named
from relay.message.lifecycle import RecipientState, SubmissionState, rule_or_milter
from relay.settings.values import parse_duration

_DAY_US = 86_400_000_000
_UNREMARKABLE = ("delivered", "relayed", "captured", "queued")
_STATES = ["final", *map(str, (*SubmissionState, *RecipientState))]
_WORDS = ("client", "login", "id", "after", "before")  # parameters that are search words
_OPTIONS = {"id": "message-id", "after": "since", "before": "until"}  # with other names than these


def _part(text: str) -> str:
    """Return the pattern of a part; a text with "*" is one of the whole."""
    return f"*{text}*" if text and "*" not in text else text


def _address(text: str) -> str:
    """Return the pattern of an address, or of its domain or another part."""
    if text.startswith("@"):
        return f"*{text}"
    return text if "@" in text or text == "<>" else _part(text)


def _time(text: str) -> str:
    """Return a time as the search has it; what is none is left for the relay to refuse."""
    now_us, days = SystemClock().time_us(), {"today": 0, "yesterday": 1}
    if text in days:
        return rfc3339(now_us - days[text] * _DAY_US)[:10]
    try:
        return rfc3339(now_us - int(parse_duration(text) * 1e6))
    except (ValueError, OverflowError):
        return text


_PART, _ADDRESS, _WHEN = Parsed("TEXT", _part), Parsed("ADDRESS", _address), Parsed("WHEN", _time)


@click.command()
@once("--address", "mailbox", metavar="ADDRESS", help="The sender or a recipient.")
@once("--from", "sender", type=_ADDRESS, help='The reverse-path, or a part; "<>" is the null one.')
@once("--to", type=_ADDRESS, help="A recipient, or a part.")
@once("--subject", type=_PART, help="A part of the Subject; ? is any character.")
@once("--client", metavar="IP|NAME", help="Who brought it: its address, or its name in EHLO.")
@once("--login", metavar="ADDRESS", help="The account that it is from, or a part.")
@once("--state", type=click.Choice(_STATES), metavar="STATE", help="Of a recipient.")
@once("--message-id", "id", metavar="ID", help="A Message-ID, or another id.")
@once("--since", "after", type=_WHEN, help="Then or later.")
@once("--until", "before", type=_WHEN, help="Before then.")
@click.option("--limit", type=click.IntRange(1, LIST_MAX), default=100, show_default=True)
@common_options
def log(context: CommandContext, *, limit: int, **given: str) -> None:
    """List messages, the newest first, with their state: also those that have left the queue.

    A message must match all conditions. A value with "*" is a pattern of the whole. WHEN is a day
    or a time (UTC), today, yesterday, or a duration such as 2h: that long ago. What SMTP sessions
    refused is no message; relay trace shows it.
    """
    client = OperatorClient(context.settings(), SystemClock())
    try:
        found = client.log(log_query(**given) | {"limit": str(limit)})
    except ControlError as error:
        raise click.UsageError(_with_option(str(error))) from None
    rows, older = found["messages"], found["older"]
    context.show(rows, lambda: log_lines(rows))
    if older:
        text = f"{counted(len(rows), 'message')} back to {older}; older ones: --until {older}"
        click.echo(f"relay log: {text}", err=True)
    elif not rows:
        click.echo("relay log: no message matches", err=True)


def log_lines(rows: Sequence[Mapping[str, Any]], *, width: int = 0) -> list[str]:
    """Return a line for each row of the log: when, id, state in at least `width` columns, who to
    whom, Subject, and why.
    """
    width = max((width, *(len(row["state"]) for row in rows)))
    return [_line(row, width) for row in rows]


def _line(row: Mapping[str, Any], width: int) -> str:
    to = [
        one["address"] + (f" ({one['state']})" if one["state"] != row["state"] else "")
        for one in row["recipients"]
    ]
    name = row["id"] or row["submission_id"]
    who = f"{row['sender'] or '<>'} -> {named(to, row['recipient_count'])}"
    for one in row.get("added", ()):
        by = rule_or_milter(one["added_by"])
        who += f", {one['address']} ({one['state']}, added by {by})"
    line = f'{_moment(row["at"])}  {name}  {row["state"]:<{width}}  {who}  "{row["subject"]}"'
    if row["next_attempt"]:
        line += f"  next attempt {_moment(row['next_attempt'])}"
    return line if row["state"] in _UNREMARKABLE else f"{line}  {row['reply']}".rstrip()


def _moment(at: str) -> str:
    return f"{at[:10]} {at[11:19]}Z"


def log_query(**given: str) -> dict[str, str]:
    """Return the query of GET /log for its parameters and the words of its `q`."""
    words = [f"{one}:{'?'.join(given[one].split())}" for one in _WORDS if given.get(one)]
    rest = {name: value for name, value in given.items() if value and name not in _WORDS}
    return rest | {"q": " ".join(words)}


def _with_option(text: str) -> str:
    """Replace a search word in a sentence of the relay by its option."""
    word, colon, rest = text.removeprefix("q: ").partition(":")
    return f"--{_OPTIONS.get(word, word)}{colon}{rest}"
