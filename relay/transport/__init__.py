"""Step 5: what SMTP brings in is examined, decided and committed before the 250.

In: SMTP from clients, hosts and pickup; files that `relay sendmail` left. Out: one transaction of
the spool with the message, an entry for each next hop and the reports already due; or a reply that
refuses it, and a record of that.

- `ingress`: SMTP sessions: replies, limits, AUTH; recipients; acceptance, which asks the others
- `gate`: the process of the SMTP sessions, apart from the owner of the mail, and its sandbox
- `checks`: SPF, DKIM and DMARC of strangers' mail, in worker processes
- `milter`: milters: the protocol, and what they may change
- `policy`: mail-flow rules: read, tried, applied; what they find in a message
- `routing`: own domains, aliases, routes; asks the DNS: MX hosts, MTA-STS, TLSA
- `signing`: DKIM signatures and their keys
- `refusals`: records of what sessions refused

Elsewhere: what is committed: `relay/store/spool`; who gets a report: `relay/delivery/reports`,
which is passed in; from which load on mail is refused: `relay/base/pressure.py`.
"""
