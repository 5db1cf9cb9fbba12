"""Lines that say what each rule compared, and what the rules would do with a message."""

from collections.abc import Iterator, Mapping
from typing import Any

from relay.base.phrases import counted, time_left

_MAILS = {"journal": "journal", "notify": "notice"}


def condition_text(condition: Mapping[str, Any]) -> str:
    """Return the key of a condition and the value that it compared."""
    return f'{condition["condition"]} "{condition["value"]}"'


def rule_text(rule: Mapping[str, Any]) -> str:
    """Return whether a rule matches, and what it does, without its conditions."""
    name, would = f'"{rule["rule"]}"', "would do (audit)" if rule["mode"] == "audit" else "does"
    if rule["skipped"]:
        return f"{name} is not evaluated: {rule['skipped']}"
    if not rule["matched"]:
        return f"{name} does not match"
    matched = " ".join(["matches", ", ".join(rule.get("recipients", ()))]).rstrip()
    return f"{name} {matched} and {would} {rule['outcome']}"


def verdict_lines(document: Mapping[str, Any]) -> list[str]:
    """Return a line for each rule, condition and recipient, and the verdict last."""
    lines = []
    for rule in document["rules"]:
        lines.append(f"rule {rule_text(rule)}")
        lines += [
            f"  {'yes' if each['holds'] else 'no':<4}{condition_text(each)}"
            for each in rule["conditions"]
        ]
    for one in document["charges"]:
        limit = f"{one['allowed']} in {time_left(one['period_s']).removeprefix('in ')}"
        number = counted(one["recipients"], "recipient")
        lines.append(f"counts {number} against the {limit} of {one['key']} ({one['rule']})")
    if (deferred := document["deferred"]) is not None:
        lines.append(f"deferred: {deferred['status']} {deferred['text']} ({deferred['rule']})")
    else:
        lines += _recipient_lines(document)
    return [*lines, f"verdict: {document['verdict']}"]


def _recipient_lines(document: Mapping[str, Any]) -> Iterator[str]:
    for one in document["recipients"]:
        via = f" by {one['next_hop']}" if one["next_hop"] else ""
        yield _line(one, _fate(one) + via)
    for one in document["added"]:
        yield _line(one, _held(one) or "gets a copy")
    for one in document["mails"]:
        names = ", ".join(one["recipients"])
        yield f"{_MAILS[one['kind']]} to {one['to']} about {names} ({one['rule']})"


def _line(one: Mapping[str, Any], fate: str) -> str:
    return f"{one['address']}: {fate}" + (f" ({one['rule']})" if one["rule"] else "")


def _held(one: Mapping[str, Any]) -> str:
    return f"held: {one['hold']['reason']}" if one["hold"] is not None else ""


def _fate(one: Mapping[str, Any]) -> str:
    match one["fate"]:
        case "reject":
            return f"rejected: {one['status']} {one['text']}"
        case "discard":
            return "discarded"
        case "redirect":
            return f"redirected to {', '.join(one['successors'])}"
        case _:
            held = _held(one)
            if not one["quarantined"] or held == "held: quarantine":
                return held or "delivered"
            return f"{held}, then " * bool(held) + f"quarantined ({one['quarantined']})"
