"""Receive mail by SMTP: the server for clients and for pickup (steps 3 and 5).

A 250 to the final dot means that the message, its recipients and the reports that are already due
are durable. Only CRLF.CRLF ends the data. Clients that are not trusted cannot relay. An internal
error is a 4yz reply with a fixed text.

smtp_server is a listener, smtp_session a connection, smtp_commands the commands (EHLO, MAIL, RCPT,
DATA ...). esmtp_parameters parses the arguments of MAIL and RCPT, authorization has AUTH and "send
as", data receives the content, session_limits has the limits. acceptance runs step 5 up to the 250,
header_cleanup edits the header (Received, Bcc), fanout sorts recipients into queue entries.
"""

from relay.ingress.acceptance import Acceptance
from relay.ingress.data import Origin
from relay.ingress.session_limits import SessionLimits
from relay.ingress.smtp_server import IngressDependencies, SmtpServer

__all__ = [
    "Acceptance",
    "IngressDependencies",
    "Origin",
    "SessionLimits",
    "SmtpServer",
]
