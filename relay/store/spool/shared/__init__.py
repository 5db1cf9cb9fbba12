"""What the engines of the spool share: the same rows, decisions and SQL on both databases.

What acceptance and delivery write:

- `accepted`: what an accepted message writes; the first states, and when held and captured mail
  ends
- `claimed`: which of the due entries are claimed: their order, round robin of senders; at a start,
  what becomes of the claims of a process that was killed
- `results`: what the result of an attempt writes: states, next attempt, owed reports; which message
  a DSN or MDN from outside is about, and what is recorded of it
- `receipts`: read receipts that are owed
- `suppression`: the list of dead addresses: which replies of hosts count, when an address enters
  and ends, what an operator adds and removes
- `queue_shares`: who has so much in the queue that more of it is refused
- `entry_notes`: why an entry is held, and when its hold ends; what attempts note of it
- `hold_counters`: how many entries rules hold (held_max)
- `hold_rules`: the domains for which mail is held as it comes (hold --new)
- `damaged_entries`: entries that cannot be read are held

Queue commands and counts:

- `queue_admin`: runs a command in slices; entries in flight, also at other nodes; --dry-run; the
  bounces of a cancel (--bounce); orders that wait for Microsoft Graph
- `entry_selection`: which entries a selector matches
- `entry_list`: the JSON of entries in `queue list`
- `entries`: what a command reads and writes of the entries that it changes
- `decisions`: what a command does to an entry: state, due time, expiry, next hop, event
- `stats`: counts of the queue: `queue stats`, oldest entry, unaccounted recipients

What has happened to messages:

- `event_log`: a message's journey in the spool, and its contents; the events of all messages in
  their order, for followers
- `message_names`: which messages an id, a Message-ID or an address names
- `message_page`: which messages a search or a page of the list has
- `message_rows`: what a row of the list shows: state, recipients, reply, next attempt
- `recent_messages`: counts by state, and addresses to choose from, of the newest messages
- `maintenance`: pruning of history (spool.keep); frees claims of dead owners
- `traffic`: counts of attempts by provider, domain, route or login: `relay stats`

What all of these stand on:

- `group_commit`: what both writers share: waiting operations, how long commits take
- `columns`: columns and values of rows, checksums of contents
- `tables`: what an engine supplies for all of these; which SQL works on both databases

Other rooms get `QueueAdmin`, `SpoolMaintenance`, `ReceiptLedger` and `SuppressionList` from an
engine, and name them in annotations only.

Elsewhere: in which state a command is possible: `relay/store/spool/queue_commands.py`; when an
entry is tried again: `relay/delivery/retry.py`; what a journey and its events are:
`relay/store/journeys`; which writes go into one commit: `relay/store/spool/sqlite/writer.py` and
`relay/store/spool/postgres/writer.py`; whether a result still counts when its claim has ended
(epoch): `relay/store/spool/sqlite/transactions.py` and
`relay/store/spool/postgres/transactions.py`.
"""
