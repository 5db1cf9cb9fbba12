"""`relay queue`: list the queue, and the commands that change it.

Commands that change entries need a selector. Exits 65 for an unknown message, 69 if another
process owns the spool, 75 if all selected entries are in flight, 130 for Ctrl-C.
"""

from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import click
import msgspec

from relay.cli.errors import INTERRUPTED, CommandError, ExitCode
from relay.cli.options import (
    KEY,
    CommandContext,
    common_options,
    older_than_s,
    unknown_message,
    user_name,
)
from relay.cli.output import (
    before_queue_lines,
    entry_lines,
    flush,
    journey_lines,
    print_json,
    print_lines,
    stats_lines,
)
from relay.client import ControlError
from relay.clock import SystemClock
from relay.commands.operator_client import LIST_MAX, CommandInterruptedError, OperatorClient
from relay.journeys.wording import changed_line, named
from relay.phrases import counted, shown
from relay.spool.types import Selector

F = TypeVar("F", bound=Callable[..., Any])
_STATES = ["queued", "deferred", "held", "captured"]
_CHARACTERS_MAX = 1000
_OPTIONS = ("reason", "text", "to", "until")  # checked by the relay only


def _once(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> str:
    """Reject an empty condition, which would select everything, and a repeated one."""
    if len(values) > 1:
        raise click.BadParameter("is given twice")
    if values and not 0 < len(values[0]) <= _CHARACTERS_MAX:
        raise click.BadParameter(f"found {len(values[0])} letters, expected 1 to {_CHARACTERS_MAX}")
    return values[0] if values else ""


once = partial(click.option, multiple=True, callback=_once)


def selectors(command: F) -> F:
    """Add the selectors of docs/names.md to a command."""
    return _with(
        command,
        click.argument("ids", nargs=-1, metavar="[ID]..."),
        once("--sender", metavar="GLOB", help='Such as "*@example.org".'),
        once("--recipient", metavar="GLOB", help="One of the recipients."),
        once("--domain", metavar="GLOB", help="The domain of a recipient."),
        once("--next-hop", metavar="GLOB", help="As the list shows it."),
        once("--state", type=click.Choice(_STATES)),
        once("--older-than", metavar="DURATION", help='Such as "2h".'),
        click.option("--restored", is_flag=True, help="What relay restore holds."),
        click.option("--all", "everything", is_flag=True, help="Every entry."),
    )


def changing(command: F) -> F:
    """Add selectors, --dry-run and --reason to a command."""
    return _with(
        command,
        selectors,
        click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing."),
        click.option(
            "--reason", default="", metavar="TEXT", help="The reason, recorded in the journey."
        ),
    )


def _with(command: F, *decorators: Callable[[F], F]) -> F:
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def _selector(conditions: dict[str, Any]) -> Selector:
    return Selector(
        ids=tuple(conditions.pop("ids")),
        state=conditions.pop("state"),
        older_than_s=older_than_s(conditions.pop("older_than")),
        restored=conditions.pop("restored"),
        all=conditions.pop("everything"),
        **{name: conditions.pop(name) for name in ("sender", "recipient", "domain", "next_hop")},
    )


@click.group()
@common_options
def queue(_given: CommandContext) -> None:
    """List the queue and change it.

    An ID is the id of an entry or message as in the list, a Graph id, a submission id or a
    Message-ID. In a GLOB, * matches any characters and ? matches one.
    """


@queue.command("list")
@selectors
@common_options
def list_(context: CommandContext, **conditions: Any) -> None:
    """List the entries of the queue, oldest first.

    An entry must match all conditions given; without any, all entries are listed.
    """
    entries = _client(context).queue_list(_selector(conditions))
    context.show(entries, lambda: [*entry_lines(entries), *before_queue_lines(entries)])
    _say_if_cut(entries)
    _refuse_unknown("list", entries.unknown)


@queue.command()
@click.argument("key", type=KEY, metavar="ID")
@common_options
def show(context: CommandContext, key: str) -> None:
    """Show one message: its journey and its queue entries."""
    client = _client(context)
    found = client.journey(key)
    if found is None:
        raise unknown_message("queue show", key, without_daemon=client.without_daemon)
    entries = client.queue_list(Selector(ids=(found.id,))) if found.id else []
    context.show(
        msgspec.to_builtins(found) | {"entries": entries},
        lambda: [*journey_lines(found, client.answer(found)), "", *entry_lines(entries)],
    )


@queue.command()
@common_options
def stats(context: CommandContext) -> None:
    """Count the queue: by state, by priority, by next hop.

    The nodes that share a PostgreSQL spool are listed too.
    """
    clock = SystemClock()
    found = OperatorClient(context.settings(), clock).stats()
    context.show(found, lambda: stats_lines(found, now_us=clock.time_us()))


@click.command(hidden=True, context_settings={"ignore_unknown_options": True})
@click.argument("_words", nargs=-1, type=click.UNPROCESSED)
def nodes(_words: Sequence[str]) -> None:
    """Say where the nodes of a spool are listed."""
    text = "relay nodes: `relay queue stats` lists the nodes of a PostgreSQL spool"
    raise CommandError(ExitCode.UNAVAILABLE, text)


@queue.command()
@changing
@common_options
def retry(context: CommandContext, **conditions: Any) -> None:
    """Retry deferred mail now, even for unreachable hosts."""
    _change(context, "retry", conditions)


@queue.command()
@changing
@once("--until", metavar="TIME|DURATION", help="When the hold ends automatically.")
@common_options
def hold(context: CommandContext, *, until: str, **conditions: Any) -> None:
    """Suspend delivery of mail until it is released, or expires.

    Held mail expires as if it were not held. An example of a TIME is 2027-01-31T09:00:00Z.
    """
    _change(context, "hold", conditions, until=until)


@queue.command()
@changing
@click.option("--as-before", is_flag=True, help="Restore the due time from before the hold.")
@common_options
def release(context: CommandContext, *, as_before: bool, **conditions: Any) -> None:
    """Release held mail and deliver it now.

    With --restored alone, the submissions and scheduled sends that relay restore holds as well;
    what was held before the backup stays held. With --as-before, each entry gets the state and due
    time from before the hold.
    """
    _change(context, "release", conditions, as_before=as_before)


@queue.command()
@changing
@click.option("--bounce", is_flag=True, help="Report the failure to the sender.")
@once("--text", help="What the report says to the sender.")
@common_options
def cancel(context: CommandContext, *, bounce: bool, text: str, **conditions: Any) -> None:
    """Remove mail from the queue.

    The sender gets a report only with --bounce, if it may get one. This cannot be undone; in doubt,
    use hold.
    """
    _change(context, "cancel", conditions, bounce=bounce, text=text)


@queue.command()
@changing
@click.option("--to", required=True, metavar="NEXT-HOP", help="The new next hop.")
@common_options
def reroute(context: CommandContext, *, to: str, **conditions: Any) -> None:
    """Change the next hop of mail, and deliver it now.

    Captured mail can be rerouted as well.

    NEXT-HOP is smtp://HOST:PORT, smtps://HOST:PORT, lmtp://HOST:PORT, lmtp:unix:PATH, mx:DOMAIN,
    "mx" for each recipient's own domain, "local", or "default" for the current routes. Held mail
    stays held.
    """
    _change(context, "reroute", conditions, to=to)


def _change(
    context: CommandContext, operation: str, conditions: dict[str, Any], **more: Any
) -> None:
    selector = _selector(conditions)
    if selector == Selector():
        raise click.UsageError("expected a selector: ID, a condition, or --all")
    more |= conditions | {"who": user_name()}
    try:
        answer = _client(context).change(operation, selector, **more)
    except ControlError as error:
        if error.status == HTTPStatus.BAD_REQUEST:  # an option that only the relay checks
            raise click.UsageError(_with_option(str(error))) from None
        raise
    except CommandInterruptedError as error:
        so_far = "a dry run changes nothing" if more["dry_run"] else _so_far(error.done)
        raise CommandError(INTERRUPTED, f"relay queue {operation}: interrupted: {so_far}") from None
    line = changed_line(operation, answer)
    if context.json:
        print_json(answer["entries"])
        click.echo(f"relay queue {operation}: {line}", err=True)
    else:
        print_lines([*entry_lines(answer["entries"])[:-1], line])
    _say_if_cut(answer["entries"])
    _refuse_unknown(operation, answer["unknown"])
    may_wait = operation == "retry" or answer["dry_run"]
    if answer["in_flight"] and not answer["done"] and not may_wait:
        flush()
        text = f"relay queue {operation}: all selected entries are in flight{{}}; try again later"
        nodes = answer.get("in_flight_at", {})
        at = f" at {named(list(nodes))}" if sum(nodes.values()) == answer["in_flight"] else ""
        raise CommandError(ExitCode.TRY_LATER, text.format(at))


def _with_option(text: str) -> str:
    """Replace a field name of the body by the name of its option."""
    field, colon, rest = text.partition(":")
    return f"--{field}{colon}{rest}" if field in _OPTIONS else text


def _so_far(done: int | None) -> str:
    if done is None:
        return "entries changed before it stay changed; see `relay queue list`"
    return f"{counted(done, 'entry')} changed, the others unchanged"


def _refuse_unknown(verb: str, unknown: Sequence[str]) -> None:
    """Exit with an error for selector ids that match nothing, after all other output."""
    if unknown:
        flush()
        names = ", ".join(shown(name) for name in unknown)
        raise CommandError(ExitCode.DATA, f"relay queue {verb}: not in the queue: {names}")


def _client(context: CommandContext) -> OperatorClient:
    return OperatorClient(context.settings(), SystemClock())


def _say_if_cut(entries: list[dict[str, Any]]) -> None:
    if len(entries) >= LIST_MAX:
        click.echo(f"relay queue: only the first {LIST_MAX} are shown; add a condition", err=True)
