"""The spool on SQLite: one database file, one writer thread, several readers.

`transactions` accepts and settles messages, `claims` finds and claims due entries, `spool` is the
engine that other rooms use. `queue_engine` is what operator commands need of it; `backup`, `verify`
and `recover` serve `storage`. `writer`, `database`, `write_ahead_log` and `commits` make commits
durable; `spool_errors` recognizes a damaged database, `damage` looks again at one. `migrate` makes
and upgrades the schema. `maintenance` prunes history and removes stale files, called by
`relay/app/maintenance.py`. `queries` and `message_list` read journeys, `queue_list` and `stats`
the queue.
"""
