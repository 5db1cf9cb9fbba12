"""The rights that accounts have lost: what a reload applies of accounts.toml if another file has a
fault.

Nothing is given: a changed password, token, secret or key ends the old one, and the new one waits
for a complete reload. Addresses, aliases and forwarding stay, so that no mail bounces: an account
that is gone becomes a disabled one, and from an alias that is gone nobody sends.
"""

from dataclasses import replace

from relay.base.accounts.account import (
    Account,
    RegisteredClient,
    Role,
    Scope,
    is_listed,
    with_included,
)
from relay.base.accounts.directory import AccountTables

_ROLES = tuple(Role)  # each has the rights of those before it


def without_lost_rights(
    running: AccountTables, read: AccountTables
) -> tuple[AccountTables, list[str]]:
    """Return the accounts that are `running`, without the rights that they lack in `read`, and the
    addresses of those that have lost some, each with an alias from which it may not send any more.
    """
    in_file = {account.address: account for account in read.accounts}
    nobody = Account("", scopes=frozenset(), barred=frozenset(("",)))
    pairs = [(account, in_file.get(account.address, nobody)) for account in running.accounts]
    barred = frozenset(
        name
        for account, now in pairs
        if account.is_disabled or now.is_disabled
        for name in (account.address, *account.aliases)
    )
    left = replace(running, accounts=[], by_address={}, by_token={}, passwords={}, clients={})
    lost: dict[str, None] = {}
    for account, now in pairs:
        less = replace(
            account,
            role=min(account.role, now.role, key=_ROLES.index),
            scopes=_common_scopes(account.scopes, now.scopes),
            acts_for=_intersection(account.acts_for, now.acts_for),
            send_as=_intersection(account.send_as, now.send_as),
            credentials=now.credentials,  # ends the sessions if it is another one
        )
        password = running.passwords.get(account.address)
        is_other = password not in (None, read.passwords.get(account.address))
        is_new = now.is_disabled and not account.is_disabled
        if less != account or is_new or is_other:
            lost[account.address] = None
        gone = {
            alias
            for alias in account.aliases
            if alias in account.barred or not now.may_send_as(alias)
        } - barred
        lost |= {f"{account.address} as {alias}": None for alias in sorted(gone - account.barred)}
        less = replace(less, barred=barred | gone)
        left.add(less, password=None if is_other else password, token=None)
    for token, (_, account) in running.by_token.items():
        if read.by_token.get(token, ("", nobody))[1].address == account.address:
            left.by_token[token] = token, left.by_address[account.address]
        else:
            lost[account.address] = None
    for name, (client, secret) in running.clients.items():
        address = client.account.address
        known = read.clients[name][0] if name in read.clients else None
        is_same = known is not None and known.account.address == address
        if known is not None and is_same and known.secret_digest == client.secret_digest:
            less_client = RegisteredClient(
                client.client_id, left.by_address[address], client.secret_digest
            )
            left.add_client(less_client, secret)
        else:
            lost[address] = None
    return left, [*lost]


def _common_scopes(running: frozenset[Scope], read: frozenset[Scope]) -> frozenset[Scope]:
    """Return the scopes with the rights that both give; `running` itself if it loses none."""
    left = with_included(running) & with_included(read)
    return running if left == with_included(running) else left


def _intersection(running: tuple[str, ...], read: tuple[str, ...]) -> tuple[str, ...]:
    """Return the addresses and patterns `*@domain` of each list that the other list contains."""
    kept = [entry for entry in running if is_listed(entry, read)]
    return (*kept, *(entry for entry in read if entry not in running and is_listed(entry, running)))
