"""Accounts: tokens, passwords, addresses, roles and mailboxes of users.

HTTP looks up the account of a bearer token, the SMTP server that of a login, routing the mailbox
of an address. The room reads accounts.toml once, at the start or a reload. Secrets are compared
in constant time. Passwords are verified in threads, so that they do not block the event loop.
"""
