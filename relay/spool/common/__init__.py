"""What all engines do alike, by SQL that the database of each understands (relay.spool.tables).

Mail:

- `accepted_rows`: what an accepted message writes; first states; end of held and captured mail
- `claim_rows`: which of the due entries are claimed: their order, round robin of senders; claims
  of a process that was killed
- `settled_rows`: what the result of an attempt writes: states, next attempt, owed reports
- `remote_reports`: which message a DSN or MDN from outside is about; what is recorded of it
- `receipts`: read receipts that are owed
- `holds`: why entries are held, when a hold ends, damaged entries, how many rules hold (held_max)
- `group_commit`: what both writers share: waiting operations, how long commits take
- `shared_spool`: the part of an engine that both have: mail root, submission keys
- `shared_maintenance`: pruning of history (spool.keep), claims of dead owners

Queue commands (retry, hold, release, cancel, reroute):

- `queue_admin`: runs a command in slices; entries in flight, also at other nodes; --dry-run; the
  bounces of a cancel (--bounce)
- `queue_entries`: which entries a selector matches, their JSON in `queue list`; loads what a
  command needs of them, and stores what was decided
- `queue_decisions`: what a command does to an entry: state, due time, expiry, next hop, event
- `queue_engine`: what an engine supplies for this, and for its maintenance

Lists and history:

- `stats`: counts of the queue: `queue stats`, oldest entry, unaccounted recipients
- `journeys`: a message's journey in the spool, and its contents
- `message_list`: which messages a name, a search or a page of the list finds; what rows show
- `recorded_events`: events of all messages in their order, for followers

Formats:

- `rows`: columns and values of rows, checksums of contents
- `os_errors`: which error of the disk is which SpoolError

Elsewhere: which operations go into one commit: `relay/spool/sqlite/writer.py` and
`relay/spool/postgres/writer.py`; when an entry is tried again: `relay/delivery/retry.py`.
"""
