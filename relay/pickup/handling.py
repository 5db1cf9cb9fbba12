"""What is done with one note: read, convert, submit, and then file the original or report.

On the path: a worker hands a note in; the store gets it back filed, failed, or as it was.
Holds: a repeat is harmless at every point; step 3 is recorded before the hand-over.
Fails: StoreError and OSError when the disk refuses; the note is then as it was.
Standards: the Graph send-mail process, steps 3 and 4; RFC 3464 by way of the reporter.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from relay.clock import Clock
from relay.journal.crash import CrashPoint, CrashPoints
from relay.journal.events import Event, Step
from relay.journal.logs import get_logger
from relay.journal.storelog import StoreLog, SubmissionFacts
from relay.mailbox.api import MailStore
from relay.mailbox.types import NoSuchItemError, Note
from relay.message.content import size_of
from relay.message.convert import convert
from relay.message.converted import ConversionError, Converted
from relay.message.draft import split_private
from relay.message.mimeread import read_message
from relay.message.outcome import Evidence
from relay.message.reporting import ReportedMessage, ReportedRecipient
from relay.message.status import one_line
from relay.pickup.decisions import Accepted, Later, Refused, given_up, unknown
from relay.pickup.submission import Submitter

_INLINE_BYTES_MAX = 256 * 1024  # a bigger conversion would hold the event loop up

_log = get_logger("pickup")


class Reporter(Protocol):
    """What pickup needs of reports."""

    def inbox_report(
        self, message: ReportedMessage, recipients: Sequence[ReportedRecipient]
    ) -> bytes:
        """Return the non-delivery report, fit to lie in an Inbox."""
        ...


@dataclass(frozen=True, slots=True)
class Handling:
    """How a note is brought to its end; the same for every worker."""

    store: MailStore
    reports: Reporter
    log: StoreLog
    clock: Clock
    crash: CrashPoints
    hostname: str
    give_up_after_s: float

    async def handle(self, note: Note, submitter: Submitter, *, repeated: bool) -> Later | None:
        """Try a note once; return None when it is done with, else why it must be tried again."""
        try:
            raw = await self.store.note_content(note)
        except NoSuchItemError:  # filed before a restart, or by another process
            return None
        if evidence := unknown(self._age_s(note), self.give_up_after_s):
            await self._fail(note, raw, evidence)
            return None
        try:
            message = await self._converted(raw, note)
        except ConversionError as error:
            await self._fail(note, raw, Evidence("5.6.3", f"5.6.3 {error}"))
            return None
        if not repeated:
            detail = {"size": size_of(message.content), "recipients": len(message.recipients)}
            self._record(note, Step.CONVERTED, detail)
        self.crash.reached(CrashPoint.NOTE_CONVERTED)
        return await self._submit(note, message, submitter)

    async def _submit(self, note: Note, message: Converted, submitter: Submitter) -> Later | None:
        sent = partial(self.crash.reached, CrashPoint.SUBMISSION_SENT)
        verdict = await submitter.submit(message, submission_id=note.submission_id, after_dot=sent)
        match verdict:
            case Accepted(queue_id):
                self.crash.reached(CrashPoint.SUBMISSION_ACCEPTED)
                await self.store.file_original(note, queue_id=queue_id)
                return None
            case Refused(evidence):
                await self._fail(note, message, evidence)
                return None
            case Later(evidence):
                end = given_up(self._age_s(note), self.give_up_after_s, evidence)
                if end is None:
                    return verdict
                await self._fail(note, message, end)
                return None

    async def _converted(self, raw: bytes, note: Note) -> Converted:
        """Convert, big ones in a thread. Raises ConversionError, also for a fault of our own."""
        now_us = self.clock.time_us()
        try:
            if len(raw) <= _INLINE_BYTES_MAX:
                return convert(raw, now_us=now_us, hostname=self.hostname)
            return await asyncio.to_thread(convert, raw, now_us=now_us, hostname=self.hostname)
        except (ConversionError, MemoryError):
            raise
        except Exception as error:
            _log.exception("conversion fault", submission_id=note.submission_id)
            raise ConversionError("the message could not be converted") from error

    async def _fail(self, note: Note, message: Converted | bytes, evidence: Evidence) -> None:
        """Tell the sender, for good: the report, its record, then the note goes."""
        now_us = self.clock.time_us()
        if isinstance(message, bytes):
            message = _as_it_is(message, note)
        about = ReportedMessage(
            queue_id="",
            reverse_path=note.account,
            envid=note.submission_id,
            ret="",
            arrival_us=note.ready_us,
            client="",
            content=message.content,
        )
        recipients = [
            ReportedRecipient(address, "", evidence, last_attempt_us=now_us)
            for address in message.recipients
        ]
        report = self.reports.inbox_report(about, recipients)
        self._record(note, Step.CONVERTED, {"failed": evidence.reply})
        self._record(note, Step.REPORT, {"kind": "failure", "to": note.account})
        await self.store.fail_note(note, report)
        _log.warning("submission failed", submission_id=note.submission_id, status=evidence.status)

    def _record(self, note: Note, step: Step, detail: dict[str, Any]) -> None:
        facts = SubmissionFacts(note.submission_id, note.draft_id, note.account, note.account)
        self.log.append(facts, Event(step, self.clock.time_us(), detail))

    def _age_s(self, note: Note) -> float:
        return (self.clock.time_us() - note.ready_us) / 1_000_000


def _as_it_is(raw: bytes, note: Note) -> Converted:
    """Return what a report says of a message that could not be converted.

    A report needs somebody it is about: without any recipient, that is its sender.
    """
    properties = read_message(raw).properties
    people = (*properties.to, *properties.cc, *properties.bcc)
    return Converted(
        content=raw[split_private(raw)[1] :],
        originator=note.account,
        recipients=tuple(dict.fromkeys(one_line(one.address) for one in people)) or (note.account,),
        smtputf8=False,
        eight_bit=False,
        message_id="",
        subject="",
    )
