"""A development relay with mail in every state: for tests of all pages, and for the documentation's pictures."""

import smtplib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from relay.testing import Relay

SHOP = "shop@example.test"
_HTML = """<body style="margin: 0 auto; max-width: 600px; font: 15px/1.5 Inter, Arial, sans-serif">
<h1 style="margin: 0; padding: 36px; background: #0b5cad; color: #fff; text-align: center">Your order is on its way</h1>
<p>Hello Joe, order <b>1042</b> has left our warehouse.</p>
<table><tr><th>Article</th><th>Pieces</th></tr><tr><td>Pencil, HB</td><td>12</td></tr></table>
<p><a href="https://shop.example/orders/1042">Follow your order</a>. Your code is 481516.</p>
<img src="https://images.example/logo.png" alt="Logo">"""

_PROGRAM = b"""Subject: Setup program\r
MIME-Version: 1.0\r
Content-Type: application/octet-stream; name="setup.exe"\r
Content-Disposition: attachment; filename="setup.exe"\r
\r
MZ\r
"""


@dataclass(frozen=True)
class Samples:
    """A relay, and the id of each message in its queue by subject."""

    relay: Relay
    ids: dict[str, str] = field(default_factory=dict)

    def send(self, sender: str, to: list[str], subject: str, *content: object) -> None:
        message = self.relay.send(sender, to, subject, *content)  # type: ignore[arg-type]
        self.relay.settle()
        self.ids[subject] = message.journey["id"]
        for step in message.journey["steps"]:
            if "report_id" in step["detail"]:
                self.ids[f"Undeliverable: {subject}"] = step["detail"]["report_id"]

    def url(self, place: str) -> str:
        """The URL of a path, or of the message with a subject."""
        path = place if place.startswith("/") else f"/messages/{self.ids[place]}"
        return self.relay.http_url + path


@contextmanager
def relay_with_samples() -> Iterator[Samples]:
    """Run a relay that has delivered, captured, deferred and bounced mail."""
    with Relay() as relay:
        slow = relay.internet.domain("slow.example")
        slow.rcpt("joe").reply("451 4.3.0 the mailbox is busy", times=99)
        relay.internet.domain("strict.example").rcpt("nobody").reply("550 5.1.1 no such user")
        relay.internet.domain("grey.example").greylist(3600)
        attached = [("invoice 1042.csv", b"article,pieces\nPencil HB,12\n"), ("logo.png", _logo())]
        made, joe, nobody = Samples(relay), "joe@slow.example", "nobody@strict.example"
        made.send(SHOP, ["alice@example.test"], "Welcome to the shop", "Your account is ready.")
        made.send(
            SHOP,
            ["joe@gmail.com"],
            "Your order is on its way",
            "Hello Joe, order 1042.",
            _HTML,
            attached,
        )
        made.send(SHOP, [nobody], "Invoice 1041", "Please pay.")
        made.send(SHOP, ["ann@grey.example", "bob@example.test"], "Minutes of Monday", "We met.")
        made.send(SHOP, [joe, nobody], "Reminder", "Please pay.")
        made.send("alice@example.test", ["bob@example.test"], "Lunch?", "At noon?")
        with smtplib.SMTP(*relay.smtp) as session, suppress(smtplib.SMTPDataError):
            session.sendmail(SHOP, [joe, "bob@example.test"], _PROGRAM)  # a rule refuses it
        yield made


def png(**chunks: bytes) -> bytes:
    """Return a picture of chunks (ISO/IEC 15948)."""
    octets = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks.items():
        named = kind.encode() + content
        octets += len(content).to_bytes(4) + named + zlib.crc32(named).to_bytes(4)
    return octets


def _logo() -> bytes:
    """Return a small picture: one colour."""
    header = (16).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    rows = (b"\0" + b"\x0b\x5c\xad" * 16) * 16
    return png(IHDR=header, IDAT=zlib.compress(rows), IEND=b"")
