"""Read scenarios: TOML files, the shipped ones by name, and what a request brings; add a reply to
a scenario and remove one, in its values and in its TOML text.

All faults of a scenario are reported together, each with its line, as those of relay.toml. Nothing
in a scenario names a file or a variable of the environment. An edited text is written again from
the values, without comments. The format is in docs/internet.md.
"""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tomlkit

from relay.base.message.envelope import domain_of
from relay.base.phrases import counted, shown
from relay.base.settings import document as documents
from relay.base.settings.environment import shipped
from relay.base.settings.reader import DocumentReader
from relay.development.internet import scenario as scenarios

SCENARIO_BYTES_MAX = 256 * 1024
DOMAINS_MAX = 100
NAMES_MAX = 1000  # domains and their aliases
HOSTS_MAX = 100  # each has an address and a listener of its own
REPLIES_MAX = 1000
GRAPH_FAULTS_MAX = 100
RATE_MAX = 10_000
DELAY_S_MAX = 3600.0
_GLOB_CHARACTERS_MAX = 200
_UNNAMED = Path("scenario")
_WITH_SENDER = scenarios.WITH_RECIPIENTS | {"MAIL"}
_VERBS_OF_ACTION = {"bad-certificate": "STARTTLS", "servfail": "DNS", "nxdomain": "DNS"}


@dataclass(frozen=True, slots=True)
class ScenarioText:
    """A scenario, and the TOML text that says the same."""

    scenario: scenarios.Scenario
    toml: str


EMPTY = ScenarioText(scenarios.Scenario(), "")


def read_scenarios(names: Sequence[str]) -> ScenarioText:
    """Return the scenario of files (PATH.toml) and of shipped names, all together.

    After a shipped name, ":REPLY" makes every recipient of its domains get that reply. Raises
    SettingsError.
    """
    texts = [_named(name) for name in names]
    if not texts:
        return EMPTY
    if len(texts) == 1:
        return texts[0]
    table: dict[str, Any] = {}
    for scenario_text in texts:
        for key, value in tomllib.loads(scenario_text.toml).items():
            table[key] = [*table.get(key, ()), *value] if isinstance(value, list) else value
    return scenario_of(table, Path(" ".join(names)))


def parse_scenario(text: str, file: Path = _UNNAMED) -> ScenarioText:
    """Return the scenario of a TOML text; its faults name it `file`. Raises SettingsError."""
    if len(text.encode()) > SCENARIO_BYTES_MAX:
        message = f"found more than {SCENARIO_BYTES_MAX // 1024} KiB, expected a smaller scenario"
        raise documents.SettingsError([documents.Fault(file, 0, "", message)])
    return ScenarioText(_checked(documents.parse_document(file, text)), text)


def scenario_of(table: Mapping[str, Any], file: Path = _UNNAMED) -> ScenarioText:
    """Return the scenario of a table with the keys of a file. Raises SettingsError."""
    scenario = _checked(documents.Document(file, table, {}))
    return ScenarioText(scenario, tomlkit.dumps(table))


def shipped_scenarios() -> dict[str, Path]:
    """Return the scenarios that are installed with Relay, by name."""
    return {file.stem: file for file in sorted(shipped("scenarios").glob("*.toml"))}


@cache
def reply_names() -> Mapping[str, Sequence[str]]:
    """Return the shipped scenarios and the names of their replies, which follow a colon."""
    return {
        name: [
            reply.name
            for domain in read_scenarios([name]).scenario.domain
            for reply in domain.reply
        ]
        for name in shipped_scenarios()
    }


def _named(name: str) -> ScenarioText:
    if "/" in name or name.endswith(".toml"):
        return parse_scenario(documents.read_text(Path(name)), Path(name))
    return read_shipped_scenario(name)


def read_shipped_scenario(name: str) -> ScenarioText:
    """Return a shipped scenario, of a name or NAME:REPLY. Raises SettingsError."""
    name, _, reply = name.partition(":")
    known = shipped_scenarios()
    if name not in known:
        message = f"found no scenario of this name, expected PATH.toml or {', '.join(known)}"
        raise documents.SettingsError([documents.Fault(Path(name), 0, "", message)])
    scenario_text = parse_scenario(documents.read_text(known[name]), known[name])
    return _always(scenario_text, reply, known[name]) if reply else scenario_text


