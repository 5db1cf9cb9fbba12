"""Rules of tenants: load the set of each tenant, keep a copy of the last good set on disk, and
decide which set is active while the files of a tenant have a fault.

A fault in the files of one tenant changes nothing for other tenants. At a reload, the active set of
the tenant remains active. At a start, the last good set in STATE/policies/NAME/HASH is used, if the
configuration still allows all that its rules do; otherwise the tenant has no rules, and its mail
waits. relay/transport/policy/rule_files.py decides what rules of tenants must not do.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec import Struct

from relay.base.clock import Clock, rfc3339
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.files import create_file, fsync_path
from relay.base.observe.logs import get_logger
from relay.base.phrases import named, shown
from relay.base.settings.document import Fault, SettingsError, read_document, read_text
from relay.base.settings.environment import is_image
from relay.base.settings.tree import Settings, Tenant
from relay.base.settings.validation import next_hops_by_name, senders_of
from relay.base.settings.values import GROUPS_DIRECTORY
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.groups import group_files, other_directories
from relay.transport.policy.rule_book import RuleBook, TenantRules
from relay.transport.policy.rule_files import PolicyError, faults_of_reach, load_rules, read_rules

_log = get_logger("app")
KEPT_SETS = "policies"  # a directory in state_dir
_EMPTY = "empty"  # stands for the hash of a set without files
_PART = ".part"
_FAULTS_SHOWN = 20
_NONE = "none: its mail is deferred"


class TenantSet(Struct, frozen=True):
    """The active rules of a tenant."""

    tenant: Tenant
    rules: RuleSet | None  # None: no set can be used, and mail of the tenant waits
    # when the files were last loaded without a fault; without rules, the time of the first try
    good_us: int
    faults: tuple[Fault, ...] = ()  # of the files; if any, `rules` are an older set, or None


class LastGoodSets:
    """The last good set of each tenant: a copy of the rule files and groups, below state_dir.

    A copy is written under a temporary name, synced, and renamed when it is complete. The hash of
    its files is compared when it is read, because a backup copies file by file.
    """

    def __init__(self, state_dir: Path, crash: CrashPoints) -> None:
        self._state_dir, self._crash = state_dir, crash
        self._top = state_dir / KEPT_SETS
        self._kept: dict[str, str] = {}  # the hash of each copy that is on disk, by tenant

    def keep_all(self, sets: Mapping[str, TenantSet], directory: Path) -> None:
        """Copy the sets without a fault, which were loaded from `directory`. Copies of tenants that
        are not in `sets` are removed; others remain. A set that cannot be copied is logged. Blocks.
        """
        for name, made in sets.items():
            try:
                if made.rules is not None and not made.faults:
                    self.keep(made, made.rules, directory / name)
            except (OSError, SettingsError) as error:
                _log.warning("the rules of a tenant are not kept", tenant=name, error=str(error))
        with suppress(OSError):  # no set was ever copied
            for old in self._top.iterdir():
                if old.name not in sets:  # another tenant may get its name
                    shutil.rmtree(old, ignore_errors=True)

    def keep(self, made: TenantSet, rules: RuleSet, source: Path) -> None:
        """Copy the set that was loaded from `source`, and remove older copies. Raises OSError, and
        SettingsError for files that have changed since they were loaded.
        """
        name = made.tenant.name
        home = self._top / name
        target = home / (rules.digest or _EMPTY)
        is_known = self._kept.pop(name, None) == target.name and target.exists()
        if not is_known and not self._has(target, rules):
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = home / _PART
            for old in (part, target):  # cut short, or damaged
                if old.exists():
                    shutil.rmtree(old)
            _copy(rules, source, part)
            if not self._has(part, rules):
                raise SettingsError([Fault(source, 0, "", "found files that have just changed")])
            part.rename(target)
            for folder in (home, self._top, self._state_dir):
                fsync_path(folder)
            self._crash.reached(CrashPoint.TENANT_SET_KEPT)
        os.utime(target, ns=(made.good_us * 1000, made.good_us * 1000))
        if others := [path for path in home.iterdir() if path != target]:
            for other in others:
                shutil.rmtree(other)
            fsync_path(home)
        self._kept[name] = target.name

    @staticmethod
    def _has(folder: Path, rules: RuleSet) -> bool:
        """Return whether a directory has these rules."""
        with suppress(SettingsError):
            return read_rules(folder, with_tests=False).digest == rules.digest
        return False

    def load(self, tenant: Tenant) -> TenantSet | None:
        """Return the last good set of a tenant, or None.

        Its tests passed before it was copied, and are not run again.
        """
        with suppress(OSError):
            folders = [path for path in (self._top / tenant.name).iterdir() if path.name != _PART]
            times = {path: path.stat().st_mtime_ns for path in folders}
            for folder in sorted(folders, key=times.__getitem__, reverse=True):
                try:
                    rules = read_rules(folder, tenant=tenant, with_tests=False)
                    digest = rules.digest or _EMPTY
                    if digest == folder.name:
                        return TenantSet(tenant, rules, times[folder] // 1000)
                    why = f"found files with the hash {digest}, expected {folder.name}"
                except PolicyError as error:
                    why = str(error)
                _log.warning(
                    "a copy of the rules of a tenant is damaged, and not used",
                    tenant=tenant.name,
                    copy=str(folder),
                    error=why,
                )
        return None


def _copy(rules: RuleSet, source: Path, part: Path) -> None:
    """Copy the files of a set, and sync them and their directories."""
    groups = part / GROUPS_DIRECTORY
    groups.mkdir(mode=0o700, parents=True)
    for folder, files in ((part, rules.files), (groups, group_files(source, []))):
        for file in files:
            create_file(folder / file.name, read_text(file).encode(), mode=0o600)
    fsync_path(groups)
    fsync_path(part)


def load_tenants(
    settings: Settings,
    last_good: LastGoodSets,
    *,
    before: Mapping[str, TenantSet],
    clock: Clock,
    examine: Callable[[RuleSet], object],
) -> dict[str, TenantSet]:
    """Load the set of each tenant. After a fault, return the set in `before`, else the last good
    set. `examine` is called with each set that was loaded, and logs warnings.
    """
    load = partial(_load, clock=clock, examine=examine)
    return {
        tenant.name: load(tenant, settings, last_good, before=before.get(tenant.name))
        for tenant in settings.tenant
    }


def _load(
    tenant: Tenant,
    settings: Settings,
    last_good: LastGoodSets,
    *,
    before: TenantSet | None,
    clock: Clock,
    examine: Callable[[RuleSet], object],
) -> TenantSet:
    now_us = clock.time_us()
    loaded = rfc3339(now_us)
    try:
        return TenantSet(tenant, load_set(settings, tenant, loaded=loaded, examine=examine), now_us)
    except PolicyError as error:
        faults = error.faults
    for old in filter(None, (before, last_good.load(tenant))):
        if old.rules is not None and not any(
            faults_of_reach(old.rules.rules, tenant, own=settings.own_domains)
        ):
            rules = old.rules if old.rules.loaded else dataclasses.replace(old.rules, loaded=loaded)
            chosen = TenantSet(tenant, rules, old.good_us, faults)
            break
    else:
        since_us = before.good_us if before is not None and before.rules is None else now_us
        chosen = TenantSet(tenant, None, since_us, faults)
    in_force = f"the last good ones, {chosen.rules.digest or _EMPTY}" if chosen.rules else _NONE
    for fault in faults[:_FAULTS_SHOWN]:
        _log.warning("a fault in the rules of a tenant", tenant=tenant.name, fault=str(fault))
    _log.warning(
        "the rules of a tenant are not its newest ones",
        tenant=tenant.name,
        faults=len(faults),
        in_force=in_force,
    )
    return chosen


def rules_of_a_start(
    settings: Settings, file: Path, clock: Clock
) -> tuple[RuleBook, Mapping[str, TenantSet]]:
    """Return the rules that a start would use, and the sets of tenants. The tests of the operator's
    rules are not run. Raises PolicyError for faults of the operator's rules.
    """
    operator = load_set(settings, None, config=file, runs_tests=False)
    check_operator(settings, file, operator)
    kept = LastGoodSets(settings.state_dir, CrashPoints(""))
    sets = load_tenants(settings, kept, before={}, clock=clock, examine=lambda _: None)
    of_tenants = ((tenant_set.tenant, tenant_set.rules) for tenant_set in sets.values())
    return book_of([(None, operator), *of_tenants], settings), sets


def load_set(
    settings: Settings,
    tenant: Tenant | None,
    *,
    config: Path | None = None,
    loaded: str = "",
    runs_tests: bool = True,
    examine: Callable[[RuleSet], object] = lambda _: None,
    before: RuleSet | None = None,
) -> RuleSet:
    """Return the set of a tenant, or the set of the operator if `tenant` is None. Raises
    PolicyError; for a tenant, other errors are converted to it. `before` is the set in force.
    """
    directory = settings.policy.directory / (tenant.name if tenant else "")
    if (
        not (tenant or settings.policy.shipped or (before and before.files))
        and not directory.exists()
        and (not settings.own_domains or _is_of_image(config))
    ):
        text = f"found no folder of rules {directory}: there are none"
        rules = RuleSet(warnings=(text,) if is_image() else ())
        examine(rules)
        return rules
    read = partial(load_rules, loaded=loaded) if runs_tests else read_rules
    try:
        rules = read(
            directory,
            local_domains=settings.own_domains,
            config=config,
            tenant=tenant,
            routes=next_hops_by_name(settings.route),
            senders=() if tenant else senders_of(settings.route),
            shipped=None if tenant else settings.policy.shipped,
        )
        examine(rules)
    except PolicyError:
        raise
    except Exception as error:
        if tenant is None:
            raise
        _log.exception("the rules of a tenant cannot be loaded", tenant=tenant.name)
        text = f"internal error: {error!r}; expected rules that can be loaded"
        raise PolicyError([Fault(directory, 0, f'tenant "{tenant.name}"', text)]) from None
    return rules


def _is_of_image(config: Path | None) -> bool:
    """Return whether this is the image, and the file does not say where the rules are: a volume
    that has the file may be unable to have an empty folder.
    """
    policy = read_document(config).table.get("policy", {}) if config and is_image() else None
    return policy is not None and "directory" not in policy


def load_strictly(
    settings: Settings, file: Path, *, runs_tests: bool = True
) -> list[tuple[Tenant | None, RuleSet]]:
    """Return the set of the operator and the set of each tenant. `settings` were read from `file`.

    Raises PolicyError with the faults of all sets.
    """
    faults: list[Fault] = []
    sets: list[tuple[Tenant | None, RuleSet]] = []
    for tenant in (None, *settings.tenant):
        try:
            rules = load_set(settings, tenant, config=file, runs_tests=runs_tests)
            sets.append((tenant, rules))
            if tenant is None:
                check_operator(settings, file, rules)
        except PolicyError as error:
            faults += error.faults
    if faults:
        raise PolicyError(faults)
    return sets


def check_operator(settings: Settings, file: Path, rules: RuleSet) -> None:
    """Raise PolicyError for a directory that belongs to no tenant, and for rules of the operator
    whose name begins with the name of a tenant and "/".
    """
    names = [tenant.name for tenant in settings.tenant]
    faults = [
        Fault(
            rule.file,
            rule.line,
            f"rule {shown(rule.name)}: name",
            f"found {shown(name)}, the name of a tenant, before the /, expected another name",
        )
        for rule in rules.rules
        if "/" in rule.name and (name := rule.name.partition("/")[0]) in names
    ]
    document = read_document(file)
    directory = settings.policy.directory
    if missing := [name for name in names if not (directory / name).exists()]:
        without = f" ({', '.join(missing)} has none)"
    else:
        without = ""
    for folder in other_directories(directory, *names):
        text = f"found the directory {folder}, expected a [[tenant]] of this name{without}: "
        faults.append(document.fault(("tenant",), f"{text}add one, or move the directory away"))
    if faults:
        raise PolicyError(faults)


def book_of(sets: Iterable[tuple[Tenant | None, RuleSet | None]], settings: Settings) -> RuleBook:
    """Return the rule book of all sets. The tenant of the operator's set is None.

    An alias of a tenant's domain belongs to the tenant.
    """
    operator, tenants = RuleSet(), {}
    aliases: dict[str, list[str]] = {}
    for domain in settings.domain:
        aliases.setdefault(domain.alias_of, []).append(domain.name)
    for tenant, rules in sets:
        if tenant is None:
            operator = rules or operator
            continue
        own = tenant.domains
        domains = frozenset((*own, *(alias for domain in own for alias in aliases.get(domain, ()))))
        tenants[tenant.name] = TenantRules(tenant.name, domains, rules)
    return RuleBook(operator, tenants)


def trouble_of(sets: Mapping[str, TenantSet]) -> str:
    """Return which tenants do not have their newest rules, "" if all have."""
    old = [name for name, tenant in sets.items() if tenant.faults and tenant.rules is not None]
    without = [name for name, tenant in sets.items() if tenant.rules is None]
    texts = [f"old rules are in force for the tenants {named(old)}"] if old else []
    texts += [f"mail of the tenants {named(without)} waits for their rules"] if without else []
    return "; ".join(texts)
