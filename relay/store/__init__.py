"""What an fsync stands behind: mailboxes, the spool, and what both say of a message.

In: calls of the other wings; each returns after what it promises is durable. Out: files of a
Maildir, rows of the spool's engine. No other wing writes there.

- `mailbox`: Maildirs: drafts, messages, folders, quota, the index that is a cache
- `spool`: accepted messages, entries and recipients, holds, history; with two engines
- `journeys`: the events of a message in the seven steps, read from both as one document

Elsewhere: pending submissions, which are files too: `relay/submission/outbox`; which state may
follow which: `relay/base/message/lifecycle.py`; pruning: `relay/operation/app/maintenance.py`.
"""