def _always(text: ScenarioText, reply: str, file: Path) -> ScenarioText:
    """Return a scenario whose domains give the reply of this name to every recipient."""
    table = tomllib.loads(text.toml)
    names = [rule["name"] for domain in table["domain"] for rule in domain.get("reply", ())]
    if reply not in names:
        expected = f"one of {', '.join(names)}" if names else f"{file.stem} alone"
        message = f"found no reply {shown(reply)}, expected {expected}"
        raise documents.SettingsError([documents.Fault(file, 0, "", message)])
    for domain in table["domain"]:
        first = [{**rule, "recipient": "*"} for rule in domain["reply"] if rule["name"] == reply]
        domain["reply"] = [*first, *domain["reply"]]
    return scenario_of(table, file)


def _checked(document: documents.Document) -> scenarios.Scenario:
    reader = DocumentReader(document, base=Path(), environ=None)
    values = reader.fields(scenarios.Scenario, document.table, ())
    faults = list(reader.faults)
    for path, made in reader.read:
        for key, message in _faults_in(made):
            place = (*path, *key)
            faults.append(document.fault(place, message))
    scenario = scenarios.Scenario(**values)
    faults += [document.fault(path, message) for path, message in _faults_of(scenario)]
    if faults:
        raise documents.SettingsError(faults)
    return _with_wire_replies(scenario)


def _with_wire_replies(scenario: scenarios.Scenario) -> scenarios.Scenario:
    return dataclasses.replace(
        scenario,
        domain=tuple(
            dataclasses.replace(
                domain,
                reply=tuple(
                    dataclasses.replace(rule, reply=scenarios.wire_reply(rule.reply))
                    if rule.reply
                    else rule
                    for rule in domain.reply
                ),
                limit=tuple(
                    dataclasses.replace(limit, reply=scenarios.wire_reply(limit.reply))
                    for limit in domain.limit
                ),
            )
            for domain in scenario.domain
        ),
    )


def _faults_in(made: object) -> Iterator[tuple[documents.KeyPath, str]]:
    """Yield the faults of one table, with their keys in it."""
    match made:
        case scenarios.ScriptedReply():
            yield from _faults_of_reply(made)
        case scenarios.RateLimit():
            yield from _faults_of_limit(made)
        case scenarios.RemoteDomain():
            yield from _faults_of_domain(made)
        case scenarios.MxHost():
            yield from _delays(made, "latency")
        case scenarios.GraphFault():
            yield from _lengths(made, "path", "account")


def _faults_of_reply(reply: scenarios.ScriptedReply) -> Iterator[tuple[documents.KeyPath, str]]:
    if bool(reply.reply) == bool(reply.action) and not (reply.delay and not reply.reply):
        which = "both" if reply.reply else "neither"
        yield (), f"found {which} reply and action, expected one of them (or a delay)"
    if reply.reply:
        yield from _faults_of_text(reply.reply, reply.verb)
    needed = _VERBS_OF_ACTION.get(reply.action)
    if needed and reply.verb != needed:
        yield ("action",), f'found "{reply.action}", expected it only with the verb {needed}'
    if reply.verb == "DNS" and (reply.reply or reply.delay or reply.action == "drop"):
        yield ("verb",), 'found "DNS", expected the action servfail, nxdomain or stall'
    for key, verbs in (("recipient", scenarios.WITH_RECIPIENTS), ("sender", _WITH_SENDER)):
        glob = getattr(reply, key)
        if glob and reply.verb not in verbs:
            allowed = ", ".join(sorted(verbs))
            yield (key,), f"found {shown(glob)}, expected it only with {allowed}"
    yield from _lengths(reply, "recipient", "sender", "host")
    if "@" in reply.recipient:
        yield (
            ("recipient",),
            f"found {shown(reply.recipient)}, expected the part before the @ only",
        )
    yield from _delays(reply, "delay")


def _faults_of_text(text: str, verb: str) -> Iterator[tuple[documents.KeyPath, str]]:
    try:
        wire = scenarios.wire_reply(text)
    except ValueError as error:
        yield ("reply",), f"found {shown(text)}, expected {error}"
        return
    if wire[0] == "3" and verb != "DATA":
        yield ("reply",), f"found {shown(text)}, expected a code of 2yz, 4yz or 5yz"


