"""Filters in the SMTP dialogue: Relay as the MTA that asks milters (rspamd, ClamAV, OpenDKIM).

Relay does as Postfix does: the same stages, macros, answers, and places of fields. If a milter is
down or breaks the protocol, the result is what `when_down` says, and the milter is not asked again
in that session.

- `filters`: the milters of the configuration; what they say in a session, in which order
- `filtered_message`: a message that goes from milter to milter (FilterVerdict); new bodies
- `connection`: one milter: its connection in a session, time limits, faults and their log lines;
  the connection that `relay check` opens
- `dialogue`: what one milter is sent at each stage, and what its answer means there
- `changes`: applies the changes of a milter to header and body
- `codec`: packets and octets; negotiation; which answers and changes are well formed

Elsewhere: the keys of `[[milter]]`: `relay/base/settings/tree.py`; when a session asks them:
`relay/transport/ingress`.
"""
