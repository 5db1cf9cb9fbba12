"""`relay queue list | show | retry`: what is not delivered yet.

On the path: prints what app.reading finds.
Holds: facts on stdout, everything else on stderr.
Fails: 65 for an unknown message, 69 where another process is in the way.
Standards: CONTRACT, "Commands".
"""

import getpass
from collections.abc import Callable
from typing import Any, TypeVar

import click

from relay.cli.context import Given, common_options, print_json
from relay.cli.exits import Ended, Exit
from relay.cli.show import entry_lines, journey_lines
from relay.settings.values import parse_duration
from relay.spool.types import Selector

F = TypeVar("F", bound=Callable[..., Any])


def selectors(command: F) -> F:
    """Give a command CONTRACT's selectors."""
    options = (
        click.argument("ids", nargs=-1, metavar="[ID]..."),
        click.option("--sender", default="", metavar="GLOB"),
        click.option("--recipient", default="", metavar="GLOB"),
        click.option("--domain", default="", metavar="GLOB", help="Of a recipient."),
        click.option("--next-hop", default="", metavar="GLOB"),
        click.option("--state", default="",
                     type=click.Choice(["", "queued", "deferred", "captured"])),
        click.option("--older-than", default="", metavar="DURATION", help='Such as "2h".'),
        click.option("--all", "everything", is_flag=True, help="Every entry."),
    )  # fmt: skip
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
    return Selector(ids=ids, older_than_s=older_than_s, all=everything, **conditions)


@click.group()
def queue() -> None:
    """Look at the queue and act on it."""


@queue.command("list")
@selectors
@common_options
def list_(given: Given, **conditions: Any) -> None:
    """List what is not delivered yet, oldest first."""
    entries = given.reading().queue_list(_selector(conditions))
    _print_entries(given, entries)


@queue.command()
@click.argument("key", metavar="ID")
@common_options
def show(given: Given, key: str) -> None:
    """Show one message: its entries in the queue and its journey."""
    reading = given.reading()
    found = reading.journey(key)
    if found is None:
        raise Ended(Exit.DATA, f"relay queue show: no message is known as {key!r}")
    ids = (found["id"],) if found["id"] else ()
    entries = reading.queue_list(Selector(ids=ids)) if ids else []
    if given.json:
        print_json({**found, "entries": entries})
        return
    for line in (*journey_lines(found), *entry_lines(entries)):
        click.echo(line)


@queue.command()
@selectors
@click.option("--dry-run", is_flag=True, help="Only say what would be tried.")
@common_options
def retry(given: Given, *, dry_run: bool, **conditions: Any) -> None:
    """Try deferred mail now."""
    selector = _selector(conditions)
    if selector == Selector():
        raise click.UsageError("say which: ID, a condition, or --all")
    entries = given.reading().retry(selector, who=getpass.getuser(), dry_run=dry_run)
    _print_entries(given, entries)


def _print_entries(given: Given, entries: list[dict[str, Any]]) -> None:
    if given.json:
        print_json(entries)
        return
    for line in entry_lines(entries):
        click.echo(line)
