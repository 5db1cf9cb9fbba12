"""The SMTP client, used by pickup (step 3) and delivery (step 6).

connect() opens a session with a target. A Connection runs transactions one after another. Every
wait has a time-out. Every reply is matched to its command; if that is impossible, the connection is
closed. Each recipient gets a separate outcome.

- `connect`: TCP, greeting, EHLO, STARTTLS and AUTH; what follows if a host offers no STARTTLS or if
  TLS fails; when a password may be sent
- `tls`: which certificates are accepted: CA, and which of its names match the host
- `dane`: whether the certificates that a host shows match its TLSA records: chain, names, dates
- `connection`: the course of a transaction: pipelining, time-outs of each command, DATA, QUIT, RSET
- `transaction`: the commands MAIL and RCPT (SIZE, BODY, SMTPUTF8, NOTIFY ...); which recipient gets
  which outcome, by LMTP a reply for each; what cannot be sent to a peer without 8BITMIME or
  SMTPUTF8; dot-stuffing
- `client_protocol`: replies as they arrive: syntax, size, which command each belongs to

Elsewhere: which reply at which stage is which outcome: `relay/base/message/outcome.py`; the TLS
level of a next hop: `relay/transport/routing/routes.py`; the next host:
`relay/delivery/host_selection.py`; how a message is encoded for a host:
`relay/formats/encode_for_host.py`.
"""