def _faults_of_limit(limit: scenarios.RateLimit) -> Iterator[tuple[documents.KeyPath, str]]:
    limits = [number for number in (limit.connections, limit.messages, limit.recipients) if number]
    if len(limits) != 1:
        yield (), f"found {len(limits)} of connections, messages and recipients, expected one"
    elif limit.rate[0] > RATE_MAX:
        yield (), f"found a limit of {limit.rate[0]}, expected at most {RATE_MAX}"
    yield from _faults_of_text(limit.reply, limit.verb)


def _faults_of_domain(domain: scenarios.RemoteDomain) -> Iterator[tuple[documents.KeyPath, str]]:
    if domain.null_mx and domain.mx:
        yield ("mx",), f"found {counted(len(domain.mx), 'host')} and null_mx, expected one of them"
    for key, setting in (("mta_sts", domain.mta_sts), ("dane", domain.dane)):
        if domain.null_mx and setting:
            expected = "expected one of them: mail has no host"
            yield (key,), f"found {shown(setting)} and null_mx, {expected}"
    hosts = [host.host for host in domain.hosts]
    for number, reply in enumerate(domain.reply):
        if reply.verb == "DNS" and reply.host in domain.names and reply.host not in hosts:
            expected = "expected a mail host, or no host for a fault of the domain"
            yield ("reply", number, "host"), f"found {shown(reply.host)}, {expected}"
    yield from _delays(domain, "latency", "greylist")


def _lengths(made: object, *keys: str) -> Iterator[tuple[documents.KeyPath, str]]:
    """Yield the globs that are too long: each is made into a regular expression."""
    for key in keys:
        length = len(getattr(made, key))
        if length > _GLOB_CHARACTERS_MAX:
            yield (key,), f"found {length} characters, expected {_GLOB_CHARACTERS_MAX} at most"


def _delays(made: object, *keys: str) -> Iterator[tuple[documents.KeyPath, str]]:
    for key in keys:
        if getattr(made, key) > DELAY_S_MAX:
            yield (key,), f"found {getattr(made, key):g} seconds, expected an hour at most"


def _faults_of(scenario: scenarios.Scenario) -> Iterator[tuple[documents.KeyPath, str]]:
    """Yield the faults that concern several tables."""
    replies = sum(len(domain.reply) + len(domain.limit) for domain in scenario.domain)
    names = sum(len(domain.names) for domain in scenario.domain)
    hosts = {host.host for domain in scenario.domain for host in domain.hosts}
    for key, number, most, noun in (
        ("domain", len(scenario.domain), DOMAINS_MAX, "domain"),
        ("domain", names, NAMES_MAX, "name"),
        ("domain", len(hosts), HOSTS_MAX, "host"),
        ("domain", replies, REPLIES_MAX, "reply"),
        ("graph", len(scenario.graph), GRAPH_FAULTS_MAX, "fault"),
    ):
        if number > most:
            yield (key,), f"found {counted(number, noun)}, expected at most {most}"
    first: dict[str, int] = {}
    for index, domain in enumerate(scenario.domain):
        for name in domain.names:
            if first.setdefault(name, index) != index:
                yield ("domain", index), f'found "{name}" a second time, expected each name once'


def with_reply(text: ScenarioText, domain: str, reply: Mapping[str, Any]) -> ScenarioText:
    """Return a scenario with one more reply in a domain, before its others.

    A domain that is not described is added behind the others. Raises SettingsError.
    """
    name = domain_of(f"@{domain.strip()}")
    domains = text.scenario.domain
    number = next((i for i, domain in enumerate(domains) if name in domain.names), len(domains))

    table = tomllib.loads(text.toml)
    tables = table.setdefault("domain", [])
    if number == len(domains):
        tables.append({"name": name})
    tables[number]["reply"] = [dict(reply), *tables[number].get("reply", ())]
    return scenario_of(table)


def without_reply(text: ScenarioText, domain: int, reply: int) -> ScenarioText:
    """Return a scenario without one reply, both by number. Raises IndexError."""
    if domain < 0 or reply not in range(len(text.scenario.domain[domain].reply)):
        raise IndexError(reply)

    table = tomllib.loads(text.toml)
    del table["domain"][domain]["reply"][reply]
    return scenario_of(table)
