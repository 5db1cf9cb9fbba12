"""What a scanner sends: a message with files of octets that no other file has."""

from email.message import EmailMessage
from email.policy import SMTP
from random import Random


def file_of(number: int, size: int) -> bytes:
    """The octets of a file."""
    return Random(number).randbytes(size)


def scanned(*sizes: int, subject: str = "scan", sender: str = "alice@example.test") -> bytes:
    """A message to Bob with files of these sizes."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, "bob@example.test", subject
    message["Message-ID"] = f"<{subject.replace(' ', '.')}@a.test>"
    message.set_content("A scan.\n")
    for number, size in enumerate(sizes):
        octets = file_of(number, size)
        message.add_attachment(octets, "application", "pdf", filename=f"scan {number}.pdf")
    return message.as_bytes(policy=SMTP)
