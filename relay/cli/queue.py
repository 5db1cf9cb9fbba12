"""`relay queue list | show | retry`: what is not delivered yet.

On the path: prints what app.reading finds.
Holds: facts on stdout, everything else on stderr.
Fails: 65 for an unknown message, 69 where another process is in the way.
Standards: docs/names.md (Commands).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from relay.app.reading import LIST_MAX, Reading
from relay.cli.context import Given, Key, common_options, group_options, user_name
from relay.cli.exits import Ended, Exit
from relay.cli.output import print_json, print_lines
from relay.cli.show import entry_lines, journey_lines
from relay.clock import SystemClock
from relay.settings.faults import shown
from relay.settings.values import parse_duration
from relay.spool.types import Selector

F = TypeVar("F", bound=Callable[..., Any])
_STATES = ["queued", "deferred", "captured"]


def selectors(command: F) -> F:
    """Give a command the selectors of docs/names.md."""
    options = (
        click.argument("ids", nargs=-1, metavar="[ID]..."),
        click.option("--sender", default="", metavar="GLOB", help='Such as "*@example.org".'),
        click.option("--recipient", default="", metavar="GLOB", help="One of the recipients."),
        click.option("--domain", default="", metavar="GLOB", help="The domain of a recipient."),
        click.option("--next-hop", default="", metavar="GLOB", help="As the list shows it."),
        click.option("--state", default=None, type=click.Choice(_STATES)),
        click.option("--older-than", default="", metavar="DURATION", help='Such as "2h".'),
        click.option("--all", "everything", is_flag=True, help="Every entry."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _selector(conditions: dict[str, Any]) -> Selector:
    older_than = conditions.pop("older_than")
    try:
        older_than_s = parse_duration(older_than) if older_than else None
    except ValueError as error:
        raise click.UsageError(f"--older-than: {error}") from None
    everything = conditions.pop("everything")
    ids = tuple(conditions.pop("ids"))
    conditions["state"] = conditions["state"] or ""
    return Selector(ids=ids, older_than_s=older_than_s, all=everything, **conditions)


@click.group()
@group_options
def queue(_given: Given) -> None:
    """Look at the queue and act on it."""


@queue.command("list")
@selectors
@common_options
def list_(given: Given, **conditions: Any) -> None:
    """List what is not delivered yet, oldest first.

    All conditions that are given must hold; without any, everything is listed.
    """
    entries = _reading(given).queue_list(_selector(conditions))
    _print_entries(given, entries)


@queue.command()
@click.argument("key", type=Key(), metavar="ID")
@common_options
def show(given: Given, key: str) -> None:
    """Show one message: its journey and its entries in the queue."""
    reading = _reading(given)
    found = reading.journey(key)
    if found is None:
        raise Ended(Exit.DATA, f"relay queue show: no message is known as {shown(key)}")
    entries = reading.queue_list(Selector(ids=(found["id"],))) if found["id"] else []
    if given.json:
        print_json({**found, "entries": entries})
    else:
        print_lines([*journey_lines(found), "", *entry_lines(entries)])


@queue.command()
@selectors
@click.option("--dry-run", is_flag=True, help="Only say what would be tried.")
@common_options
def retry(given: Given, *, dry_run: bool, **conditions: Any) -> None:
    """Try deferred mail now, and list what is tried."""
    selector = _selector(conditions)
    if selector == Selector():
        raise click.UsageError("say which: ID, a condition, or --all")
    entries = _reading(given).retry(selector, who=user_name(), dry_run=dry_run)
    _print_entries(given, entries)
    if selector.ids and not entries:
        wanted = ", ".join(selector.ids)
        raise Ended(Exit.DATA, f"relay queue retry: nothing that is deferred is known as {wanted}")


def _reading(given: Given) -> Reading:
    return Reading(given.settings(), SystemClock())


def _print_entries(given: Given, entries: list[dict[str, Any]]) -> None:
    if given.json:
        print_json(entries)
    else:
        print_lines(entry_lines(entries))
    if len(entries) >= LIST_MAX:
        click.echo(f"relay queue: only the first {LIST_MAX} are shown; name a condition", err=True)
