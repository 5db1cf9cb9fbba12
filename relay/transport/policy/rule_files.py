"""Load rule files: the [[rule]] and [[test]] tables of a folder, as one rule set.

Loading is atomic: after one fault or one failing test there is no rule set. PolicyError has all
faults, each with file, line and what was expected. A rule with a fault is never used in a weaker
form. The format is in docs/policy.md.

The rules of a tenant are named TENANT/NAME. Their files are inside the directory of the tenant.
Their actions affect only the mail of the tenant, and only as its key `may` allows. The tests of a
tenant run with the rules of the tenant alone.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from relay.base.clock import SystemClock
from relay.base.message.address import own_mailbox
from relay.base.message.content import size_of
from relay.base.message.envelope import domain_of
from relay.base.message.nexthop import ROUTE_PREFIX
from relay.base.phrases import shown, words_in
from relay.base.settings.document import (
    Document,
    Fault,
    SettingsError,
    dotted,
    read_document,
    unknown_key,
)
from relay.base.settings.tree import Tenant
from relay.base.settings.validation import sender_matches, usable_routes
from relay.base.settings.values import GROUPS_DIRECTORY, parse_duration
from relay.transport.policy import archives
from relay.transport.policy.actions import ACTIONS, FINAL, RuleAction
from relay.transport.policy.conditions import CONDITIONS, Condition
from relay.transport.policy.content_actions import SetSenderAction
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.globs import Groups
from relay.transport.policy.groups import (
    OptionalGroups,
    group_files,
    is_inside,
    other_directories,
    read_groups,
    visible_files,
)
from relay.transport.policy.patterns import SET_STEPS_MAX, Pattern, PatternError
from relay.transport.policy.recipient_actions import (
    AddressesAction,
    AfterHold,
    HoldAction,
    NextHopAction,
)
from relay.transport.policy.rule_test_reader import read_test
from relay.transport.policy.rule_tests import run_tests
from relay.transport.policy.rules import (
    ConditionSet,
    NestedConditions,
    NestedKey,
    OnError,
    Rule,
    RuleMode,
    RuleTest,
    first_of,
    too_large,
    too_many,
    too_much_mail,
)
from relay.transport.policy.table_reader import TableReader, some_text, tables, typed, unless_many

HOLD_S_MAX = 365 * 86400
# limit of rules: `any` and `all` inside each other
NESTED_MAX = 3
NOTICE_CHARACTERS_MAX = 2000
NAME_CHARACTERS_MAX = 100  # the name is the label of a metric
_RULE_KEYS = words_in("name mode when unless then stop on_error from until expires expired notice")
_clock = SystemClock()
_HOLD_KEYS = ("expires", "expired", "notice")
_NEVER_IGNORED = ("reject", "discard", "hold", "quarantine")  # unwanted mail would pass
FILES_MAX = 500
TENANT_TESTS_S_MAX = 10  # they run at each start, and before a reload
TENANT_TESTS_BYTES_MAX = 100 * 1024 * 1024
ACTIONS_MAX = 100  # of a rule: they are carried out without a pause
DIGEST_LENGTH = 12  # enough to distinguish the sets of one administrator


def read_rule(
    reader: TableReader, *, routes: Mapping[str, str] | None = None, groups: Groups
) -> Rule | None:
    """Return the rule of a table, None if it has faults.

    `routes` has the next hop of each configured route by its name; None if they are not known.
    `groups` are those of the directory.
    """
    reader.check_keys(_RULE_KEYS)
    actions = _actions(reader, routes)
    stop = reader.key("stop", typed(bool), default=False)
    if not actions and not stop and not reader.has_faults:
        reader.add_fault(
            ("then",), "found nothing to do, expected at least one action or stop = true"
        )
    on_error = reader.key("on_error", typed(OnError), default=OnError.DEFER)
    keys = [key for key, _ in actions]
    if on_error is OnError.IGNORE and (blocking := set(keys).intersection(_NEVER_IGNORED)):
        reader.add_fault(
            ("on_error",),
            f'found "ignore" beside {min(blocking)}, expected "defer": '
            "mail that the rule is to stop would pass",
        )
    rule = Rule(
        name=reader.required("name", _name, default=""),
        mode=reader.key("mode", typed(RuleMode), default=RuleMode.ENFORCE),
        when=_conditions(reader, "when", groups),
        unless=_conditions(reader, "unless", groups),
        actions=tuple(_with_hold_keys(reader, actions.values())),
        outcome=",".join(dict.fromkeys(keys)) or "stop",
        stop=stop,
        on_error=on_error,
        file=reader.document.file,
        line=reader.line,
        starts=reader.key("from", _day, default=""),
        ends=reader.key("until", _day, default=""),
    )
    if rule.starts > rule.ends > "":
        reader.add_fault(
            ("until",), f'found "{rule.ends}", expected no day before from, which is {rule.starts}'
        )
    return None if reader.has_faults else rule


def _conditions(reader: TableReader, key: str, groups: Groups) -> ConditionSet:
    inner = reader.subtable(key)
    if reader.table.get(key) == {}:
        inner.add_fault(
            (), "found no condition, expected at least one; leave the key out for all mail"
        )
    return _condition_set(inner, groups)


def _condition_set(reader: TableReader, groups: Groups, depth: int = 0) -> ConditionSet:
    reader.check_keys((*CONDITIONS, *NestedKey))
    conditions: list[Condition] = []
    for name, kind in CONDITIONS.items():  # in the order of evaluation, not of the file
        if name in reader.table:
            condition = reader.value(reader.table[name], (name,), _parser(kind, groups))
            conditions += [condition] if condition else []
    nested = [
        NestedConditions(key, tuple(_tables(reader, key, groups, depth=depth + 1)))
        for key in NestedKey
        if key in reader.table
    ]
    return ConditionSet.of(conditions, nested)


def _tables(
    reader: TableReader, key: NestedKey, groups: Groups, *, depth: int
) -> list[tuple[int, ConditionSet]]:
    """Return the tables of an `all` or `any` with their places, the deep ones last."""
    raw = reader.table[key]
    if depth > NESTED_MAX:
        reader.add_fault(
            (key,),
            f"found a list of conditions inside {NESTED_MAX} others, "
            f"expected at most {NESTED_MAX} inside each other",
        )
        return []
    if not isinstance(raw, list) or not raw:
        text = "an empty list" if raw == [] else shown(raw)
        expected = f'expected a list of tables of conditions, {key} = [ {{ subject = "a*" }} ]'
        reader.add_fault((key,), f"found {text}, {expected}")
        return []
    tables = []
    for index, table in enumerate(raw):
        inner = reader.subtable(key, index)
        if table == {}:
            inner.add_fault((), "found no condition in this table, expected at least one")
        tables.append((index, _condition_set(inner, groups, depth)))
    return sorted(tables, key=lambda pair: pair[1].is_deep)


def _parser(kind: type[Condition], groups: Groups) -> Callable[[Any], Condition]:
    parse: Callable[[Any, Groups], Condition] = kind.parse
    return lambda value: parse(value, groups)


def _actions(
    reader: TableReader, routes: Mapping[str, str] | None
) -> dict[tuple[str, int], RuleAction]:
    """Return the actions in their order, by name and position."""
    raw = reader.table.get("then", [])
    if not isinstance(raw, list) or len(raw) > ACTIONS_MAX:
        value = f"a list of {len(raw)}" if isinstance(raw, list) else shown(raw)
        expected = f"expected a list of at most {ACTIONS_MAX} actions"
        reader.add_fault(("then",), f"found {value}, {expected}")
        return {}
    actions: dict[tuple[str, int], RuleAction] = {}
    for index, table in enumerate(raw):
        name = _action_name(reader, index, table)
        if not name:
            continue
        parse: Callable[[Any], RuleAction] = ACTIONS[name].parse
        action = reader.value(table[name], ("then", index, name), parse)
        if action:
            actions[name, index] = action
        if isinstance(action, NextHopAction) and (fault := _route_fault(action, routes)):
            reader.add_fault(("then", index, name), fault)
        if name in FINAL and index < len(raw) - 1:
            reader.add_fault(
                ("then", index, name), f"expected no action after {name}: it ends the rule"
            )
    return actions


def _route_fault(action: NextHopAction, routes: Mapping[str, str] | None) -> str:
    """Return why a rule cannot send mail by this route, "" if it can or if that is unknown."""
    route = action.next_hop.removeprefix(ROUTE_PREFIX)
    if route == action.next_hop or routes is None:
        return ""
    usable = usable_routes(routes)
    expected = f"expected the name of a route: {', '.join(map(shown, usable)) or 'none is usable'}"
    if route not in routes:
        return f"found {shown(route)}, {expected}"
    if route not in usable:
        return f"found {shown(route)}, whose next_hop is {shown(routes[route])}, {expected}"
    return ""


def _with_hold_keys(reader: TableReader, actions: Collection[RuleAction]) -> Iterator[RuleAction]:
    """Yield the actions; a hold gets the keys of the rule that are about holds."""
    if not any(isinstance(action, HoldAction) for action in actions):
        for key in _HOLD_KEYS:
            if key in reader.table:
                reader.add_fault(
                    (key,), "found this key in a rule that holds nothing, expected a hold"
                )
    for action in actions:
        if isinstance(action, HoldAction):
            yield HoldAction(
                action.reason,
                expires_s=reader.key("expires", _duration, default=None),
                silent=reader.key("expired", typed(AfterHold), default=AfterHold.REPORT)
                is AfterHold.SILENT,
                notice=reader.key("notice", _notice, default=""),
            )
        else:
            yield action


def _duration(value: Any) -> float | None:
    seconds = parse_duration(value if isinstance(value, str) else "")
    if not 0 < seconds <= HOLD_S_MAX:
        raise ValueError(f"a duration of at most {HOLD_S_MAX // 86400} days")
    return seconds


def _day(value: Any) -> str:
    """Read a date of TOML, or a text. Raises ValueError."""
    with suppress(ValueError):
        day = date.fromisoformat(value) if isinstance(value, str) else value
        if type(day) is date and value in (day, day.isoformat()):  # no time of day, nor "20261201"
            return day.isoformat()
    raise ValueError("a date such as 2026-12-01")


def _notice(value: Any) -> str:
    """Read the text of a mail, which may have several lines. Raises ValueError."""
    plain = value.replace("\n", "").replace("\t", "") if isinstance(value, str) else ""
    if not plain.strip() or not plain.isprintable() or len(plain) > NOTICE_CHARACTERS_MAX:
        raise ValueError(f"a text of 1 to {NOTICE_CHARACTERS_MAX} characters")
    return str(value)


def _action_name(reader: TableReader, index: int, table: Any) -> str:
    if not isinstance(table, dict) or len(table) != 1:
        expected = 'expected a table with one action, { reject = "5.7.1 Not accepted" }'
        reader.add_fault(("then", index), f"found {shown(table)}, {expected}")
        return ""
    [name] = table
    if name not in ACTIONS:
        reader.add_fault(("then", index, name), unknown_key(name, ACTIONS))
        return ""
    return str(name)


def _name(value: Any) -> str:
    name = some_text(value)
    if len(name) > NAME_CHARACTERS_MAX:
        raise ValueError(f"a name of at most {NAME_CHARACTERS_MAX} characters")
    return name


class PolicyError(SettingsError):
    """The rule files have faults, or their tests fail."""


def load_rules(
    directory: Path,
    *,
    local_domains: Collection[str] = (),
    routes: Mapping[str, str] | None = None,
    loaded: str = "",
    config: Path | None = None,
    tenant: Tenant | None = None,
    shipped: Path | None = None,
    senders: Collection[str] = (),
) -> RuleSet:
    """Return the rules of `directory` if all tests pass; an empty folder is a valid rule set.

    `local_domains` are the configured domains, for tests that name no others; tests of a tenant use
    its domains. `routes` has the next hop of each configured route by its name. If it is None,
    nothing is checked that depends on the configuration. `senders` are patterns of addresses that
    set_sender may name besides those of local domains. `loaded` is the time now (RFC 3339), for
    journeys; `config` is the file that names `directory`. Files of `shipped` are read too, unless
    `directory` has one of the same name. Raises PolicyError.
    """
    rules = read_rules(
        directory,
        local_domains=local_domains,
        routes=routes,
        config=config,
        tenant=tenant,
        shipped=shipped,
        senders=senders,
    )
    local = local_domains if tenant is None else tenant.domains
    until_s = _clock.real_s() + TENANT_TESTS_S_MAX if tenant else math.inf
    faults = []
    for result in run_tests(rules, local_domains=local):
        place = result.test.file, result.test.line, f'test "{result.test.name}"'
        faults += [Fault(*place, failure) for failure in result.failures]
        if _clock.real_s() > until_s:
            text = f"found tests that take more than {TENANT_TESTS_S_MAX} s up to here"
            faults.append(Fault(*place, f"{text}, expected fewer or smaller ones"))
            break
    archives.reader.close()  # mail with archives may never come, and an idle process takes 7 MB
    if faults:
        raise PolicyError(faults)
    # A service keeps the rules while it runs, and does not need the messages of tests any more.
    tests = tuple(dataclasses.replace(test, content=b"") for test in rules.tests)
    return dataclasses.replace(rules, tests=tests, loaded=loaded)


def unread_directories(directory: Path) -> str:
    """Return a warning about directories that are not read because no tenants are known, or ""."""
    names = ", ".join(path.name for path in other_directories(directory))
    return f"not read: {names} (rules of tenants)" if names else ""


def faults_of_reach(
    rules: Iterable[Rule],
    tenant: Tenant | None,
    *,
    own: Collection[str],
    senders: Collection[str] = (),
) -> Iterator[Fault]:
    """Yield a fault for each action that its rule may not have.

    `own` are all own domains; `tenant` is None for the rules of the operator. `senders`: see
    load_rules().
    """
    for rule in rules:
        for action in rule.actions:
            key = next(name for name, kind in ACTIONS.items() if kind is type(action))
            reasons = (_foreign_sender(action, own, senders), _beyond(action, key, tenant))
            for text in filter(None, reasons):
                yield Fault(rule.file, rule.line, f'rule "{rule.name}": {key}', text)


def _foreign_sender(action: RuleAction, own: Collection[str], senders: Collection[str]) -> str:
    """Return why an action may not set this sender, "" if it may."""
    if not isinstance(action, SetSenderAction) or domain_of(action.address) in own:
        return ""
    address = own_mailbox(action.address)  # a host may know its login without a tag only
    if any(
        sender_matches(pattern, address) and ("*" in pattern or pattern == address)
        for pattern in senders
    ):
        return ""
    of_routes = ", or auth.user or sender of a [[route]]" if senders else ""
    names = ", ".join(sorted((*own, *senders))) or "there is none"
    return (
        f"found {shown(action.address)}, expected an address of an own domain{of_routes}: {names}"
    )


def _beyond(action: RuleAction, key: str, tenant: Tenant | None) -> str:
    """Return the fault of an action with an address or route that is not the tenant's, or ""."""
    if tenant is None:
        return ""
    place = f'[[tenant]] "{tenant.name}"'
    if isinstance(action, NextHopAction) and action.next_hop not in tenant.may:
        next_hop = action.next_hop
        expected = (
            f"{next_hop} in the key may of {place}"
            if next_hop.startswith(ROUTE_PREFIX)
            else f'"route:NAME" with a route that the key may of {place} has'
        )
        return f"found {shown(next_hop)}, expected {expected}"
    if key in tenant.may or not isinstance(action, AddressesAction | SetSenderAction):
        return ""
    named = (action.address,) if isinstance(action, SetSenderAction) else action.addresses
    foreign = (address for address in named if domain_of(address) not in tenant.domains)
    if (address := next(foreign, None)) is None:
        return ""
    names = ", ".join(tenant.domains)
    return (
        f"found {shown(address)}, expected an address in the tenant's domains ({names}), "
        f'or "{key}" in the key may of {place}'
    )


