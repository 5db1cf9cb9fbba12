"""What milters say of a message for `relay explain`: they hear a session of that client.

The session ends after their decision, and nothing is accepted.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from relay.api.dependencies import Question
from relay.api.explain import MESSAGE_BYTES_MAX
from relay.message.authentication_results import read_results
from relay.message.content import MemoryOctets, read_all
from relay.message.header import ParsedContent
from relay.message.lifecycle import OF_MILTER
from relay.message.status import one_line
from relay.milter.filtered_message import FilterVerdict, MilterSaid, NewBodies
from relay.milter.filters import FilterClient, FilterSession

# states in which mail is delivered or queued
GOES_ON: Final = ("local", "remote", "captured", "held")


class _BodyInMemory:
    """A NewBodyFile. Questions with a message are few."""

    def __init__(self) -> None:
        self._octets = bytearray()

    async def write(self, blocks: Sequence[bytes]) -> None:
        """See NewBodyFile."""
        self._octets += b"".join(blocks)

    def octets(self) -> MemoryOctets:
        """See NewBodyFile."""
        return MemoryOctets(bytes(self._octets))

    def discard(self) -> None:
        """See NewBodyFile."""


class AskedMilters(Struct, frozen=True):
    """What the milters said, and what it changes in the document of an answer."""

    question: Question  # with the message as they have changed it
    said: tuple[MilterSaid, ...]
    end: Mapping[str, Any] = {}  # the state of mail that goes no further
    hold: Mapping[str, Any] = {}  # that of mail that goes on

    def added_to(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the document with the answers."""
        hold = self.hold if document["state"] in GOES_ON else {}
        return {**document, **self.end, **hold, "milters": to_builtins(self.said)}


async def ask_milters(session: FilterSession, question: Question) -> AskedMilters:
    """Ask about the message of a question, which has one and a client. Ends the session."""
    steps = (
        partial(session.connect, FilterClient(address=question.ip)),
        partial(session.helo, f"[{question.ip}]"),
        partial(session.mail, question.sender),
        partial(session.rcpt, question.address),
        session.data,
    )
    content = ParsedContent.of(question.content or b"")
    try:
        for step in steps:
            if (answer := await step()).reply:
                said = MilterSaid(answer.milter, "", answer.answer, answer.reply)
                return AskedMilters(question, (said,), _rejected(answer.reply))
        verdict = await session.message(content, NewBodies(MESSAGE_BYTES_MAX, _BodyInMemory))
    finally:
        session.close()
    return _asked(question, verdict)


def _asked(question: Question, verdict: FilterVerdict) -> AskedMilters:
    if verdict.answer.reply:
        return AskedMilters(question, verdict.said, _rejected(verdict.answer.reply))
    if verdict.discarded_by or question.address in verdict.removed:
        return AskedMilters(question, verdict.said, {"state": "discarded"})
    found = verdict.content
    changed = ParsedContent(found.header.prepend(verdict.top), found.rest)
    question = replace(
        question, content=read_all(changed.joined()), results=read_results(verdict.results)
    )
    hold = {}
    if verdict.quarantine is not None:
        rule = f"{OF_MILTER}{verdict.quarantined_by}"
        hold = {"state": "held", "reason": verdict.quarantine or "quarantined", "rule": rule}
    return AskedMilters(question, verdict.said, hold=hold)


def _rejected(reply: str) -> dict[str, Any]:
    return {"state": "rejected", "reply": one_line(reply)}
