"""The same milter asked by Postfix and by Relay: what each of them stores is the same, field by field."""

import contextlib
import smtplib
from collections.abc import Callable
from email.message import Message

from tests.interop.conftest import missing
from tests.support.milter import ScriptedMilter, added, in_thread, packet, placed
from tests.support.postfix import NoPostfixError, Postfix
from tests.support.relay_process import RelayProcess, until

SENT = b"""\
Date: Thu, 26 Nov 2026 09:00:00 +0000\r
Message-ID: <1@client.test>\r
From: ann@client.test\r
To: carol@example.test,\r
\tbob@example.test\r
X-Same: one\r
X-Same: two\r
X-Old: old\r
Subject:two\r
\r
Hello\r
.dot\r
"""
NOT_COMPARED = {"Return-Path", "Delivered-To", "X-Original-To", "X-Relay-Id"}
CHANGES = {
    "add": [
        added("X-Added", "value"),
        added("X-Added", " with blank"),
        added("x-folded", "a\n\tb\n  c"),
    ],
    "insert": [placed(b"i", at, "X-Placed", f"at {at}") for at in (0, 1, 2, 3, 100, 0, 1)],
    "change": [
        placed(b"m", 0, "X-Same", "changed"),
        placed(b"m", 2, "x-same", "other"),
        placed(b"m", 1, "Subject", "[x] two"),
        placed(b"m", 3, "X-Same", "third"),
        placed(b"m", 1, "X-New", "is added"),
        placed(b"m", 1, "To", "a@example.test,\n\tb@example.test"),
    ],
    "remove": [
        placed(b"m", 1, "X-Same", ""),
        placed(b"m", 1, "X-Old", ""),
        placed(b"m", 7, "X-Same", ""),
        placed(b"m", 1, "X-None", ""),
    ],
    "Received is not counted": [placed(b"m", 1, "Received", "changed")],
    "mixed": [
        placed(b"i", 1, "X-Same", "inserted"),
        placed(b"m", 1, "X-Same", "first"),
        added("X-Same", "last"),
        placed(b"m", 4, "X-Same", "fourth"),
        placed(b"i", 3, "X-Placed", "3"),
        placed(b"m", 1, "Date", ""),
        placed(b"i", 0, "Authentication-Results", "mx.example.test; spf=pass"),
    ],
    "body": [packet(b"b", b"new\r\nbo"), packet(b"b", b"dy\r\n..\r\n"), added("X-Added", "value")],
    "body without an end": [packet(b"b", b"last")],
}


def fields(message: Message) -> list[tuple[str, str]]:
    """The fields that are compared; of an own Received only where it is."""
    return [
        (name, "" if name == "Received" and value != "changed" else value)
        for name, value in message.items()
        if name not in NOT_COMPARED
    ]


def submit(client: smtplib.SMTP) -> None:
    with client:
        client.sendmail("ann@client.test", ["carol@example.test"], SENT)


def newest(mail: Callable[[], list[Message]], known: set[str]) -> Message:
    """Wait for a message that is not known yet, and know it."""

    def new() -> dict[str, Message]:
        return {one.as_string(): one for one in mail() if one.as_string() not in known}

    [(text, message)] = until("a message", new).items()
    known.add(text)
    return message


def test_postfix_and_relay_store_the_same() -> None:
    milter = ScriptedMilter()
    with in_thread(milter) as address, contextlib.ExitStack() as stack:
        settings = {"smtpd_milters": f"inet:{address}", "milter_default_action": "tempfail"}
        try:
            postfix = stack.enter_context(
                Postfix(domain="example.test", people=["carol"], settings=settings)
            )
        except NoPostfixError as why:
            missing(why)
        config = {
            "hostname": "mx.example.test",
            "milter": [{"name": "scripted", "address": address}],
        }
        relay = stack.enter_context(RelayProcess(config=config))
        known: set[str] = set()
        for name, changes in CHANGES.items():
            milter.script[b"E"] = b"".join(changes) + packet(b"c")
            submit(postfix.session())
            theirs = newest(lambda: postfix.mail("carol"), known)
            submit(relay.smtp(source="127.0.0.2"))
            ours = newest(lambda: relay.maildir("carol"), known)
            assert fields(ours) == fields(theirs), name
            assert ours.get_payload() == theirs.get_payload(), name
