"""The replies to the final dot, and the line of the log about what is accepted."""

from relay.ingress.data import ContentRejection, DataReply
from relay.message.envelope import Client
from relay.message.header import FIELDS_MAX
from relay.message.status import own_reply
from relay.message.verdict import Deferral
from relay.observe.logs import get_logger
from relay.policy import engine
from relay.spool.types import NewMessage

LOCAL_ERROR = DataReply(ContentRejection.LOCAL_ERROR)
# RFC 3463 3.8
NO_POLICY = DataReply(f"451 4.7.1 {engine.NOT_APPLIED}")
TOO_MANY_PARTS = DataReply(own_reply(engine.TOO_MANY_PARTS_STATUS, engine.TOO_MANY_PARTS))
LONG_HEADER = DataReply(ContentRejection.LONG_HEADER)
MANY_FIELDS = DataReply(f"554 5.6.0 The header has more than {FIELDS_MAX} fields")  # RFC 3463 3.7
NO_ROOM = DataReply(ContentRejection.QUEUE_FULL)
# RFC 5321 6.3; RFC 3463 3.5
LOOP = DataReply("554 5.4.6 Routing loop detected: too many Received fields")
# Of a tenant's copies, in mail that has others: status and text (RFC 3463 3.4)
HOLDS_FULL_OF_TENANT = "5.3.1", "The rules of its domain hold as many messages as they may"
_log = get_logger("ingress")


def accepted_reply(queue_id: str) -> DataReply:
    """Return the reply by which Relay becomes responsible (RFC 5321 4.1.1.4)."""
    return DataReply(f"250 2.0.0 Ok: queued as {queue_id}", queue_id)


def deferral_reply(deferral: Deferral) -> DataReply:
    """Return the reply by which the client tries again later."""
    reply = own_reply(deferral.status, deferral.text)
    if reply.startswith("421"):  # that would close the connection (RFC 5321 3.8)
        reply = f"451{reply[3:]}"
    return DataReply(reply, rule=deferral.rule)


def log_accepted(message: NewMessage, client: Client) -> None:
    """Log one line per message, with Postfix's terms where they apply."""
    facts = message.facts
    count = sum(len(entry.recipients) for entry in message.entries)
    _log.info(
        "accepted",
        qid=facts.id,
        sender=facts.envelope.reverse_path,
        recipients=count + len(message.final_recipients),
        size_bytes=facts.size,
        via=facts.source.value,  # the log is slow for what is not exactly a str
        client=client.address,
        helo="" if facts.submission_id else client.helo,
        login=client.account or facts.account if facts.submission_id else client.account,
        tls=client.tls,
        message_id=facts.message_id,
    )
