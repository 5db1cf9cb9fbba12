"""`relay explain`: where mail for an address goes, and why, without sending anything.

Exits 0 for mail that would be delivered or queued, 65 for an address that is invalid or rejected.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from msgspec import convert

from relay.base.clock import SystemClock
from relay.base.message.authentication_results import check_words
from relay.base.message.nexthop import BY_RULE
from relay.base.message.tls_policy import DANE, MTA_STS
from relay.base.phrases import counted, time_span
from relay.base.settings.environment import read_environment
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.options import CommandContext, InputPath, common_options, read_input
from relay.operation.cli.output import condition_text, rule_text
from relay.operation.commands.operator_client import OperatorClient
from relay.store.journeys.details import MilterSaid
from relay.store.journeys.wording import milter_words

_QUEUED = ("local", "remote", "captured", "held")
_STATES = {
    "local": "goes into the mailbox {mailbox}",
    "remote": "goes to {next_hop}",
    "captured": "is captured: stored here, never sent",
    "held": "is queued for {next_hop}, and held: {reason}",
    "invalid": "is invalid",
    "rejected": "is rejected",
    "discarded": "is discarded: nobody gets it, and no report is sent",
}
_SHOWN_MAX = 20  # rules and hosts; --json has all
_WIDTH = 8


@click.command()
@click.argument("address")
@click.option(
    "--from",
    "sender",
    metavar="ADDRESS",
    default="",
    help="The reverse-path. [default: <>, a report about trusted mail]",
)
@click.option(
    "--message",
    "file",
    type=InputPath(),
    metavar="FILE",
    help="The message, for conditions on the content.",
)
@click.option(
    "--ip",
    metavar="ADDRESS",
    default="",
    help="The client; with --message, the milters are asked and the sender is checked too. "
    "[default: one that has logged in]",
)
@click.option(
    "--probe", is_flag=True, help="Connect to the hosts as delivery would, and stop before MAIL."
)
@common_options
def explain(
    context: CommandContext, address: str, *, sender: str, file: Path | None, ip: str, probe: bool
) -> None:
    """Say where mail for ADDRESS goes, and why, without sending anything.

    The running relay answers. If none runs, the answer is from its configuration; --probe needs
    one.
    """
    settings = context.settings()
    query = {"address": address, "from": sender, "ip": ip, "probe": "true" if probe else ""}
    message = read_input("explain", file) if file is not None else None
    client = OperatorClient(settings, SystemClock())
    document = client.explain(
        {name: value for name, value in query.items() if value},
        message,
        file=context.found_config_file(),
        environ=read_environment().variables,
    )
    paused = client.delivery_paused if document["state"] in ("local", "remote") else list

    def lines() -> list[str]:
        reasons = explanation_lines(document, client.without_daemon)
        return [*reasons, *(_line("pause", pause) for pause in paused())]

    # `relay explain ADDRESS`: `{address, from, state, reply, reason, rule, aliases: [address],
    # rules: [{rule, mode, matched, conditions: [{condition, value, holds}], actions, outcome,
    # skipped, file, line}], route: {name, file, line, next_hop}, mailbox, hosts: [{name,
    # preference, addresses, skipped}], hosts_more, tls: {level, policy, requiretls}, limits:
    # {max_connections, max_rate, source_address}, site: {connections, paused_until, paused_by,
    # last_failure: {at, host, reply}}, retry: [seconds], running}`; 65: invalid, rejected,
    # discarded or malformed, 69: `--probe` without a relay
    context.show(document, lines)
    if document["state"] not in _QUEUED:
        raise CommandError(ExitCode.DATA)


def explanation_lines(document: Mapping[str, Any], why_files: str = "") -> list[str]:
    """Return the answer first, then its reasons, a line for each."""
    lines = [_answer(document)]
    if why_files:
        lines.append(_line("relay", f"{why_files}; this is from the configuration"))
    lines.append(
        _line("from", document["from"] or "<>, a report about trusted mail; --from names another")
    )
    milters = convert(document.get("milters", ()), list[MilterSaid])
    lines += [_line("said", milter_words(milter)) for milter in milters]
    if checks := document.get("checks"):
        lines.append(_line("checks", check_words(checks)))
    if writers := document.get("writers"):
        lines.append(_line("writers", f"{writers['alias']}: {', '.join(writers['from'])}"))
    lines += [_line("alias", alias) for alias in document["aliases"]]
    lines += _cut([_line("rule", text) for text in _rules(document["rules"])], "rule")
    route = document["route"]
    if way := _way(route):
        lines.append(_line("route", way))
    if "mailbox" in route:
        lines[-1] += f"; logs in as {route['mailbox']}"
    if "fallback" in route:
        after_s = route["fallback_after"]
        after = f"after {time_span(after_s)} without an answer" if after_s else "for larger mail"
        lines[-1] += f"; fallback {after}: {route['fallback']}"
    if (
        other := document.get("other_null", route)
    ) != route:  # mail that is no report of this relay
        lines.append(_line("others", f"from <>: {_way(other)}"))
    lines += _cut([_line("host", _host(host)) for host in document["hosts"]], "host")
    if (tls := document["tls"]) is not None:
        who, *notes = tls["policy"].split("; ")
        by = {MTA_STS: "MTA-STS policy of the domain", DANE: "TLSA records of the host"}
        notes += ["enough for REQUIRETLS"] if tls["requiretls"] else []
        said = "; ".join((f"{tls['level']}, demanded by the {by.get(who, who)}", *notes))
        lines.append(_line("tls", said))
    if limits := document["limits"]:
        lines.append(_line("limits", _limits(limits)))
    if (site := document["site"]) is not None:
        lines.append(_line("site", _site(site)))
    if (probe := document.get("probe")) is not None:
        lines += [_line("probe", text) for text in _probe(probe)]
    if document["retry"]:
        lines.append(_line("retry", _retry(document["retry"])))
    for target in document.get("targets", ()):
        lines += [f"  {line}" for line in explanation_lines(target)]
    return lines


def _answer(document: Mapping[str, Any]) -> str:
    """Return what becomes of the mail, in a sentence."""
    address, reply = document["address"], document["reply"]
    if targets := document.get("targets"):
        return f"{address} is replaced by {', '.join(target['address'] for target in targets)}"
    state = _STATES[document["state"]].format(
        mailbox=document["mailbox"],
        next_hop=document["route"]["next_hop"],
        reason=document["reason"] + (f' (rule "{rule}")' if (rule := document["rule"]) else ""),
    )
    state += f", folder {folder}" if (folder := document.get("folder")) else ""
    return f"{address} {state}: {reply}" if reply else f"{address} {state}"


def _way(route: Mapping[str, Any]) -> str:
    """Return by which route the mail goes, and where the route is."""
    if route["name"] == BY_RULE:
        return f"a rule chose {route['next_hop']}"
    if route["name"]:
        place = f" ({route['file']}:{route['line']})" if route["file"] else ""
        return f'"{route["name"]}"{place}'
    return f"none matches, so it is {route['next_hop']}" if route["next_hop"] else ""


def _line(name: str, text: str) -> str:
    return f"  {name:<{_WIDTH}}{text}"


def _cut(lines: list[str], noun: str) -> list[str]:
    rest = len(lines) - _SHOWN_MAX
    if rest <= 0:
        return lines
    return [*lines[:_SHOWN_MAX], _line("", f"and {counted(rest, f'more {noun}')}; --json has all")]


def _rules(rules: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a text for each rule. Rules that match or may match come first."""
    order = {True: 0, None: 1, False: 2}
    return [_rule(rule) for rule in sorted(rules, key=lambda rule: order[rule["matched"]])]


