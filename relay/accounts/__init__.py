"""Accounts: who may what.

On the path: http asks for a bearer token's account, ingress for a password's, routing for an
address's mailbox.
Touches: accounts.toml, once. Promises: comparison in constant time, passwords off the event loop.
"""

from relay.accounts.account import DEAD_LETTER, Account, AccountDirectory, Role
from relay.accounts.directory import DevelopmentAccounts, FileAccounts, load_accounts
from relay.accounts.passwords import LoginDelayedError

__all__ = [
    "DEAD_LETTER",
    "Account",
    "AccountDirectory",
    "DevelopmentAccounts",
    "FileAccounts",
    "LoginDelayedError",
    "Role",
    "load_accounts",
]
