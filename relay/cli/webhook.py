"""`relay webhook list`, `test` and `replay`: the webhooks of the running relay.

They exit 69 if no relay runs, or no receiver took the test; 65 for an unknown URL.
"""

from typing import Any

import click

from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import CommandContext, common_options, once
from relay.client import ControlClient

_TEST_S_MAX = 30.0


@click.group()
@common_options
def webhook(_given: CommandContext) -> None:
    """Show and try webhooks, and send events again."""


@webhook.command(name="list")
@common_options
def list_webhooks(context: CommandContext) -> None:
    """List them, with the cursor of each and its failure."""
    _show(context, _client(context).get("/webhooks"))


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
    _show(context, _client(context).post("/webhooks/replay", {"url": url, "from": start}))


def _client(context: CommandContext) -> ControlClient:
    return ControlClient(context.settings().control_socket, timeout_s=_TEST_S_MAX)


def _show(context: CommandContext, found: dict[str, Any]) -> None:
    context.show(found, lambda: [_line(one) for one in found["webhooks"]] or ["no webhooks"])


def _line(one: dict[str, Any]) -> str:
    wanted = ",".join(one["events"])
    down = f"  down since {one['failing_since']}: {one['failure']}" if one["failure"] else ""
    return f"{one['url']}  {wanted}  {one['cursor']}{down}"
