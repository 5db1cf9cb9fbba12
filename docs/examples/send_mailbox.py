#!/usr/bin/env python3
"""Send mail of files to `relay dev`: mbox, MH folders, Maildirs, and files of single messages.

Flags, folders and the time of arrival are lost.
python3 send_mailbox.py 127.0.0.1:1025 bob@example.test old.mbox ~/Maildir
"""

import mailbox
import re
import smtplib
import sys
from collections.abc import Iterator
from email import message_from_bytes
from email.utils import parseaddr
from pathlib import Path


def messages(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each message with its place. In an mbox file, lines begin with >From for From."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and (file.parent.name in ("cur", "new") or file.name.isdigit()):
                yield str(file), file.read_bytes()
    elif not path.read_bytes().startswith(b"From "):
        yield str(path), path.read_bytes()
    else:
        for key, octets in mailbox.mbox(path, lambda file: file.read(), create=False).items():
            yield f"{path}, message {key}", re.sub(rb"(?m)^>(?=>*From )", b"", octets)


status = 0
for path in map(Path, sys.argv[3:]):
    for place, octets in messages(path):
        sender = parseaddr(str(message_from_bytes(octets)["From"]))[1]
        sender = sender if sender.isascii() and "@" in sender else ""
        try:
            with smtplib.SMTP(sys.argv[1]) as relay:  # each its own: refusals end a session
                relay.sendmail(sender, sys.argv[2], re.sub(rb"\r?\n", b"\r\n", octets))
        except smtplib.SMTPException as error:
            sys.stderr.write(f"{place}: {error}\n")
            status = 1
sys.exit(status)
