"""What an fsync stands behind: mailboxes, the spool, journeys.

In: calls of the other wings; each returns after what it promises is durable. Out: files of a
Maildir, rows of the spool's engine. Only `relay/submission/outbox` (drafts, originals) and `relay
restore` write there too.

- `mailbox`: Maildirs: drafts, messages, folders, quota, the index that is a cache
- `spool`: accepted messages, entries and recipients, holds, history; with two engines
- `journeys`: the log of steps 1 to 4, and the events of a message from it and the spool as one
  document

Elsewhere: pending submissions, which are files too: `relay/submission/outbox`; which state may
follow which: `relay/base/message/lifecycle.py`; pruning: `relay/operation/app/maintenance.py`.
"""