def _rule(rule: Mapping[str, Any]) -> str:
    if rule["matched"] is None:
        needed = ", ".join(row["condition"] for row in rule["conditions"] if row["holds"] is None)
        return f'"{rule["rule"]}" depends on the message ({needed}); --message names one'
    text = rule_text(rule)
    is_match = bool(rule["matched"])
    decisive = [row for row in rule["conditions"] if _decides(row, is_match=is_match)]
    return f"{text}: {', '.join(map(condition_text, decisive))}" if decisive else text


def _decides(condition: Mapping[str, Any], *, is_match: bool) -> bool:
    """Return whether a condition is the reason why its rule matches, or why it does not."""
    name, holds = condition["condition"], condition["holds"]
    if is_match:
        return bool(holds) or "[" not in name  # else a table that did not decide
    return holds is not None and holds == name.startswith("unless ")


def _host(host: Mapping[str, Any]) -> str:
    name = f"{host['preference']} {host['name']}"
    if host["skipped"]:
        return f"{name} is skipped: {host['skipped']}"
    return f"{name} [{', '.join(host['addresses'])}]"


def _probe(probe: Mapping[str, Any]) -> list[str]:
    """Return the replies of the hosts, and the result last."""
    tls = f"{probe['tls']} {probe['cipher']}".strip() or "without TLS"
    answered = f"{probe['host']} [{probe['address']}] is ready for mail, {tls}"
    return [*probe["tried"], answered if probe["host"] else f"failed: {probe['reply']}"]


def _limits(limits: Mapping[str, Any]) -> str:
    text = counted(limits["max_connections"], "connection")
    if limits["max_rate"]:
        count, _, seconds = limits["max_rate"].partition("/")
        text += f", {counted(int(count), 'message')} in {seconds} s"
    return f"{text}, from {limits['source_address']}" if limits["source_address"] else text


def _site(site: Mapping[str, Any]) -> str:
    text = counted(site["connections"], "connection") + " now"
    if site["paused_until"]:
        text += f", paused until {site['paused_until'][11:19]} UTC"
        text += f" by {site['paused_by']}" if site["paused_by"] else ""
    if (failure := site["last_failure"]) is not None:
        at = failure["at"][:19].replace("T", " ")  # it may be days ago
        text += f", last failure {at} UTC: {failure['reply']}"
    return text


def _retry(steps: Sequence[float]) -> str:
    """Return the waits between attempts. The last wait is repeated."""
    spans = [time_span(step) for step in steps]
    return f"after {', '.join(spans)}" + (", and so on" if spans else "")
