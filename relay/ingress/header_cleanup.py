"""Clean up the header of an arriving message: drop Bcc, add Received, complete missing fields.

As Postfix's cleanup(8) and message_drop_headers. acceptance calls it before the mail rules see the
message. All other fields stay octet for octet; a content without a header gets one.

RFC 5321 4.4 (Received, Return-Path), 6.3 (loops); RFC 5322 3.6.3 (Bcc); RFC 6409 8 (Date,
Message-ID).
"""

from collections.abc import Sequence

from relay.ingress.data import Origin
from relay.message.envelope import Envelope, ForwardPath
from relay.message.header import Header
from relay.message.properties import EmailAddress
from relay.mime import headers
from relay.mime.write_header import address_list_field

# Bcc names hidden recipients, the final delivery writes Return-Path, and Content-Length is wrong
# once the content changes.
_DROPPED = ("Bcc", "Content-Length", "Resent-Bcc", "Return-Path")
_PRIVATE_PREFIX = "X-Relay-"  # a client could forge them


def is_looping(header: Header, received_max: int) -> bool:
    """Return whether a header has more than `received_max` Received fields."""
    return header.count("Received") > received_max


def clean_up(
    header: Header,
    envelope: Envelope,
    paths: Sequence[ForwardPath],
    *,
    origin: Origin,
    hostname: str,
    queue_id: str,
    time_us: int,
) -> Header:
    """Return a header with this hop's Received, without X-Relay-*, Bcc, Resent-Bcc, Return-Path
    and Content-Length fields.

    Mail from a trusted client also gets a missing Date and Message-ID. Mail from an account that
    logged in also gets a missing From.
    """
    header = header.remove(_DROPPED, prefix=_PRIVATE_PREFIX)
    new = headers.received(
        helo=origin.helo,
        ip=origin.ip,
        hostname=hostname,
        protocol=headers.protocol(
            extended=origin.extended,
            tls=bool(origin.tls),
            authenticated=bool(origin.login),
            smtputf8=envelope.smtputf8,
        ),
        queue_id=queue_id,
        time_us=time_us,
        recipient=paths[0].address if len(paths) == 1 else "",
    )
    if origin.trusted:
        if "Date" not in header:
            new += headers.field("Date", headers.date_field(time_us))
        if "Message-ID" not in header:
            new += headers.field("Message-ID", f"<{queue_id}@{hostname}>")
    if origin.login and "From" not in header:
        new += address_list_field("From", [EmailAddress(origin.login)]).encode()
    return header.prepend(new)
