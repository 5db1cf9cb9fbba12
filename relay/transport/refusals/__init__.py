"""Records of what SMTP sessions refused: refused commands and failed TLS handshakes.

Ingress writes records, the API and the pages read them. Of a message a record has only the Subject,
of a login only the user name. Recording never fails and never waits.

- `refusal`: the record, its reasons, its line of text, the search
- `day_files`: the store: JSON lines in STATE/refused, limits for a client and a day

Elsewhere: which reason a reply has, and which recipients are one record:
`relay/transport/ingress/session_refusals.py`; when old records are removed:
`relay/operation/app/maintenance.py`.
"""
