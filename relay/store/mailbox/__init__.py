"""The mail store: mailboxes as Maildir++ directories, with an index of each.

It has drafts, folders and messages, and local delivery in step 6. It touches the mail root and the
dead-letter Maildir. When a call returns, its changes are durable, directories included. A crash
between any two operations loses nothing and duplicates nothing. Other mail programs may use the
Maildirs at the same time.

The store as others see it:

- `stored_message`: messages and folders as values; what a PATCH changes; If-Match
- `pending_submission`: a submitted draft and its options
- `changes`: changes of messages and folders as values
- `usage`: quota and usage as values
- `delivery_store`: what local delivery and RCPT need of it
- `errors`: why a call failed
- `threads`: in which thread a call runs, how many, time limit of a query
- `store_part`: what all parts of the store work with
- `mail_root`: whether the path still leads to the mail root, and whether it is the spool's
- `mailbox_list`: which mailboxes exist, their files, and which messages are unread

Messages and folders:

- `messages`: create, read, PATCH, move, copy and delete; If-Match; what may not change (409)
- `draft_files`: the file of a draft and its next generations; id, Message-ID and Date stay
- `attachments`: open, add and remove attachments; their sizes (413)
- `message_lists`: lists, searches and changes, in their own threads
- `query`: conditions, sort order and page as values
- `folder_tree`: create, rename, move, copy and delete folders; subscriptions
- `folders`: names and ids of folders, well-known ones, modified UTF-7
- `settings_file`: mailboxSettings on disk
- `message_state`: what clients change of received mail: properties and flag, which of two counts
- `state_file`: these states on disk: `relay-properties`
- `keywords`: Dovecot's keywords, which a move to another folder keeps
- `old_files`: what the first write and a day remove: old files in tmp/, half-removed folders; the
  removal of an empty mailbox

Delivery:

- `inbox`: local delivery into new/, exactly once (no duplicate): what counts as delivered already
- `quota`: whether a mailbox has room (mailbox full); `session_owner` of ingress and
  `store_errors` of graph tell clients
- `owed_copies`: whether another program has read or deleted a copy that owes a read receipt

On the disk:

- `maildir`: write, link, rename, remove and fsync; which file systems keep the order; Dovecot's
  locks
- `message_file`: file names: base name, flags, id; where a mailbox is
- `index`: the index of a mailbox: search, change feed, ids of messages

Elsewhere: what is submitted and not yet sent, and the store as a whole: `relay/submission/outbox`;
which address has which mailbox: `relay/transport/routing/route_table.py`; delivery attempts:
`relay/delivery/local_delivery.py`.
"""
