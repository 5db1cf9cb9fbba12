"""`relay mailq`: the queue as mailq(1) of Postfix and sendmail shows it, which monitors read.

The root calls it too if the program is called mailq, and `relay sendmail -bp` is the same.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from relay.base.clock import SystemClock, id_time_us
from relay.base.phrases import counted
from relay.cli.options import CommandContext, common_options
from relay.commands.operator_client import OperatorClient
from relay.ingress.dropped_mail import PART
from relay.spool.types import Selector

_HEAD = "-Queue ID-        --Size-- ---Arrival Time---- -Sender/Recipient-------"
_EMPTY = "Mail queue is empty"
_MARKS = {"held": "!", "captured": "!"}  # after the id, as Postfix has it; "*": in delivery
_KB = 1024


@click.command()
@common_options
def mailq(context: CommandContext) -> None:
    """List the queue, oldest first, in the form that monitors of Postfix and sendmail read."""
    list_queue(context)


def list_queue(context: CommandContext) -> None:
    """Print the queue; on stderr, how many files of programs no relay has taken yet."""
    settings = context.settings()
    entries = OperatorClient(settings, SystemClock()).queue_list(Selector())
    context.show(entries, lambda: queue_lines(entries))
    drop = settings.sendmail.drop if settings.sendmail else None
    if drop is not None and (dropped := _dropped(drop)):
        click.echo(f"relay mailq: {counted(dropped, 'message')} not taken yet in {drop}", err=True)


def _dropped(drop: Path) -> int:
    """Return how many whole files are in the drop directory; 0 if it cannot be read."""
    try:
        with os.scandir(drop) as files:
            return sum(not one.name.startswith(PART) and not one.is_dir() for one in files)
    except OSError:
        return 0


def queue_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of mailq(1) for entries as the JSON of `queue list` has them."""
    if not entries:
        return [_EMPTY]
    lines = [_HEAD]
    for one in entries:
        mark = "*" if one["claimed"] else _MARKS.get(one["state"], "")
        arrived = datetime.fromtimestamp((id_time_us(one["id"]) or 0) / 1e6).astimezone()
        sender = one["sender"] or "MAILER-DAEMON"
        size = one["size"]
        lines.append(f"{one['id'] + mark:<17} {size:>8} {arrived:%a %b %e %H:%M:%S}  {sender}")
        replies = dict.fromkeys(each["reply"] for each in one["recipients"] if each["reply"])
        lines += [f"({reply})" for reply in replies]
        lines += [f"{'':40}{each['address']}" for each in one["recipients"]]
        lines.append("")
    size_kb = -(-sum(one["size"] for one in entries) // _KB)
    count = len({one["id"] for one in entries})
    lines.append(f"-- {size_kb} Kbytes in {count} Request{'' if count == 1 else 's'}.")
    return lines
