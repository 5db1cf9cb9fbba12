"""Steps 6 and 7: delivery to local mailboxes and by SMTP to the next hop, and the reports of it.

In: entries that were just accepted, and entries of the spool that are due. Out: files in Maildirs,
transactions with hosts; results and reports, committed together. A connection has at most one
transaction without a committed result, so a crash causes at most one second copy for each
connection.

- `smtp`: the SMTP client: connection, TLS and what verifies it (DANE), transaction, LMTP
- `graph`: Microsoft Graph as a next hop: drafts, look-ups after lost answers, what its answers mean
- `oauth`: tokens for logins: grants, renewal, refresh tokens
- `http_connection`: a connection for requests to one host, also through a proxy
- `reports`: who gets a report, and its words in each language; read receipts
- `scheduler`: the queue manager: gives claims to a site or to `local_delivery`
- `queue_scanner`: which due entries are fetched from the spool, and when
- `active_queue`: how many claims of a sender and a next hop are in memory; when they expire there
- `fair_queue`: whose turn it is: priority levels, round robin among senders
- `rerouting`: which mail is rerouted because its route changed while it waited
- `content_cache`: which contents are in memory, also those encoded again for hosts; what cannot be
  read (held the second time)
- `sites`: when a next hop is looked up, and which hosts share a site
- `site`: hosts, the claims that wait for them, limits; what follows when no host answers; probes
- `site_limits`: how many connections and messages per time a site gets; what counts as too many
- `connection_slots`: which site gets the next connection, or lookup; shares of those that do not
  answer
- `host_selection`: the next host when one fails: order of tries, recent failures, source address
- `recipient_verification`: RCPT probes for recipients = "verify"; how long an answer is kept
- `outbound_session`: the loop of a worker: host, session, room, transaction, result of each claim;
  what a stop cuts off
- `local_delivery`: delivery into mailboxes: Return-Path, Delivered-To, mailbox full, unknown user
- `provider_replies`: conf/providers.toml: replies that mean something else at some provider
- `attempt_result`: which recipients are final; when a delay report is due; the events of an attempt
- `retry`: when a deferred recipient is tried again (back-off, jitter), and when it expires
- `attempt_recorder`: how a claim ends: commits the result with its reports, or ignores one that
  comes too late; the log line and metric of an attempt

Elsewhere: which reply means what: `relay/base/message/outcome.py`; the order of MX hosts:
`relay/transport/routing/mx_hosts.py`; the session itself: `relay/delivery/smtp`; who gets a bounce:
`relay/delivery/reports/bounces.py`.

The promise of fairness: due mail for a next hop that answers is attempted soon, whatever else is in
the queue. Neither the mail of one sender, nor that for one next hop, nor mail for any number of
hosts that do not answer, nor bulk mail delays it for longer than a few messages or probes take.
Nothing waits for ever. Memory, connections and queries do not grow with the queue. What keeps it:
In memory (active_queue) a sender, a next hop, or both together get no more claims while they have a
multiple of what is left; new mail has a reserve, and unreachable sites a part. A sender or next hop
that a query passed over for lack of room is remembered, and its mail is fetched later
(queue_scanner). Senders take turns, and a priority level that was passed over a few times is next
(fair_queue). Sites that have not answered lately have half of the connections; a first connection
comes before a second, and new mail and senders without any have a reserve (connection_slots,
site_limits). The same holds for lookups; those for queued mail leave processor time for new mail
(sites). All mail for an unreachable host shares one probe (host_selection).

The constants of these modules have the numbers. Simulations in virtual time check the promise:
tests/unit/delivery/test_fairness.py says for most limits how long mail takes without them. See
docs/design.md 5 and 7.
"""
