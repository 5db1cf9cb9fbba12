"""`relay stats`: what became of the mail of the last days, counted by the running relay (or 69)."""

from collections.abc import Mapping
from typing import Any

import click

from relay.base.phrases import table_lines, time_span
from relay.base.running_relay import ControlClient
from relay.base.settings.values import parse_duration
from relay.operation.cli.option_types import Parsed
from relay.operation.cli.options import CommandContext, common_options
from relay.operation.cli.relay_client import valid_settings
from relay.store.spool.shared.traffic import BOUNCE_COUNTS, BOUNCES, COUNTS, GROUPINGS

_ANSWER_S_MAX = 300.0  # a second for 100,000 messages
_NONE = {None: "-", "": "-"}
_DURATION = Parsed("DURATION", parse_duration)


@click.command()
@click.option("--by", type=click.Choice(GROUPINGS), default=GROUPINGS[0], show_default=True)
@click.option("--bounces", "by", flag_value=BOUNCES, help="By how mail ended, and complaints.")
@click.option("--since", type=_DURATION, default="7d", show_default=True, help="Accepted since.")
@common_options
def stats(context: CommandContext, *, by: str, since: float) -> None:
    """Count the mail of the last days by provider, domain, route or login.

    ACCEPTED counts the recipients of first attempts, DELIVERED those delivered, relayed or
    captured, DEFERRED all attempts that were deferred, FAILED the recipients that failed or
    expired. MEDIAN and 95 % are times from acceptance to delivery. Below each group are the replies
    that deferred or failed most of it.

    With --bounces, failed recipients: HARD (there is no such mailbox), REPUTATION (5.7 that names
    spam or block lists), POLICY (other 5.7) and SOFT (the rest). COMPLAINTS counts messages, in
    PERCENT of the recipients delivered, where the provider has sent any.
    """
    settings, _ = valid_settings(context)
    client = ControlClient(settings.control_socket, timeout_s=_ANSWER_S_MAX)
    answer = client.get("/stats", {"by": by, "since": f"{since:.0f}"})
    cut = "; spool.keep keeps nothing older" if since > settings.spool.keep else ""
    head = f"accepted since {answer['since'][:19]}Z{cut}"
    lines = bounce_lines if by == BOUNCES else stats_lines
    facts = answer["groups"] if by == BOUNCES else answer
    # `relay stats`: `{by, since, groups: [{name, accepted, delivered, deferred, failed, median_s,
    # p95_s, replies: [{reply, times}]}]}`; `since` is later than asked where `spool.keep` is
    # shorter
    context.show(facts, lambda: [head, *lines(answer)])


def bounce_lines(answer: Mapping[str, Any]) -> list[str]:
    """Return what came back of each group as a table."""
    names = ("domain", "provider", *BOUNCE_COUNTS, "complaints_percent")
    head = [name.upper().removeprefix("COMPLAINTS_") for name in names]
    rows = [
        [str(_NONE.get(group[name], group[name])) for name in names] for group in answer["groups"]
    ]
    return table_lines([head, *rows], right=range(2, len(head)))


def stats_lines(answer: Mapping[str, Any]) -> list[str]:
    """Return the groups as a table, with the replies of each below it."""
    groups = answer["groups"]
    if not groups:
        return [", ".join(f"0 {column}" for column in COUNTS)]
    head = [name.upper() for name in (answer["by"], *COUNTS, "median", "95 %")]
    first, *rows = table_lines([head, *map(_cells, groups)], right=range(1, len(head)))
    lines = [first]
    for group, row in zip(groups, rows, strict=True):
        lines += [row, *(f"    {reply['times']}x {reply['reply']}" for reply in group["replies"])]
    return lines


def _cells(group: Mapping[str, Any]) -> list[str]:
    counts = (str(group[column]) for column in COUNTS)
    return [group["name"] or "-", *counts, _span(group["median_s"]), _span(group["p95_s"])]


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2g} s" if seconds < 10 else time_span(seconds)
