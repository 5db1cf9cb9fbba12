"""Verbs that give the running relay one order each: reload, ready, webhook.

`relay reload` exits 78 with the faults if nothing was reloaded, or not the rules of a tenant.
`relay webhook` exits 65 for an unknown URL, and 69 if no receiver took the test. Both exit 69 if no
relay runs.
"""

from typing import Any

import click

from relay.base.phrases import counted
from relay.base.running_relay import ControlClient
from relay.base.settings.document import SettingsError
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.options import CommandContext, common_options, once, relay_options
from relay.operation.cli.relay_client import valid_settings

_RELOAD_S_MAX = 120.0  # systemd sets no limit where the start has none
_TEST_S_MAX = 30.0
_READY_S_MAX = 5.0  # a container's health check has not more


@click.command()
@relay_options
def reload(context: CommandContext) -> None:
    """Have the running service read its configuration again, and wait for the outcome.

    Keys of relay.toml that need a restart are printed. If a file has a fault, nothing is reloaded
    but rights that accounts have lost, and the faults are printed: exit 78. If the rules of a
    tenant have one, all else is reloaded, and its rules in force stay: exit 78 too. Without a
    running service: exit 69.
    """
    try:
        socket = valid_settings(context, is_quiet=True)[0].control_socket
    except SettingsError as error:
        unasked = "relay reload: no relay was asked: add --state-dir DIR"
        raise CommandError(ExitCode.CONFIGURATION, f"{error}\n{unasked}") from None
    client = ControlClient(socket, timeout_s=_RELOAD_S_MAX)
    result = client.post("/reload", {})
    # `relay reload`: as `POST reload`
    context.show(result, lambda: _lines(result))
    if faults := result["faults"]:
        kept = "relay reload: nothing was reloaded: the previous configuration stays active"
        if result["reloaded"]:
            kept = "relay reload: reloaded, but not the rules of tenants that have these faults"
        if lost := result.get("lost"):
            kept += f", but for rights that accounts have lost: {', '.join(lost)}"
        raise CommandError(ExitCode.CONFIGURATION, "\n".join([*faults, kept]))


def _lines(result: dict[str, Any]) -> list[str]:
    renewed = counted(result["new_certificates"], "new certificate")
    done = f"reloaded: {counted(result['rules'], 'rule')}, {renewed}"
    lines = [done] if result["reloaded"] else []
    return [*lines, *(f"needs a restart: {key['key']}" for key in result["needs_restart"])]


@click.command()
@relay_options
def ready(context: CommandContext) -> None:
    """Exit 0 if the running relay is ready, wherever it listens.

    Prints what GET /readyz answers. If it is not ready: exit 75. If none runs: exit 69.
    """
    socket = valid_settings(context, is_quiet=True)[0].control_socket
    text = ControlClient(socket, timeout_s=_READY_S_MAX).ready()
    # `relay ready`: `{ready}`, the text of `/readyz`; 69: none runs, 75: not ready
    context.show({"ready": text}, lambda: [text])


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
    answer = _client(context).post("/webhooks/test", {"url": url})
    lines = [
        f"{hook['url']}  {hook['failure'] or 'answered ' + str(hook['status'])}"
        for hook in answer["webhooks"]
    ]
    # `relay webhook test`: `{webhooks: [{url, status, failure}]}`; 69: a webhook fails
    context.show(answer, lambda: lines)
    if any(hook["failure"] for hook in answer["webhooks"]):
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


def _client(context: CommandContext) -> ControlClient:
    return ControlClient(valid_settings(context)[0].control_socket, timeout_s=_TEST_S_MAX)


def _show_webhooks(context: CommandContext, answer: dict[str, Any]) -> None:
    # `relay webhook list`, `replay`: `{webhooks: [{url, events, accounts, cursor, failure,
    # failing_since}]}`
    context.show(
        answer, lambda: [_webhook_line(hook) for hook in answer["webhooks"]] or ["no webhooks"]
    )


def _webhook_line(hook: dict[str, Any]) -> str:
    events = ",".join(hook["events"])
    down = f"  down since {hook['failing_since']}: {hook['failure']}" if hook["failure"] else ""
    return f"{hook['url']}  {events}  {hook['cursor']}{down}"
