"""`relay queue`: list the queue, and the commands that change it; the text of entries and counts.

`relay pause` stops delivery or acceptance on this node, until a time or `relay resume`. If no relay
runs, both take effect at the next start. Commands that change entries need a selector.
Exits 65 for an unknown message, 69 without a relay that changes entries, 130 for Ctrl-C. A command
that waits for the end of an attempt is ordered, and exits 0.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

import click
import msgspec

from relay.base import running_relay
from relay.base.clock import SystemClock, time_us_of
from relay.base.message.lifecycle import hold_text
from relay.base.pauses import Pause, Paused
from relay.base.phrases import counted, named, shown, table_lines, time_span
from relay.base.settings.document import SettingsError
from relay.operation.app.state_dir import AlreadyRunningError
from relay.operation.cli.errors import INTERRUPTED, CommandError, ExitCode
from relay.operation.cli.options import (
    KEY,
    CommandContext,
    older_than_s,
    once,
    relay_options,
    user_name,
)
from relay.operation.cli.output import journey_lines, print_json, print_lines, recipient_lines
from relay.operation.cli.relay_client import operator_client, unknown_message, valid_settings
from relay.operation.commands.operator_client import LIST_MAX, OperatorClient
from relay.store.journeys.document import Recipient
from relay.store.journeys.wording import RELEASE_RESTORED, changed_line
from relay.store.spool.queue_commands import NO_REPORTS, EntryList
from relay.store.spool.types import Selector

F = TypeVar("F", bound=Callable[..., Any])
_STATES = ["queued", "deferred", "held", "captured", "waiting", "scheduled"]
_OPTIONS = ("reason", "text", "to", "until", "new", "domain")  # checked by the relay only


def selectors(command: F) -> F:
    """Add the selectors of docs/names.md to a command."""
    return _with(
        command,
        click.argument("ids", nargs=-1, metavar="[ID]..."),
        once("--sender", metavar="GLOB", help='Such as "*@example.org".'),
        once("--recipient", metavar="GLOB", help="One of the recipients."),
        once("--domain", metavar="GLOB", help="The domain of a recipient."),
        once("--next-hop", metavar="GLOB", help="As the list shows it."),
        once("--route", metavar="GLOB", help="The route to the next hop, or that holds it."),
        once("--subject", metavar="GLOB", help='Such as "*invoice*".'),
        once("--client", metavar="IP|NETWORK|NAME", help="Who brought it; NAME: in EHLO."),
        once("--login", metavar="GLOB", help="The account that sent it."),
        once("--state", type=click.Choice(_STATES)),
        once("--older-than", metavar="DURATION", help='Such as "2h".'),
        click.option("--restored", is_flag=True, help="What relay restore holds."),
        click.option("--all", is_flag=True, help="Every entry."),
    )


def changing(command: F) -> F:
    """Add selectors, --dry-run, --list and --reason to a command."""
    return _with(
        command,
        selectors,
        click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing."),
        click.option("--list", "lists", is_flag=True, help="List the entries too."),
        click.option(
            "--reason", default="", metavar="TEXT", help="The reason, recorded in the journey."
        ),
    )


def _with(command: F, *decorators: Callable[[F], F]) -> F:
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def _selector(conditions: dict[str, Any]) -> Selector:
    conditions["older_than_s"] = older_than_s(conditions.pop("older_than"))
    return Selector(**{name: conditions.pop(name) for name in Selector.__struct_fields__})


@click.group()
@relay_options
def queue(_given: CommandContext) -> None:
    """List the queue and change it.

    An ID is the id of an entry or message as in the list, a Graph id, a submission id or a
    Message-ID. In a GLOB, * matches any characters and ? matches one. Scheduled sends are listed,
    held, released and cancelled by ID, or by conditions that each of them answers with all of its
    recipients; --all and --older-than mean entries, unless --state scheduled is given.
    """


@queue.command("list")
@selectors
@relay_options
def list_(context: CommandContext, **conditions: Any) -> None:
    """List the entries of the queue, oldest first.

    An entry must match all conditions given; without any, all entries are listed.
    """
    client, selector = operator_client(context), _selector(conditions)
    entries = client.queue_list(selector)
    # `relay queue list`: `[{ListedEntry}]`, oldest first
    context.show(entries, lambda: [*entry_lines(entries), *_before_queue_lines(entries)])
    _say_if_cut(entries)
    _say_not_looked_at(client, selector)
    _refuse_unknown("list", entries.unknown)


@queue.command()
@click.argument("key", type=KEY, metavar="ID")
@relay_options
def show(context: CommandContext, key: str) -> None:
    """Show one message: its journey and its queue entries."""
    client = operator_client(context)
    journey = client.journey(key)
    if journey is None:
        raise unknown_message("queue show", key, client)
    entries = client.queue_list(Selector(ids=(journey.id or journey.submission_id or key,)))
    # `relay queue show ID`: as `relay trace ID`, with `entries`
    context.show(
        msgspec.to_builtins(journey) | {"entries": entries},
        lambda: [*journey_lines(journey, client.answer(journey)), "", *entry_lines(entries)],
    )


@queue.command()
@relay_options
def stats(context: CommandContext) -> None:
    """Count the queue: by state, by priority, by next hop.

    The nodes that share a PostgreSQL spool are listed too.
    """
    clock = SystemClock()
    counts = operator_client(context).stats()
    # `relay queue stats`: `{entries: {queued, deferred, held, captured}, in_delivery, due, oldest,
    # recipients, priorities: {high, normal, low, unreachable}, next_hops: [{next_hop, route,
    # entries, in_delivery, deferred, oldest, last}], unaccounted}`; a priority is `{entries,
    # in_delivery}`, `last` is `{at, host, domain, reply}` or null, `next_hops` are the 20 with most
    # entries. A running relay adds `paused_sites: [{site, by, until}]`, `paused` and `holds:
    # [{domain, reason, since, until}]`, a PostgreSQL spool `nodes: [{name, state, version, store,
    # since, beat_age_s, claims, is_this}]` with the state `alive`, `stopped` or `dead`. If no relay
    # has ever run: `{}`
    context.show(counts, lambda: stats_lines(counts, now_us=clock.time_us()))


@queue.command()
@changing
@relay_options
def retry(context: CommandContext, **conditions: Any) -> None:
    """Retry deferred mail now, even for unreachable hosts."""
    _change(context, "retry", conditions)


@queue.command()
@changing
@once("--until", metavar="TIME|DURATION", help="When the hold ends automatically.")
@click.option("--new", is_flag=True, help="Hold what comes for the --domain too.")
@relay_options
def hold(context: CommandContext, *, until: str, new: bool, **conditions: Any) -> None:
    """Suspend delivery of mail until it is released, or expires.

    Held mail expires as if it were not held. A TIME is such as 14:03 (the next) or
    2027-01-31T09:00:00Z; UTC without a zone. With --new, mail that comes for the --domain (a
    domain, or *.DOMAIN) is held as well, until then or until a release with the same --domain
    alone; `relay queue stats` lists these domains.
    """
    _change(context, "hold", conditions, until=until, new=new)


@queue.command()
@changing
@click.option("--as-before", is_flag=True, help="Restore the due time from before the hold.")
@relay_options
def release(context: CommandContext, *, as_before: bool, **conditions: Any) -> None:
    """Release held mail and deliver it now.

    With --restored alone, or with --all, the submissions and scheduled sends that relay restore
    holds as well; what was held before the backup stays held. With --as-before, each entry gets the
    state and due time from before the hold.
    """
    _change(context, "release", conditions, as_before=as_before)


@queue.command()
@changing
@click.option("--bounce", is_flag=True, help="Report the failure to the sender.")
@once("--text", help="What the report says to the sender.")
@relay_options
def cancel(context: CommandContext, *, bounce: bool, text: str, **conditions: Any) -> None:
    """Remove mail from the queue.

    The sender gets a report only with --bounce, if it may get one. This cannot be undone; in doubt,
    use hold.
    """
    _change(context, "cancel", conditions, bounce=bounce, text=text)


@queue.command()
@changing
@click.option("--to", required=True, metavar="NEXT-HOP", help="The new next hop.")
@relay_options
def reroute(context: CommandContext, *, to: str, **conditions: Any) -> None:
    """Change the next hop of mail, and deliver it now.

    Captured mail can be rerouted as well.

    NEXT-HOP is smtp://HOST:PORT, smtps://HOST:PORT, lmtp://HOST:PORT, lmtp:unix:PATH, mx:DOMAIN,
    "mx" for each recipient's own domain, "local", route:NAME with the login and TLS of that route,
    or "default" for the current routes. Held mail stays held.
    """
    _change(context, "reroute", conditions, to=to)


def _change(
    context: CommandContext, operation: str, conditions: dict[str, Any], **more: Any
) -> None:
    lists = conditions.pop("lists") or bool(conditions["ids"])
    selector = _selector(conditions)
    if selector == Selector():
        raise click.UsageError("expected a selector: ID, a condition, or --all")
    more |= conditions
    try:
        client = operator_client(context)
        answer = client.change(operation, selector, **more)
    except running_relay.ControlError as error:
        if error.status == HTTPStatus.BAD_REQUEST:  # an option that only the relay checks
            raise click.UsageError(with_option(str(error))) from None
        raise
    except KeyboardInterrupt:
        so_far = "entries changed before it stay changed; see `relay queue list`"
        so_far = "a dry run changes nothing" if more["dry_run"] else so_far
        raise CommandError(INTERRUPTED, f"relay queue {operation}: interrupted: {so_far}") from None
    line = changed_line(operation, answer)
    # `relay queue retry`, `hold`, `release`, `cancel`, `reroute`: as `relay queue list`, and for
    # each entry `result` (`done`, `unchanged`, `ordered`), `note` (the obstacle) and `node` (the
    # other node that delivers the entry); 65: an unknown ID
    if context.json:
        print_json(answer["entries"])
        click.echo(f"relay queue {operation}: {line}", err=True)
    elif lists:
        print_lines([*entry_lines(answer["entries"])[:-1], line])
    else:
        print_lines([line, *_reasons(answer)])
    if lists or context.json:
        _say_if_cut(answer["entries"])
    if operation in ("retry", "release", "reroute") and answer["matched"]:
        for paused in client.delivery_paused():
            click.echo(f"relay queue {operation}: {paused}", err=True)
    _say_not_looked_at(client, selector)
    _refuse_unknown(operation, answer["unknown"])
    if not answer["done"] and any(row["note"] == NO_REPORTS for row in answer["entries"]):
        raise CommandError(ExitCode.DATA, f"relay queue {operation}: {NO_REPORTS}")


def _reasons(answer: Mapping[str, Any]) -> list[str]:
    """Return each reason why entries were not changed, with the number of these entries. Ordered
    entries have the latest time of all.
    """
    noted = [(row["result"], row["note"]) for row in answer["entries"] if row["note"]]
    by_words: dict[tuple[str, str], list[str]] = {}
    for result, note in noted:
        by_words.setdefault((result, note.partition("at the latest")[0]), []).append(note)
    pairs = by_words.items()
    return [f"    {len(notes)} {result}: {max(notes)}" for (result, _), notes in pairs]


def with_option(text: str) -> str:
    """Replace the name of a field of the body by the name of the option."""
    field, colon, rest = text.partition(":")
    return f"--{field}{colon}{rest}" if field in _OPTIONS else text


def _refuse_unknown(verb: str, unknown: Sequence[str]) -> None:
    """Raise CommandError for ids that match nothing. Call it after all other output."""
    if unknown:
        names = ", ".join(shown(name) for name in unknown)
        raise CommandError(ExitCode.DATA, f"relay queue {verb}: not in the queue: {names}")


def _say_not_looked_at(client: OperatorClient, selector: Selector) -> None:
    may_have = client.settings.node_of_many and selector.sees_submissions
    nodes = client.stats()["nodes"] if may_have else ()
    own = {"", *(node["store"] for node in nodes if node["is_this"])}
    if stores := sorted({node["store"] for node in nodes} - own):
        click.echo(f"relay queue: not looked at: submissions of {named(stores)}", err=True)


def _say_if_cut(entries: list[dict[str, Any]]) -> None:
    if len(entries) >= LIST_MAX:
        click.echo(f"relay queue: only the first {LIST_MAX} are shown; add a condition", err=True)


# -- lines


def entry_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return entries as a table, and a line with their number."""
    head = ("ID", "STATE", "BYTES", "ATTEMPTS", "NEXT ATTEMPT (UTC)", "SENDER -> NEXT HOP")
    first, *rows = table_lines([head, *map(_entry_cells, entries)], right=(2, 3))
    lines = [first] if entries else []
    for entry, row in zip(entries, rows, strict=True):
        lines += [row, *(f"    {remark}" for remark in _remarks(entry))]
        recipients = msgspec.convert(entry["recipients"], list[Recipient])
        lines += recipient_lines(recipients, indent="    ", most=10)
    return [*lines, _count(entries)]


