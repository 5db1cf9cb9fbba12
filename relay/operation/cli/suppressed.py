"""`relay suppressed`: the list of dead addresses, to which the running relay accepts no mail.

Exits 64 for `add` where the configuration has no [suppression]; 65 for an address that is none, or
of an own domain, or not on the list, and for more addresses than the list may have; 69 without a
running relay.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import click

from relay.base.phrases import counted, shown, table_lines
from relay.base.running_relay import ControlClient, ControlError
from relay.base.settings.values import parse_domain, parse_duration
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.option_types import Parsed
from relay.operation.cli.options import CommandContext, common_options, once
from relay.operation.cli.relay_client import valid_settings

_ANSWER_S_MAX = 120.0
_INPUT_BYTES_MAX = 25_600_000  # 100,000 addresses of 254 octets, one a line
_OFF = 409
_INPUT = "standard input"
_PLACE = re.compile(r"addresses\[(\d+)\]")  # in an error of POST suppressed
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
    off = ["off: the configuration has no [suppression]"]
    # `relay suppressed list`: as `GET suppressed`; `add`: `{added}`; `remove`: `{}`
    context.show(answer, lambda: off if answer.get("off") else lines)


@suppressed.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--reason", default="", help="Why, for the list and the log.")
@common_options
def add(context: CommandContext, *, addresses: tuple[str, ...], reason: str) -> None:
    """Add addresses: later mail to them fails.

    Each stays until it is removed. Mail fails when it is accepted.

    "-" alone reads addresses from standard input, one a line.
    """
    named = _lines() if addresses == ("-",) else [(shown(name), name) for name in addresses]
    names = [name for _, name in named]
    try:
        answer = _client(context).post("/suppressed", {"addresses": names, "reason": reason})
    except ControlError as error:
        if error.status == _OFF:
            raise CommandError(ExitCode.USAGE, f"relay suppressed: {error}") from None
        text = _PLACE.sub(lambda match: named[int(match[1])][0], str(error), count=1)
        raise ControlError(error.status, error.code, text) from None
    context.show(answer, lambda: [f"{counted(answer['added'], 'address')} added"])


@suppressed.command()
@click.argument("address")
@common_options
def remove(context: CommandContext, *, address: str) -> None:
    """Remove an address: mail to it is sent again."""
    answer = _client(context).delete("/suppressed", {"address": address})
    context.show(answer, lambda: [f"{address} removed"])


def _cells(row: Mapping[str, Any]) -> list[str]:
    why = row["reason"] or row["reply"]
    return [row["address"], row["since"][:10], str(row["count"]), row["by"], why]


def _client(context: CommandContext) -> ControlClient:
    return ControlClient(valid_settings(context)[0].control_socket, timeout_s=_ANSWER_S_MAX)


def _lines() -> list[tuple[str, str]]:
    """Return the lines of standard input that are not empty, each with its place."""
    octets = sys.stdin.buffer.read(_INPUT_BYTES_MAX + 1)
    place, fault = _INPUT, f"found more than {_INPUT_BYTES_MAX:,} bytes, expected fewer"
    if len(octets) <= _INPUT_BYTES_MAX:
        try:
            lines = map(str.strip, octets.decode("utf-8-sig").splitlines())
            return [(f"{_INPUT}, line {at}", line) for at, line in enumerate(lines, 1) if line]
        except UnicodeDecodeError as error:
            number = error.object.count(b"\n", 0, error.start) + 1
            place, fault = f"{_INPUT}, line {number}", str(error)
    raise CommandError(ExitCode.DATA, f"relay suppressed: {place}: {fault}")
