"""Verbs that give the running relay one order each: reload, webhook, clock, reset.

`relay reload` exits 78 with the faults if nothing was reloaded, or not the rules of a tenant.
`relay webhook` exits 65 for an unknown URL, and 69 if no receiver took the test. `relay clock`
exits 69 for a service, whose clock cannot be advanced, and 75 if the clock was not advanced as far
as requested. `relay reset` exits 64 for a service, which it never empties. All exit 69 if no relay
runs.
"""

from pathlib import Path
from typing import Any

import click

from relay.base.phrases import counted, shown
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import CommandContext, common_options, once
from relay.running_relay import ControlClient, ControlError
from relay.settings.document import SettingsError, parse_document, read_text
from relay.settings.environment import read_environment
from relay.settings.reader import DocumentReader
from relay.settings.tree import Settings
from relay.settings.values import parse_duration

_RELOAD_S_MAX = 120.0  # systemd sets no limit where the start has none
_TEST_S_MAX = 30.0
_LONG_S_MAX = 3600.0  # of an advance of the clock, and of a reset
_NOT_FOUND, _NOT_ALLOWED = 404, 405


@click.command()
@common_options
def reload(context: CommandContext) -> None:
    """Have the running service read its configuration again, and wait for the outcome.

    Keys of relay.toml that need a restart are printed. If a file has a fault, nothing is reloaded,
    the previous configuration stays active, and the faults are printed: exit 78. If the rules of a
    tenant have one, all else is reloaded, and its rules in force stay: exit 78 too. Without a
    running service: exit 69.
    """
    client = ControlClient(control_socket(context), timeout_s=_RELOAD_S_MAX)
    result = client.post("/reload", {})
    context.show(result, lambda: _lines(result))
    if faults := result["faults"]:
        kept = "relay reload: nothing was reloaded: the previous configuration stays active"
        if result["reloaded"]:
            kept = "relay reload: reloaded, but not the rules of tenants that have these faults"
        raise CommandError(ExitCode.CONFIGURATION, "\n".join([*faults, kept]))


def control_socket(context: CommandContext) -> Path:
    """Return the socket of the service. Of a faulty relay.toml only `state_dir` is read, which
    comes before the first table: the service says itself what is wrong with the rest.
    """
    try:
        return context.settings().control_socket
    except SettingsError:
        file = context.found_config_file()
        top = parse_document(file, read_text(file).partition("\n[")[0])
        base, environ = file.absolute().parent, read_environment().variables
        found = DocumentReader(top, base=base, environ=environ).fields(Settings, top.table, ())
        if "state_dir" not in found:
            raise
        return Settings(hostname="", state_dir=found["state_dir"]).control_socket


def _lines(result: dict[str, Any]) -> list[str]:
    renewed = counted(result["new_certificates"], "new certificate")
    done = f"reloaded: {counted(result['rules'], 'rule')}, {renewed}"
    lines = [done] if result["reloaded"] else []
    for one in result["needs_restart"]:
        lines += [f"needs a restart: {one['key']}: {one['old']} -> {one['new']}"]
    return lines


@click.group()
@common_options
def webhook(_given: CommandContext) -> None:
    """Show and try webhooks, and send events again."""


@webhook.command(name="list")
@common_options
def list_webhooks(context: CommandContext) -> None:
    """List them, with the cursor of each and its failure."""
    _show_webhooks(context, _client(context).get("/webhooks"))


@webhook.command()
@click.argument("url", required=False, default="")
@common_options
def test(context: CommandContext, *, url: str) -> None:
    """Post a signed event named "test".

    It goes to URL, or to all. Exits 69 if one does not take it.
    """
    found = _client(context).post("/webhooks/test", {"url": url})
    context.show(
        found,
        lambda: [
            f"{one['url']}  {one['failure'] or 'answered ' + str(one['status'])}"
            for one in found["webhooks"]
        ],
    )
    if any(one["failure"] for one in found["webhooks"]):
        raise CommandError(ExitCode.UNAVAILABLE)


@webhook.command()
@click.argument("url", required=False, default="")
@once("--from", "start", metavar="CURSOR", required=True, help="The `cursor` of an event; 0: all.")
@common_options
def replay(context: CommandContext, *, url: str, start: str) -> None:
    """Send the events after a cursor again.

    They go to URL, or to all. Each event has the webhook-id that it had before. A cursor is in
    each event, in `relay webhook list`, and in the answers of GET /relay/v1/events.
    """
    _show_webhooks(context, _client(context).post("/webhooks/replay", {"url": url, "from": start}))


def _client(context: CommandContext, timeout_s: float = _TEST_S_MAX) -> ControlClient:
    return ControlClient(context.settings().control_socket, timeout_s=timeout_s)


def _show_webhooks(context: CommandContext, found: dict[str, Any]) -> None:
    context.show(
        found, lambda: [_webhook_line(one) for one in found["webhooks"]] or ["no webhooks"]
    )


def _webhook_line(one: dict[str, Any]) -> str:
    wanted = ",".join(one["events"])
    down = f"  down since {one['failing_since']}: {one['failure']}" if one["failure"] else ""
    return f"{one['url']}  {wanted}  {one['cursor']}{down}"


@click.group()
@common_options
def clock(_given: CommandContext) -> None:
    """Show and advance the clock of the development relay."""


@clock.command()
@common_options
def show(context: CommandContext) -> None:
    """Show the time of the relay, and how far it is ahead."""
    _show_clock(context, 0.0)


@clock.command()
@click.argument("duration")
@common_options
def advance(context: CommandContext, duration: str) -> None:
    """Advance the clock by DURATION, such as 90s, 30m, 4h or 2d.

    The relay does everything that is due on the way, each at its time, and the command ends when it
    is done. The clock never goes back; all advances together are at most 400 days.
    """
    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise click.UsageError(f"DURATION: found {shown(duration)}, expected {error}") from None
    if not seconds:
        raise click.UsageError(f"DURATION: found {shown(duration)}, expected more than 0")
    _show_clock(context, seconds)


def _show_clock(context: CommandContext, advance_s: float) -> None:
    path = "/dev/clock"
    client = _client(context, _LONG_S_MAX if advance_s else _TEST_S_MAX)
    try:
        found = client.post(path, {"advance_s": advance_s}) if advance_s else client.get(path)
    except ControlError as error:
        if error.status == _NOT_FOUND:
            text = "relay clock: the relay is a service; only the clock of `relay dev` advances"
            raise CommandError(ExitCode.UNAVAILABLE, text) from None
        raise
    line = f"{found['now']}  advanced by {found['advanced_s']:.15g} seconds"
    context.show(found, lambda: [line])


@click.command()
@common_options
def reset(context: CommandContext) -> None:
    """Delete everything that the development relay has stored.

    Queue, mailboxes, drafts, scheduled sends, histories and the accounts that were made. It does
    not ask. The relay goes on. A service is never emptied.
    """
    try:
        deleted = _client(context, _LONG_S_MAX).delete("/messages")
    except ControlError as error:
        if error.status in (_NOT_FOUND, _NOT_ALLOWED):
            text = "relay reset: this relay is a service; only `relay dev` can be emptied"
            raise CommandError(ExitCode.USAGE, text) from None
        raise
    context.show(deleted, lambda: [f"deleted {counted(deleted['messages'], 'message')}"])