def read_rules(
    directory: Path,
    *,
    local_domains: Collection[str] = (),
    routes: Mapping[str, str] | None = None,
    config: Path | None = None,
    tenant: Tenant | None = None,
    with_tests: bool = True,
    shipped: Path | None = None,
    senders: Collection[str] = (),
) -> RuleSet:
    """Return the rules as load_rules() does, without running their tests. Raises PolicyError."""
    faults: list[Fault] = []
    rules: list[Rule] = []
    tests: list[RuleTest] = []
    names: list[object] = []  # of all rules, also of those with faults
    incomplete: dict[str, str] = {}  # the warning about each rule that lacks a group
    prefix = f"{tenant.name}/" if tenant else ""
    home = directory.parent.resolve() / directory.name if tenant else None
    files = _files(directory, config, tenant=tenant, shipped=shipped)
    group_list = group_files(directory, faults, shipped=shipped)
    if home is not None:
        faults += _faults_of_home(home, files, group_list)
    groups, group_text = read_groups(group_list, faults)
    digest = sha256(group_text.encode())
    for file in unless_many(faults, files):
        try:
            document = read_document(file)
        except SettingsError as error:
            faults += error.faults
            continue
        digest.update(os.fsencode(file.name) + msgspec.json.encode(document.table))
        for key in unless_many(faults, document.table):
            if key not in ("rule", "test"):
                faults.append(document.fault((key,), unknown_key(key, ("rule", "test"))))
        if tenant and (more := list(too_many(document, len(names)))):
            raise PolicyError(more)
        for reader in tables(document, "rule", faults):
            is_off = reader.table.get("mode") == RuleMode.OFF
            known = OptionalGroups(groups) if is_off else groups
            rule = read_rule(reader, routes=routes, groups=known)
            if rule:
                rule = msgspec.structs.replace(rule, name=f"{prefix}{rule.name}")
                rules.append(rule)
            if rule and isinstance(known, OptionalGroups) and known.missing:
                incomplete[rule.name] = _missing_group(rule, known.missing)
            names.append(f"{prefix}{reader.table.get('name')}")
        if with_tests:
            tests += _tests(document, faults, prefix=prefix, home=home, before=tests)
    if routes is not None:
        faults += faults_of_reach(rules, tenant, own=local_domains, senders=senders)
    faults += _unknown_names(tests, names)
    faults += [*_duplicate_names(rules), *_too_many_patterns(rules), *too_much_mail(rules)]
    if faults:
        raise PolicyError(first_of(directory, faults))
    name = digest.hexdigest()[:DIGEST_LENGTH] if files else ""
    usable = tuple(test for test in tests if test.enforced.isdisjoint(incomplete))
    everything = [
        f'{rule.file}:{rule.line}: rule "{rule.name}": no condition leaves out any mail, found'
        f" {rule.outcome} of all mail"
        for rule in rules
        if rule.mode is RuleMode.ENFORCE and rule.takes_all
        if rule.outcome.rpartition(",")[2] in FINAL
    ]
    warnings = (*incomplete.values(), *everything)
    try:
        return RuleSet(tuple(rules), usable, files, digest=name, warnings=warnings)
    except PatternError as error:
        message = f"found rules whose {error}, expected fewer or smaller ones"
        raise PolicyError([Fault(directory, 0, "policy.directory", message)]) from None


