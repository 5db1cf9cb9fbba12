"""What SMTP sessions refused: one record for each refused command and failed TLS handshake.

`refusal` has the record, its search, and the Protocols: ingress only records, the API and the pages
read. Two stores keep records: `RecentRefusals` in memory, for a development relay, and `day_files`
as JSON lines in STATE/refused, for a service. A record has no content of a message but its Subject,
and of a login only the user name. Recording never fails and never waits.
"""
