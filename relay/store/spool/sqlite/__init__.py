"""The spool on SQLite: one database file, one writer thread, several readers.

- `spool`: the engine that other rooms use
- `transactions`: accept a message; find due entries, claim and release them, each time with a new
  epoch; record the result of an attempt, unless its claim has ended (lease, epoch); when a content
  is no longer needed
- `content_files`: which contents are files (over 128 KiB); write, make durable and remove them

Commits:

- `writer`: group commit: which operations go into one commit; what follows when a commit fails
- `write_ahead_log`: the fsync before the 250, checkpoints, damage of the log; whether commits were
  lost, by the number outside the log
- `database`: opens the database; its readers; clock anchor
- `disk_space`: whether a commit has room on the disk; the reserve file
- `damage`: when a running spool counts as damaged, and when no longer

Files and their care:

- `spool_files`: names of files; whether there is a spool, or one that was lost; which error of
  SQLite is which SpoolError
- `migrate`: makes and upgrades the schema
- `maintenance`: sweeps content files; what a development relay removes
- `storage`: the stored form for commands; a copy of a running spool
- `verify`: what `relay storage verify` checks in the spool

Elsewhere: what is decided alike for both engines: `relay/store/spool/shared`.
"""
