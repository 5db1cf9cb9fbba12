"""Accounts: who may what.

On the path: http asks for a bearer token's account, ingress for a password's, routing for an address's mailbox.
Touches: accounts.toml, once. Promises: comparison in constant time, passwords off the event loop.
"""

from relay.accounts.account import Account, AccountDirectory, Role

__all__ = ["Account", "AccountDirectory", "Role"]
