"""The index of a mailbox: its messages, their searchable content, and the change feed.

Every read request and the quota use it; the path of sendMail to its 202 does not. It is a cache,
the file `relay-index` next to the Maildir's files. It is updated before each answer with the
changes that any program made, and rebuilt when it is damaged or of another version. See
docs/design.md 3.

- `indexes`: answers: where a message is, queries, changes, usage; how many indexes are open, how
  many large mailboxes are read in the background
- `mailbox_index`: opens one index, updates it before an answer, rebuilds a damaged one
- `database`: its SQLite file: journal mode, schema, time limit of a statement, damage
- `rows`: rows of messages and folders

From the disk to the rows:

- `update`: what has changed in the directories and is scanned
- `watch`: changes by other programs (inotify)
- `identity`: which message a new or renamed file is, and which id it gets
- `states`: states of `relay-properties` in the rows
- `content_index`: reads headers and text when a query needs them; words of the full text

Answers:

- `query_sql`: conditions, sort orders and page tokens as SQL; which SQL index drives a query
- `change_feed`: changes of messages; which positions are still valid (410)
"""
