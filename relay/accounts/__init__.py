"""Accounts: tokens, passwords, addresses, roles and mailboxes of users.

HTTP looks up the account of a bearer token, the SMTP server that of a login, routing the mailbox
of an address. The room reads accounts.toml once, at the start or a reload. Secrets are compared
in constant time. Passwords are verified in threads, so that they do not block the event loop.

`directory` reads the file and finds accounts, `account` is one account, `aliases` has where mail is
forwarded. `passwords` checks passwords and delays who guesses, `access_tokens` signs tokens and
checks their expiry.
"""
