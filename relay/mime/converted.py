"""What conversion makes of a note, and why it could not.

On the path: convert makes it, pickup submits it.
Holds: everything the transport must know of a message is told; nobody parses the content again.
Fails: ConversionError is the one refusal; its text is for the report to the sender.
Standards: RFC 5321 (envelope), RFC 6531 (SMTPUTF8), RFC 6152 (8BITMIME), RFC 3461 4.1 (NOTIFY).
"""

from dataclasses import dataclass

from relay.message.content import Content


class ConversionError(Exception):
    """The draft cannot become a message that can be sent; the text says why."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What is submitted. `originator` is the reverse-path: the address in Sender, else From.

    `defects` are what was damaged in MIME and, where that had to be, repaired, each in a few words.
    `notify_success`: the sender wants to hear of deliveries as well.
    """

    content: Content
    originator: str
    recipients: tuple[str, ...]
    smtputf8: bool
    eight_bit: bool
    message_id: str
    subject: str
    defects: tuple[str, ...] = ()
    notify_success: bool = False
