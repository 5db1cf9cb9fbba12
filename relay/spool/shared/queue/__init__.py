"""The entries that wait: queue commands (retry, hold, release, cancel, reroute), holds, counts.

- `admin`: runs a command in slices; entries in flight, also at other nodes; --dry-run; the bounces
  of a cancel (--bounce)
- `entries`: which entries a selector matches, their JSON in `queue list`; loads what a command
  needs of them, and stores what was decided
- `decisions`: what a command does to an entry: state, due time, expiry, next hop, event
- `holds`: why entries are held, when a hold ends, damaged entries, how many rules hold (held_max)
- `standing_holds`: the domains for which mail is held as it comes (hold --new)
- `stats`: counts of the queue: `queue stats`, oldest entry, unaccounted recipients

Elsewhere: in which state a command is possible: `relay/spool/queue_commands.py`; which entries are
claimed: `relay/spool/shared/rows/claimed.py`;
when an entry is tried again: `relay/delivery/retry.py`.
"""