def _tests(
    document: Document,
    faults: list[Fault],
    *,
    prefix: str,
    home: Path | None,
    before: list[RuleTest],
) -> Iterator[RuleTest]:
    """Yield the tests of a file; `before` are the tests of the files before it."""
    octets = sum(size_of(test.content) for test in before)
    for reader in tables(document, "test", faults):
        test = read_test(reader, prefix=prefix, home=home)
        octets += size_of(test.content) if test else 0
        if home and octets > TENANT_TESTS_BYTES_MAX:
            text = f"found messages of more than {TENANT_TESTS_BYTES_MAX >> 20} MiB up to here"
            faults.append(document.fault(reader.path, f"{text}, expected smaller ones"))
            return
        if test:
            yield test


def _faults_of_home(
    home: Path, files: Iterable[Path], group_list: Iterable[Path]
) -> Iterator[Fault]:
    """Yield a fault for each directory of a tenant other than `groups`.

    Raises PolicyError for links that lead out of `home`, and for files that are too large.
    """
    places = (home, home / GROUPS_DIRECTORY, *files)
    if faults := [*_outside(home, places)] or [*_outside(home, group_list)]:
        raise PolicyError(faults)
    if faults := [*too_large(home, (*files, *group_list))]:
        raise PolicyError(faults)
    for path in other_directories(home):
        text = f"found a directory, expected none but {GROUPS_DIRECTORY}: nothing reads it"
        yield Fault(path, 0, "", text)


