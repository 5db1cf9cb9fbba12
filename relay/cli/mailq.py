"""`relay mailq`: the queue as mailq(1) of Postfix and sendmail shows it, which monitors read.

The root calls it too if the program is called mailq, and `relay sendmail -bp` is the same.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click

from relay.base.clock import SystemClock, id_time_us
from relay.cli.options import CommandContext, common_options
from relay.commands.operator_client import OperatorClient
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
    """Print the queue."""
    entries = OperatorClient(context.settings(), SystemClock()).queue_list(Selector())
    context.show(entries, lambda: queue_lines(entries))


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
