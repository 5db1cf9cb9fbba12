"""Read the [[rule]] tables of one file.

On the path: loader calls it for each file.
Holds: a rule with a fault is no rule; it is never taken in a weaker form.
Fails: never; faults are added to the list that is passed in.
Standards: docs/policy.md.
"""

from typing import Any

from relay.policy.actions import ACTIONS, FINAL, Action
from relay.policy.conditions import CONDITIONS, Condition
from relay.policy.reading import TableReader, some_text, true_or_false
from relay.policy.rules import Conditions, Mode, Rule
from relay.settings.document import Document
from relay.settings.faults import Fault, KeyPath, shown, unknown_key

NAME_CHARACTERS_MAX = 100  # it is a metric's label
_KEYS = ("name", "mode", "when", "unless", "then", "stop")


def read_rule(
    document: Document, path: KeyPath, raw: object, *, faults: list[Fault]
) -> Rule | None:
    """Return the rule at `path`, or None after adding to `faults`."""
    before = len(faults)
    reader = TableReader(document, path, raw, faults=faults)
    if not isinstance(raw, dict):
        return None
    reader.allow(_KEYS)
    actions = _actions(reader)
    stop = reader.key("stop", true_or_false, default=False)
    if not actions and not stop and len(faults) == before:
        reader.tell(("then",), "found nothing to do, expected at least one action or stop = true")
    rule = Rule(
        name=reader.required("name", _name, default=""),
        mode=reader.key("mode", _mode, default=Mode.ENFORCE),
        when=_conditions(reader, "when"),
        unless=_conditions(reader, "unless"),
        actions=tuple(actions.values()),
        outcome=",".join(dict.fromkeys(key for key, _ in actions)) or "stop",
        stop=stop,
        file=document.file,
        line=reader.line,
    )
    return rule if len(faults) == before else None


def _conditions(reader: TableReader, key: str) -> Conditions:
    inner = reader.inside(key)
    if reader.table.get(key) == {}:
        inner.tell((), "found no condition, expected at least one; leave the key out for all mail")
    inner.allow(CONDITIONS)
    found: list[Condition] = []
    for name, kind in CONDITIONS.items():  # in its order, whatever the order in the file
        if name in inner.table:
            condition = inner.value(inner.table[name], (name,), kind.parse)
            found += [condition] if condition else []
    return Conditions.of(found)


def _actions(reader: TableReader) -> dict[tuple[str, int], Action]:
    """Return the actions in their order, by name and place."""
    raw = reader.table.get("then", [])
    if not isinstance(raw, list):
        reader.tell(("then",), f"found {shown(raw)}, expected a list of actions")
        return {}
    found: dict[tuple[str, int], Action] = {}
    for index, item in enumerate(raw):
        name = _action_name(reader, index, item)
        if not name:
            continue
        action = reader.value(item[name], ("then", index, name), ACTIONS[name].parse)
        if action:
            found[name, index] = action
        if name in FINAL and index < len(raw) - 1:
            reader.tell(("then", index, name), f"expected nothing behind {name}: it ends the rule")
    return found


def _action_name(reader: TableReader, index: int, item: Any) -> str:
    if not isinstance(item, dict) or len(item) != 1:
        expected = 'expected a table with one action, { reject = "5.7.1 Not accepted" }'
        reader.tell(("then", index), f"found {shown(item)}, {expected}")
        return ""
    [name] = item
    if name not in ACTIONS:
        reader.tell(("then", index, name), unknown_key(name, ACTIONS))
        return ""
    return str(name)


def _name(value: Any) -> str:
    name = some_text(value)
    if len(name) > NAME_CHARACTERS_MAX:
        raise ValueError(f"a name of at most {NAME_CHARACTERS_MAX} characters")
    return name


def _mode(value: Any) -> Mode:
    if value not in list(Mode):
        raise ValueError(f"one of {', '.join(Mode)}")
    return Mode(value)
