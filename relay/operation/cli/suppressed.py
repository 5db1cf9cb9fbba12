"""`relay suppressed`: the list of dead addresses, to which the running relay accepts no mail.

Exits 64 for `add` and `remove` where the configuration has no [suppression]; 65 for an address that
is none, or of an own domain, or not on the list, and for more addresses than the list may have; 69
without a running relay.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from relay.base.message.address import own_mailbox
from relay.base.phrases import counted, table_lines
from relay.base.running_relay import ControlClient, ControlError
from relay.base.settings.values import parse_domain, parse_duration
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.option_types import Parsed
from relay.operation.cli.options import CommandContext, common_options, once
from relay.operation.cli.relay_client import valid_settings
from relay.store.spool.shared.suppression import LISTED_MAX, RELAY

_ANSWER_S_MAX = 120.0
_AT_ONCE = 3000  # addresses of a request, whose body has at most 1 MiB
_INPUT_BYTES_MAX = 64 << 20
_OFF = 409
_DOMAIN, _DURATION = Parsed("DOMAIN", parse_domain), Parsed("DURATION", parse_duration)


@click.group()
@common_options
def suppressed(_given: CommandContext) -> None:
    """List dead addresses; add and remove some."""


@suppressed.command(name="list")
@once("--domain", type=_DOMAIN, help="Addresses in this domain.")
@click.option("--since", type=_DURATION, help="On the list for at most this time.")
@common_options
def list_suppressed(context: CommandContext, *, domain: str | None, since: float | None) -> None:
    """List the addresses, and why each is there."""
    query = {"domain": domain} if domain else {}
    answer = _client(context).get("/suppressed", query | ({"since": f"{since}"} if since else {}))
    head = ["ADDRESS", "SINCE", "COUNT", "BY", "WHY"]
    lines = table_lines([head, *map(_cells, answer["suppressed"])])
    off = ["off: relay.toml has no [suppression]"]
    # `relay suppressed list`: as `GET suppressed`; `add`: `{added}`; `remove`: `{}`
    context.show(answer, lambda: off if answer.get("off") else lines)


@suppressed.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--reason", default="", help="Why, for the list and the log.")
@common_options
def add(context: CommandContext, *, addresses: tuple[str, ...], reason: str) -> None:
    """Add addresses, until they are removed: mail to them fails when it is accepted.

    "-" reads addresses from standard input, one a line.
    """
    names = _lines() if addresses == ("-",) else list(addresses)
    added = 0
    with _changing(context) as client:
        if len(names) > _AT_ONCE:
            _check_room(client, names)
        for start in range(0, len(names), _AT_ONCE):
            body = {"addresses": names[start : start + _AT_ONCE], "reason": reason}
            added += client.post("/suppressed", body)["added"]
    text = f"{counted(added, 'address')} added"
    context.show({"added": added}, lambda: [text])


@suppressed.command()
@click.argument("address")
@common_options
def remove(context: CommandContext, *, address: str) -> None:
    """Remove an address: mail to it is sent again."""
    with _changing(context) as client:
        answer = client.delete("/suppressed", {"address": address})
    context.show(answer, lambda: [f"{address} removed"])


def _cells(row: Mapping[str, Any]) -> list[str]:
    why = row["reason"] or row["reply"]
    return [row["address"], row["since"][:10], str(row["count"]), row["by"], why]


def _client(context: CommandContext) -> ControlClient:
    return ControlClient(valid_settings(context)[0].control_socket, timeout_s=_ANSWER_S_MAX)


@contextmanager
def _changing(context: CommandContext) -> Iterator[ControlClient]:
    try:
        yield _client(context)
    except ControlError as error:
        if error.status != _OFF:
            raise
        raise CommandError(ExitCode.USAGE, f"relay suppressed: {error}") from None


def _check_room(client: ControlClient, names: Sequence[str]) -> None:
    """Raise CommandError (65) if several requests would add more than the list may have."""
    rows = client.get("/suppressed")["suppressed"]
    known = {row["address"] for row in rows if row["by"] != RELAY}
    if len(known.union(map(own_mailbox, names))) > LISTED_MAX:
        text = f"nothing was added: the list has at most {LISTED_MAX:,} addresses"
        raise CommandError(ExitCode.DATA, f"relay suppressed: {text}")


def _lines() -> list[str]:
    try:
        text = sys.stdin.buffer.read(_INPUT_BYTES_MAX).decode()
    except UnicodeDecodeError as error:
        raise CommandError(ExitCode.DATA, f"relay suppressed: standard input: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
