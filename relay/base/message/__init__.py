"""Values that rooms exchange: addresses, envelopes, contents, outcomes, states, Graph's properties.

Every step uses them. Pure: no I/O except reading the octets of a content, no clock, no randomness.
The modules import only each other. Formats (MIME, headers, DSN) are in relay.formats.

The envelope and its addresses:

- `address`: the syntax of addresses, and their canonical form (IDN, quotes, address literals)
- `envelope`: MAIL and RCPT with NOTIFY, ORCPT, RET, ENVID, and their syntax; the facts of a message
- `srs`: how the sender of a forwarded message is rewritten (SRS), and an SRS address reversed
- `nexthop`: a next hop (mx, smtp, smtps, lmtp, local, capture) as a value and as text in the spool
- `web_url`: a URL to which requests are sent, and which URLs are refused
- `mta_sts`: what a domain publishes by MTA-STS: the TXT record, the policy file, its hosts
- `tls_policy`: the TLS level of a host (none, opportunistic, required, verify, dane), who
  demands it

The content:

- `content`: the octets of a message, of a large one in a file; reading them in blocks
- `header`: where the header ends, what its fields are, how a field is added, replaced or removed
- `authentication_results`: what filters found by SPF, DKIM and DMARC; the `checks` of a journey
- `conversation`: conversationId, thread, conversation index; Subject and References of a reply
- `properties`: the properties of Graph's message as a draft has them: recipients, body, attachments
- `extended_properties`: ids and types of extended properties; which act on a send (deferred send)
- `rest_id`: Graph's default id of a message in a folder; the ids in it
- `time_zones`: which IANA zone a Windows name of a time zone means

The result for a message:

- `outcome`: which SMTP reply at which stage is relayed, deferred, failed or indeterminate
- `status`: enhanced status codes: read from a reply, and Relay's own replies as one line
- `lifecycle`: states of a recipient, which may follow which; the state of a message from these
- `verdict`: what mail-flow rules decided: an action for each recipient, holds, rule hits
- `receipt`: a read receipt (MDN) that a sender asked for; its data until it is sent

Elsewhere: the state before step 4 (scheduled, converting, cancelled, failed):
`relay/store/journeys/open_submissions.py`; To and Cc of a reply:
`relay/front_door/graph/replies.py`; when a deferred recipient is tried again:
`relay/delivery/retry.py`.
"""
