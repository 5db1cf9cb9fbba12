"""Load the accounts of a configuration. `from` of an [[alias]] may name groups of the rules.

Without own domains no account can have an address, and the file may be missing.
"""

import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

from relay.base.accounts.account import Writers
from relay.base.accounts.accounts_file import ReadWriters, load_accounts
from relay.base.accounts.directory import AccountTables, FileAccounts
from relay.base.clock import Clock
from relay.base.message.envelope import domain_of
from relay.base.settings.tree import Settings

_EXPECTED = '"own", "members", or a list of addresses, globs and groups: "*@x.test", "group:staff"'
_LISTED = re.compile(r"group:|.*[@*?]")


def accounts_of(
    settings: Settings, *, clock: Clock, environ: Mapping[str, str], file: Path | None = None
) -> FileAccounts:
    """Load the accounts, from `file` if it is given. Raises SettingsError."""
    path, writers = file or settings.mailboxes.accounts, cache(partial(_reader, settings))
    if not settings.own_domains and not path.exists():
        return FileAccounts(AccountTables(), clock)
    return load_accounts(path, settings.domains, clock=clock, environ=environ, writers=writers)


def _reader(settings: Settings) -> ReadWriters:
    """Return the function that reads `from`. The loading of the rules reports faults of groups."""
    from relay.operation.app.tenant_sets import book_of  # noqa: PLC0415 -- slow
    from relay.transport.policy.conditions import SenderCondition  # noqa: PLC0415 -- slow
    from relay.transport.policy.groups import group_files, read_groups  # noqa: PLC0415 -- slow

    policy = settings.policy
    groups, _ = read_groups(group_files(policy.directory, [], shipped=policy.shipped), [])
    tenants = book_of(((tenant, None) for tenant in settings.tenant), settings)

    def read(writers: tuple[str, ...] | str, alias: str, reports: bool) -> Writers:
        if writers == "members":
            return Writers((writers,), reports, members=True)
        named = ("group:own",) if writers == "own" else writers
        if not named or isinstance(named, str) or not all(map(_LISTED.match, named)):
            raise ValueError(_EXPECTED)
        condition = SenderCondition.parse([*named], groups)
        tenant = tenants.tenant_of(domain_of(alias))
        domains = tenant.domains if tenant else settings.own_domains
        own = frozenset((*domains, settings.hostname) if condition.or_own else ())
        return Writers(
            (writers,) if isinstance(writers, str) else writers, reports, own, condition.globs.match
        )

    return read
