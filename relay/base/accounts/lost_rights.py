"""The rights that accounts have lost: what a reload applies of accounts.toml if another file has a
fault.

Nothing is given: a changed password, token, secret or key ends the old one, and the new one waits
for a complete reload. Addresses, aliases and forwarding stay, so that no mail bounces: an account
that is gone becomes a disabled one.
"""

from dataclasses import replace

from relay.base.accounts.account import Account, RegisteredClient, Role, is_listed
from relay.base.accounts.directory import AccountTables

_ROLES = tuple(Role)  # each has the rights of those before it
_GONE = "the account"


def without_lost_rights(
    running: AccountTables, read: AccountTables
) -> tuple[AccountTables, list[str]]:
    """Return the accounts that are `running`, without the rights that they do not have in `read`,
    and a line for each account that has lost rights.
    """
    now_by_address = {account.address: account for account in read.accounts}
    barred = {address for account in running.accounts[:1] for address in account.barred}
    for account in running.accounts:
        now = now_by_address.get(account.address)
        if now is None or now.is_disabled:
            barred |= {account.address, *account.aliases}
    less = AccountTables(
        scheme_of=running.scheme_of,
        aliases=running.aliases,
        nobody=running.nobody,
        digest=running.digest,
    )
    lost: dict[str, list[str]] = {}
    tokens, tokens_now = _tokens(running), _tokens(read)
    for account in running.accounts:
        address = account.address
        now = now_by_address.get(address) or Account(address, scopes=frozenset())
        left = replace(
            account,
            barred=frozenset(barred),
            role=min(account.role, now.role, key=_ROLES.index),
            scopes=account.scopes & now.scopes,
            acts_for=_in_both(account.acts_for, now.acts_for),
            send_as=_in_both(account.send_as, now.send_as),
        )
        password, token = running.passwords.get(address), tokens.get(address)
        has_password = password == read.passwords.get(address)
        has_token = token == tokens_now.get(address)
        names = ["disabled"] if left.is_disabled and not account.is_disabled else []
        names += ["password"] if password and not has_password else []
        names += ["token"] if token and not has_token else []
        if names:  # ends the sessions
            left = replace(left, credentials=now.credentials)
        others = ("role", "scopes", "acts_for", "send_as")
        names += [name for name in others if getattr(left, name) != getattr(account, name)]
        lost[address] = [_GONE] if names and address not in now_by_address else names
        less.add(
            left,
            password=password if has_password else None,
            token=token if has_token else None,
        )
    for client_id, (client, secret) in running.clients.items():
        owner = less.by_address[client.account.address]
        known, _ = read.clients.get(client_id, (None, None))
        is_same = known is not None and known.account.address == owner.address
        digests = known.digests if known and is_same else ()
        kept = [digest for digest in client.digests if digest in digests]
        if kept:
            keys = tuple(key for key in client.keys if key.digest in kept)
            left_client = RegisteredClient(client.client_id, owner, kept[0], keys)
            less.add_client(left_client, None if left_client.has_key else secret)
        if len(kept) < len(client.digests) and lost[owner.address] != [_GONE]:
            lost[owner.address].append("client")
    return less, [f"{address}: {', '.join(names)}" for address, names in lost.items() if names]


def _tokens(tables: AccountTables) -> dict[str, bytes]:
    """Return the digests of tokens by the address of the account."""
    return {account.address: digest for digest, (_, account) in tables.by_token.items()}


def _in_both(some: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """Return the addresses and patterns `*@domain` of each list that the other list contains."""
    kept = [entry for entry in some if is_listed(entry, others)]
    return (*kept, *(entry for entry in others if entry not in some and is_listed(entry, some)))
