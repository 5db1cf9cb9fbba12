"""Ingress: the SMTP server, steps 3 (its receiving end) and 5.

On the path: clients and pickup submit here; the spool keeps it, delivery gets claims.
Touches: sockets, and the spool by its Protocol; asks routing, policy, accounts.
Promises: a 250 to the final dot means that message, recipients and reports due are durable; only
CRLF.CRLF ends the data; strangers relay nothing; a fault of ours is a 4yz with a fixed text.

Read: server (a listener), session (a connection), conversation (its commands), data (the content),
acceptance (step 5), fanout (who goes where).
"""

from relay.ingress.acceptance import Acceptance, Policy, Reporter
from relay.ingress.data import Decision, Origin
from relay.ingress.session_limits import Limits
from relay.ingress.smtp_server import Neighbours, SmtpServer

__all__ = [
    "Acceptance",
    "Decision",
    "Limits",
    "Neighbours",
    "Origin",
    "Policy",
    "Reporter",
    "SmtpServer",
]
