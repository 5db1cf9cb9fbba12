"""Routing: from an address to its next hop (step 5), and from a next hop to its hosts (step 6).

The resolver returns every answer of a name server as a value; only a definite one is a permanent
failure. Only `dns_client` and `resolver` use the network. Password files are read once, when a
route is made.

- `own_domains`: which domains are own (local); the file of their recipients; alias_of
- `route_table`: which addresses are valid: of accounts, postmaster, MAILER-DAEMON, catch_all; which
  route and next hop mail takes, and what a route holds; which route's options a next hop has
- `routes`: what a [[route]] says: mx, reject:, hold, capture or a host; TLS, login and limits;
  the fallback; which reverse-paths and addresses it takes; which routes a reload changes
- `routing_result`: a mailbox here, a next hop or a rejection, such as 550 5.1.1 for an unknown user
- `resolver`: the hosts of a next hop: MX, smarthost or address; which host is this relay itself;
  what a development relay may connect to
- `mx_hosts`: the order of MX hosts, of IPv4 and IPv6 addresses; which MX hosts are left
  out because they are this host or lead back to it (mail loop); null MX, no MX
- `usable_hosts`: the hosts that delivery may use, each with its TLS; which ones are left out for it
- `sts_policies`: the MTA-STS policy of a domain: when it is fetched, how long it holds, its file
- `dns_client`: queries to the name servers, time-outs (SERVFAIL ...)
- `dns_cache`: how long an answer is remembered (TTL), and how many queries are in progress
- `client_questions`: questions of strangers: how many are in progress, and whose turn it is

Elsewhere: aliases: `relay/base/accounts/aliases.py`; whether RCPT is accepted:
`relay/transport/ingress/session_owner.py`; the next host if one does not answer:
`relay/delivery/host_selection.py`; queued mail whose route changed: `relay/delivery/rerouting.py`.
"""
