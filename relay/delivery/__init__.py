"""Steps 6 and 7: delivery to local mailboxes and by SMTP to the next hop, and the reports of it.

In: entries that were just accepted, and those of the spool that are due. Out: files in Maildirs,
transactions with hosts; results and reports, committed together. A connection has at most one
transaction without a committed result, so a crash causes at most one second copy for each
connection.

- `smtp`: the SMTP client: connection, TLS and what verifies it (DANE), transaction, LMTP
- `reports`: who gets a report, and its words in each language; read receipts
- `dependencies`: what sites and local delivery need of the scheduler, as a Protocol
- `scheduler`: the queue manager: gives claims to `site` or `local_delivery`, and records them
- `queue_scanner`: which due entries are fetched from the spool, and when
- `active_queue`: how many claims of a sender, a next hop and a priority level are in memory
- `fair_queue`: whose turn it is: priority levels, round robin among senders
- `rerouting`: which mail is rerouted because its route changed while it waited
- `content_cache`: which contents are in memory, also those encoded again for hosts; what cannot be
  read (held the second time)
- `next_hop_resolution`: when a next hop is looked up, and which hosts share a site
- `site`: how claims for a site get connections; what follows when no host answers; probes
- `site_limits`: how many connections and messages per time a site gets; what counts as too many
- `connection_slots`: which site gets the next connection; shares of those that do not answer
- `host_selection`: the next host when one fails: order of tries, recent failures, source address
- `recipient_verification`: RCPT probes for recipients = "verify"; how long an answer is kept
- `outbound_session`: a connection (SMTP, LMTP) and its transactions; what a stop cuts off
- `local_delivery`: delivery into mailboxes: Return-Path, Delivered-To, mailbox full, unknown user
- `provider_replies`: conf/providers.toml: replies that mean something else at some provider
- `attempt_result`: which recipients are final; when a delay report is due; the events of an attempt
- `retry`: when a deferred recipient is tried again (back-off, jitter), and when it expires
- `attempt_recorder`: commits the result with its reports, or ignores one that comes too late; the
  log line and metric of an attempt

Elsewhere: which reply means what: `relay/base/message/outcome.py`; the order of MX hosts:
`relay/transport/routing/mx_hosts.py`; the session itself: `relay/delivery/smtp`; who gets a bounce:
`relay/delivery/reports/bounces.py`.

The promise of fairness: due mail for a next hop that answers is attempted soon, whatever else is
in the queue. Neither the mail of one sender, nor that for one next hop, nor mail for any number of
hosts that do not answer, nor bulk mail delays it for longer than a few messages or probes take.
One sender's mail to sites that have not answered lately waits in turn with the rest of that mail.
Nothing waits for ever. Memory, connections and queries do not grow with the queue. What keeps it:

Claims in memory (`active_queue`)
- ACTIVE_QUEUE_CLAIMS, ACTIVE_QUEUE_BYTES: all claims, and their contents.
- _PAIR_WEIGHT, _HOP_WEIGHT, _SENDER_WEIGHT: a sender at one next hop, a next hop, and a sender get
  no more claims while they hold this multiple of what is left. So there is always something left.
- _FEW, _FEW_PART: a sender with fewer claims than this gets one for a full next hop too, while
  this part is left.
- _LEVEL_PARTS: low priority has at most half, mail for unreachable sites a quarter.
- _UNREACHED_PART: next hops that have not been reached yet have at most a quarter.
- _RESERVED_PART: mail from the queue leaves this part for mail that is accepted now.

Due entries in the spool (`queue_scanner`)
- LEFT_BEHIND_MAX: next hops and senders whose entries were passed over for lack of room; they are
  fetched when there is room, round robin among senders. RESCAN_US: a scan from the beginning finds
  what was not remembered.
- _BATCH_MAX, _BATCH_PART (`active_queue`): a query takes this many, and waits a moment for fewer.

Turns (`fair_queue`)
- PASSED_OVER_MAX: this many claims of better priority levels may go first, then one of this level.
- Senders take turns at each next hop, for slots and for lookups. Of the claims that wait for one
  slot or lookup, the one with the earliest turn counts.

Connections (`connection_slots`, `site_limits`)
- delivery.max_connections: half of them for sites that have not answered lately, a quarter for
  sites that were unreachable at the last attempt.
- delivery.max_connections_per_next_hop: what one site may reach; INITIAL is where it begins, _LEAST
  what failures leave. SLOW_S: a transaction that takes longer counts against the first one only.
- A first connection of a site comes before a second of another. _SERVED_MAX: after this many
  transactions a connection makes room for a site that has none.
- _RESERVED_PART: an eighth of the probes is for new mail, half of it for senders that have none.
- PAUSES_MAX: sites that a reply has paused. FEWER_S: how long a reply keeps a site at fewer.
- PROBE_TIMEOUT_S: a probe that takes longer ends when another one waits for its slot.

Lookups (`next_hop_resolution`)
- LOOKUPS_MAX, LOOKUPS_UNREACHABLE_MAX: at once, and of these for next hops that were not found.
- _RESERVED_PART: as for probes. _BUSY_PART, _SLOWEST_S, _TICK_S: lookups for queued mail of sites
  that have not answered start only while the event loop is idle for most of the time, or one each
  _SLOWEST_S.

Hosts (`host_selection`)
- HOSTS_MAX, ANSWERED_S: for how many hosts, and how long, the last result is remembered, so that
  all mail for an unreachable host shares one probe. ADDRESSES_MAX: tried in one attempt.

Worlds in virtual time judge the promise: tests/unit/delivery/test_fairness.py says of most limits
how long mail takes without them. See docs/design.md 5 and 7.
"""