def _before_queue_lines(entries: EntryList) -> list[str]:
    """Return the numbers of messages that are not yet in the queue, if they were counted."""
    counts = dict(entries.before_queue or {})
    held = counts.pop("restored", 0)
    numbers = [f"{number} {state}" for state, number in counts.items()]
    lines = [f"and {', '.join(numbers)}"] if numbers else []
    return [*lines, f"of these, a restore holds {held}: {RELEASE_RESTORED}"] if held else lines


def stats_lines(stats: Mapping[str, Any], *, now_us: int) -> list[str]:
    """Return the statistics of the queue."""
    if not stats:
        return ["the queue is empty: there is no spool"]
    by_state = ", ".join(f"{number} {state}" for state, number in stats["entries"].items())
    unaccounted = "not counted yet" if stats["unaccounted"] is None else stats["unaccounted"]
    levels = ", ".join(f"{row['entries']} {level}" for level, row in stats["priorities"].items())
    lines = [
        f"entries      {by_state}",
        f"recipients   {stats['recipients']}",
        f"due now      {stats['due']}, with delivery {stats['in_delivery']}",
        f"oldest       {_age(stats['oldest'], now_us)}",
        f"priorities   {levels}",
        f"unaccounted  {unaccounted}",
    ]
    for hold in stats.get("holds", ()):
        until = f" until {hold['until'][:19]}Z" if hold["until"] else ""
        lines.append(f"holds new    {hold['domain']}{until}, by {hold['reason']}")
    lines += [f"paused       {line}" for line in pause_lines(stats.get("paused", {}))]
    for site in stats.get("paused_sites", ()):
        lines.append(f"paused       {site['site']} until {site['until'][:19]}Z, by {site['by']}")
    if hops := stats["next_hops"]:
        head = ("NEXT HOP", "ENTRIES", "ACTIVE", "DEFERRED", "OLDEST", "LAST REPLY")
        rows = [head, *(_hop_cells(hop, now_us) for hop in hops)]
        lines += ["", *table_lines(rows, right=range(1, 5))]
    if nodes := stats.get("nodes"):
        lines += ["", *_node_lines(nodes)]
    return lines


