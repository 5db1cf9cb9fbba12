"""Add a reply to a scenario and remove one: in its values and in its TOML text.

Comments and layout of the text stay where that is possible; otherwise it is written again from the
values.
"""

import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from relay.internet.scenario_file import ScenarioText, parse_scenario, scenario_of


@dataclass(frozen=True, slots=True)
class EditedScenario:
    """A scenario in which the domain of this number has other replies.

    `kept` are the former numbers of that domain's replies, -1 for a new one.
    """

    text: ScenarioText
    domain: int
    kept: tuple[int, ...]


def with_reply(text: ScenarioText, domain: str, reply: Mapping[str, Any]) -> EditedScenario:
    """Return a scenario with one more reply in a domain, before its others.

    A domain that is not described is added behind the others. Raises SettingsError.
    """
    name = domain.strip().lower()
    domains = text.scenario.domain
    number = next((i for i, one in enumerate(domains) if name in one.names), len(domains))

    def add(content: Any) -> None:
        if number == len(domains):
            if "domain" not in content:
                content["domain"] = _tables(content)
            content["domain"].append(_table(content, {"name": name}))
        table = content["domain"][number]
        if "reply" not in table:
            table["reply"] = _tables(content)
        table["reply"].insert(0, _table(content, reply))

    before = len(domains[number].reply) if number < len(domains) else 0
    return EditedScenario(_edited(text, add), number, (-1, *range(before)))


def without_reply(text: ScenarioText, domain: int, reply: int) -> EditedScenario:
    """Return a scenario without one reply, both by number. Raises IndexError."""
    numbers = range(len(text.scenario.domain[domain].reply))
    if domain < 0 or reply not in numbers:
        raise IndexError(reply)

    def remove(content: Any) -> None:
        del content["domain"][domain]["reply"][reply]

    kept = tuple(one for one in numbers if one != reply)
    return EditedScenario(_edited(text, remove), domain, kept)


def _edited(text: ScenarioText, change: Callable[[Any], None]) -> ScenarioText:
    """Return the scenario with a change, which is given a table, or a document of tomlkit's."""
    table = tomllib.loads(text.toml)
    change(table)
    by_values = scenario_of(table)
    with suppress(TOMLKitError, AttributeError, LookupError, TypeError, ValueError):
        document = tomlkit.parse(text.toml)
        change(document)
        kept = document.as_string()
        if tomllib.loads(kept) == table:
            return parse_scenario(kept)
    return by_values


def _tables(content: Any) -> Any:
    return tomlkit.aot() if isinstance(content, tomlkit.TOMLDocument) else []


def _table(content: Any, values: Mapping[str, Any]) -> Any:
    if not isinstance(content, tomlkit.TOMLDocument):
        return dict(values)
    table = tomlkit.table()
    table.update(values)
    table.add(tomlkit.nl())
    return table
