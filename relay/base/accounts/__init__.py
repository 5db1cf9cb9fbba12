"""Accounts: tokens, passwords, addresses, roles and mailboxes of users.

HTTP looks up the account of a bearer token, the SMTP server that of a login, routing the mailbox
of an address. The room reads accounts.toml once, at the start or a reload. Secrets are compared
in constant time. Passwords are verified in threads, so that they do not block the event loop.

- `accounts_file`: reads accounts.toml; which addresses and client ids are valid; all faults
- `directory`: which account has an address, token, password or client id
- `account`: an account; whether it may send as an address, open a mailbox; roles, scopes, user+tag
- `lost_rights`: which rights accounts lose if another file refuses a reload
- `aliases`: who gets the mail of an [[alias]] or of forward_to; rings, depth and size of aliases
- `password_schemes`: which hashes of passwords are read, those of Dovecot and crypt(3) too
- `passwords`: how many checks of passwords run at once; how long a client that guesses has to wait;
  tokens; whether Dovecot knows the password of a user who has no account here
- `check_queue`: whose password is checked next while strangers guess from many addresses
- `usage`: what accounts send to the outside: which message counts, when a limit ends, who sent most

Elsewhere: which addresses are valid recipients: `relay/transport/routing/route_table.py`; the SMTP
command AUTH: `relay/transport/ingress/authentication.py`; From and Sender:
`relay/transport/ingress/send_as.py` by SMTP, `relay/front_door/graph/send_mail.py` by Graph; the
token endpoint and its tokens: `relay/front_door/sign_in`; changes of accounts.toml by `relay
account`: `relay/operation/commands/account.py`.
"""