def _hop_cells(hop: Mapping[str, Any], now_us: int) -> tuple[str, ...]:
    counts = (str(hop[name]) for name in ("entries", "in_delivery", "deferred"))
    reply = ""
    if last := hop["last"]:
        host = f"{last['host']}, " if last["host"] else ""
        reply = f"{_age(last['at'], now_us)} ago, {host}for {last['domain']}: {last['reply']}"
    return hop["next_hop"], *counts, _age(hop["oldest"], now_us), reply


def pause_lines(pauses: Mapping[str, Any]) -> list[str]:
    """Return the lines of the active pauses, from the JSON of /pause."""
    active = ((what, pauses[what]) for what in Paused if pauses.get(what))
    return [msgspec.convert(pause, Pause).text(what) for what, pause in active]


def _node_lines(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the nodes of a spool as a table, and a line if living nodes have several versions."""
    rows = [("NODE", "STATE", "VERSION", "LAST BEAT", "CLAIMS")] + [
        (
            node["name"] + (" (this)" if node["is_this"] else ""),
            node["state"],
            node["version"],
            f"{time_span(node['beat_age_s'])} ago",
            str(node["claims"]),
        )
        for node in nodes
    ]
    lines = table_lines(rows)
    versions = sorted({node["version"] for node in nodes if node["state"] == "alive"})
    if len(versions) > 1:
        lines.append(f"living nodes have several versions: {', '.join(versions)}")
    return lines


def _entry_cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    due = str(entry["due"])[:19].replace("T", " ") if entry["due"] else "-"
    is_lost = entry["sender"] is None
    numbers = ("-" if is_lost else str(entry["size"]), str(entry["attempts"]))
    hop = f"{'?' if is_lost else entry['sender'] or '<>'} -> {entry['next_hop']}"
    number = f"-{entry['entry']}" if entry["entry"] else ""  # a submission has none
    return (f"{entry['id']}{number}", str(entry["state"]), *numbers, due, hop)


def _remarks(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield remarks about an entry: hold, reason, last result."""
    if entry["sender"] is None:
        yield "its message is lost: see relay storage verify"
    if entry.get("held_until"):
        yield f"held until {str(entry['held_until'])[:19].replace('T', ' ')}"
    if entry.get("reason"):
        held_by = f"held by {hold_text(entry['reason'], entry.get('rule', ''))}"
        since = str(entry.get("since", ""))[:19].replace("T", " ")  # a list has it, a change not
        yield f"{held_by}, since {since}" if since else held_by
        if entry.get("subject"):
            yield f"subject: {entry['subject']}"
    if note := entry.get("note"):
        yield f"{entry['result']}: {note}"
    elif order := entry.get("order"):
        yield f"ordered: {order}, at the latest {entry['expires'][:19]}Z"


def _age(at: str | None, now_us: int) -> str:
    """Return the age of an RFC 3339 time."""
    if at is None:
        return "-"
    return time_span(max(0, (now_us - time_us_of(at)) // 1_000_000))


def _count(entries: Sequence[Mapping[str, Any]]) -> str:
    recipients = sum(len(entry["recipients"]) for entry in entries)
    states = Counter(str(entry["state"]) for entry in entries)
    by_state = ", ".join(f"{number} {state}" for state, number in states.items())
    total = f"{counted(len(entries), 'entry')}, {counted(recipients, 'recipient')}"
    return total + (f": {by_state}" if by_state else "")


@click.command()
@click.argument("what", type=click.Choice([what.value for what in Paused]))
@once("--until", metavar="TIME|DURATION", help="When it ends automatically.")
@relay_options
def pause(context: CommandContext, *, what: str, until: str) -> None:
    """Stop "delivery" or "accept" on this node, over restarts.

    Without delivery, mail is accepted and waits in the queue, local mail too; it still expires.
    Without accept, SMTP clients get 421 and the Graph API sends nothing (503); what was accepted is
    delivered. A TIME is such as 14:03 (the next) or 2027-01-31T09:00:00Z; UTC without a zone.
    """
    _change_pause(context, "pause", {"what": what, "until": until})


@click.command()
@click.argument("what", type=click.Choice([what.value for what in Paused]), required=False)
@relay_options
def resume(context: CommandContext, *, what: str | None) -> None:
    """End what `relay pause` has stopped: delivery, accept, or without WHAT both."""
    _change_pause(context, "resume", {"what": what, "until": None})


def _change_pause(context: CommandContext, verb: str, order: dict[str, str | None]) -> None:
    try:
        answer = _asked(context, verb, order)
    except running_relay.ControlError as error:
        if error.status == HTTPStatus.BAD_REQUEST:
            raise click.UsageError(with_option(str(error))) from None
        raise
    resumed = [f"resumed: {what}" for what in answer["resumed"]]
    # `relay pause`, `resume`: as `POST pause`
    context.show(answer, lambda: [*resumed, *pause_lines(answer)] or ["nothing is paused"])


def _asked(context: CommandContext, verb: str, order: dict[str, Any]) -> dict[str, Any]:
    """Pause or resume, by the relay or in its file. Return what is paused then."""
    settings, of_files = valid_settings(context)
    body = {name: argument for name, argument in order.items() if argument is not None}
    try:
        return running_relay.ControlClient(settings.control_socket).post(f"/{verb}", body)
    except running_relay.ControlForbiddenError:
        raise
    except running_relay.ControlUnavailableError as error:
        silent = str(error)
    if of_files:
        raise SettingsError(of_files)
    from relay.operation.commands.offline import change_pauses  # noqa: PLC0415 - slow

    try:
        left, resumed = change_pauses(settings, SystemClock(), who=user_name(), **order)
    except AlreadyRunningError as running:
        raise running_relay.ControlUnavailableError(f"{silent}, but {running}") from None
    return {**left, "resumed": resumed}