def _outside(home: Path, files: Iterable[Path]) -> Iterator[Fault]:
    """Yield a fault for each link out of `home`: a tenant could read files of others by it."""
    for file in files:
        if not is_inside(file, home):
            yield Fault(file, 0, "", f"found a link out of {home}, expected a file in it")


def _missing_group(rule: Rule, name: str) -> str:
    return (
        f'{rule.file}:{rule.line}: rule "{rule.name}": found no group {shown(name)}, expected '
        "a file in groups; the rule is off, and tests that enforce it are not run"
    )


def _too_many_patterns(rules: Iterable[Rule]) -> Iterator[Fault]:
    """Yield a fault for each field with too many patterns, at the rule that exceeds the limit."""
    known: set[tuple[str, Pattern]] = set()
    steps: dict[str, int] = {}
    for rule in rules:
        for field, pattern in rule.patterns():
            if (field, pattern) in known:
                continue
            known.add((field, pattern))
            before = steps.get(field, 0)
            steps[field] = before + pattern.steps
            if before <= SET_STEPS_MAX < steps[field]:
                message = (
                    f"found patterns for {field} of more than {SET_STEPS_MAX} steps together "
                    "with those of the rules before, expected fewer or smaller ones"
                )
                yield Fault(rule.file, rule.line, f'rule "{rule.name}"', message)


