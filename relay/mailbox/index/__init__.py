"""The index of a mailbox: its messages, their searchable content, and the change feed.

Every read request and the quota use it; the path of sendMail to its 202 does not. It is a cache,
the file `relay-index` next to the Maildir's files. It is updated before each answer with the
changes that any program made, and rebuilt when it is damaged or of another version.

`indexes` answers, `mailbox_index` opens and rebuilds one index. `update`, `watch` and `identity`
bring the rows to the state of the disk; `content_index` reads headers and text when a query needs
them, and `background` those of large mailboxes before that; `query_sql` compiles conditions and
pages; `change_feed` has the changes of messages, `folder_feed` those of folders; `consistency` is
for `relay storage verify`. See docs/design.md 3.
"""
