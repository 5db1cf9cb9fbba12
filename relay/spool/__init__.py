"""The durable queue: the Spool protocol (types.Spool) and its implementation on SQLite.

The SMTP server commits a message to the spool before it replies 250 (step 5). Delivery claims due
entries, attempts them and settles the result (step 6). It touches only its database and content
files. The spool keeps the invariants 1, 3, 7 and 9 of docs/design.md.

A process that needs only the values imports `types` or `queue_commands`, which do not load the
SQLite implementation.
"""