def _files(
    directory: Path, config: Path | None, *, tenant: Tenant | None, shipped: Path | None
) -> tuple[Path, ...]:
    """Return the rule files in the order of their names. `config` is the file that names them."""
    key = ("policy", "directory")
    try:
        files = visible_files(".toml", *([shipped] if shipped else []), directory)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        text = f"found no folder of rules {directory} ({reason}), expected one; it may be empty"
        place = read_document(config) if config and not tenant else Document(directory, {}, {})
        raise PolicyError([place.fault(() if tenant else key, text)]) from None
    if odd := [file for file in files if not file.name.isprintable()]:
        message = "found a name with characters that cannot be shown, expected another one"
        raise PolicyError([Fault(file, 0, "", message) for file in odd[:FILES_MAX]])
    if len(files) > FILES_MAX:
        message = f"found {len(files)} files, expected at most {FILES_MAX}"
        raise PolicyError([Fault(directory, 0, dotted(() if tenant else key), message)])
    return files


def _duplicate_names(rules: Iterable[Rule]) -> list[Fault]:
    """Return a fault per duplicate name: traces and metrics identify a rule by its name."""
    first: dict[str, Rule] = {}
    faults = []
    for rule in rules:
        other = first.setdefault(rule.name, rule)
        if other is not rule:
            message = f"found the name of the rule at {other.file}:{other.line}, expected another"
            faults.append(Fault(rule.file, rule.line, f'rule "{rule.name}": name', message))
    return faults


def _unknown_names(tests: Iterable[RuleTest], names: Collection[object]) -> Iterator[Fault]:
    """Yield a fault for each rule that a test enforces and that does not exist."""
    for test in tests:
        for name in sorted(name for name in test.enforced if name not in names):
            message = f"found {shown(name)}, expected the name of a rule"
            yield Fault(test.file, test.line, f'test "{test.name}": enforce', message)
