"""Load the accounts of a configuration: `from` of an [[alias]] names groups of its rules."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from relay.base.accounts.account import Writers
from relay.base.accounts.directory import FileAccounts, ReadWriters, load_accounts
from relay.base.clock import Clock
from relay.base.message.envelope import domain_of
from relay.base.phrases import shown
from relay.base.settings.tree import Settings


def accounts_of(
    settings: Settings, *, clock: Clock, environ: Mapping[str, str], file: Path | None = None
) -> FileAccounts:
    """Load the accounts, those of `file` if it is to take the place. Raises SettingsError."""
    return load_accounts(
        file or settings.mailboxes.accounts, settings.domains, clock=clock, environ=environ,
        writers=cache(partial(_reader, settings)),
    )  # fmt: skip


def _reader(settings: Settings) -> ReadWriters:
    """Return what reads `from`. The rules of the operator tell the faults of groups."""
    from relay.operation.app.tenant_sets import book_of  # noqa: PLC0415 -- slow
    from relay.transport.policy.conditions import SenderCondition  # noqa: PLC0415 -- slow
    from relay.transport.policy.groups import group_files, read_groups  # noqa: PLC0415 -- slow

    groups, _ = read_groups(group_files(settings.policy.directory, []), [])
    tenants = book_of(((one, None) for one in settings.tenant), settings)

    def read(texts: Sequence[str], alias: str) -> Writers:
        for text in texts:
            if not any(mark in text for mark in ("@", "*", "?", "group:")):
                expected = 'addresses, globs such as "*@partner.test", and "group:NAME"'
                raise ValueError(f"{expected}, not {shown(text)}")
        found = SenderCondition.parse(list(texts), groups)
        tenant = tenants.tenant_of(domain_of(alias))
        own = tenant.domains if tenant else frozenset(settings.own_domains)
        return Writers(
            found.globs.match, own | {settings.hostname} if found.or_own else frozenset()
        )

    return read
