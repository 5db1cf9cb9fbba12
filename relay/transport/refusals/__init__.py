"""What SMTP sessions refused: one record for each refused command and failed TLS handshake.

Ingress only records, the API and the pages read. A record has no content of a message but its
Subject, and of a login only the user name. Recording never fails and never waits.

- `refusal`: the record, its reasons, its line for people, the search
- `day_files`: the store: JSON lines in STATE/refused, how many for a client and a day

Elsewhere: which reason a reply has, and which recipients are one record:
`relay/transport/ingress/session_refusals.py`; when old records are removed:
`relay/operation/app/maintenance.py`.
"""
