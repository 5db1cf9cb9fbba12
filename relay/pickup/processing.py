"""What is done with one note: read, convert, submit, and then file the original or report.

On the path: a worker hands a note in; the store gets it back filed, failed, or as it was.
Holds: a repeat is harmless at every point; step 3 is recorded before the hand-over.
Fails: StoreError and OSError when the disk refuses; the note is then as it was.
Standards: the Graph send-mail process, steps 3 and 4; RFC 3464 by way of the reporter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from relay.accounts import DEAD_LETTER
from relay.clock import Clock, rfc3339
from relay.crashpoints import CrashPoint, CrashPoints
from relay.journeys.events import Event, Step
from relay.journeys.submission_log import SubmissionFacts, SubmissionLog
from relay.mailbox.api import SubmissionStore
from relay.mailbox.types import MailboxFullError, NoSuchItemError, PendingSubmission
from relay.message.content import LARGE_BYTES, Content, LargeContent, Octets, size_of
from relay.message.outcome import Evidence
from relay.message.properties import MessageProperties
from relay.message.reporting import Action, ReportedMessage, ReportedRecipient
from relay.message.status import one_line
from relay.mime.converted import ConversionError, Converted
from relay.mime.draft import read_private
from relay.mime.mimeread import read_message
from relay.mime.section import header_end
from relay.observe.logs import get_logger
from relay.observe.metrics import Metrics
from relay.pickup.conversion import Conversion, UnsafeNoteError
from relay.pickup.decisions import Accepted, End, Later, Refused, given_up, too_old
from relay.pickup.smtp_client import Gate, Submitter

_DEFECTS_MAX = 20
_HEADER_BYTES_MAX = 64 * 1024

_log = get_logger("pickup")


class Reporter(Protocol):
    """What pickup needs of reports."""

    def inbox_report(
        self, message: ReportedMessage, recipients: Sequence[ReportedRecipient]
    ) -> bytes:
        """Return the non-delivery report, fit to lie in an Inbox."""
        ...


@dataclass(frozen=True, slots=True)
class Tries:
    """What is known of earlier attempts with a note; `uncertain`: one ended without an answer."""

    failures: int = 0
    uncertain: bool = False


@dataclass(frozen=True, slots=True)
class Handling:
    """How a note is brought to its end; the same for every worker.

    `postmaster` is the mailbox for reports that fit into no other. `started_us` is when this
    process began: it does not know how attempts before it ended.
    """

    store: SubmissionStore
    reports: Reporter
    postmaster: str
    conversion: Conversion
    gate: Gate
    log: SubmissionLog
    clock: Clock
    crash: CrashPoints
    metrics: Metrics
    give_up_after_s: float
    started_us: int

    async def handle(
        self, note: PendingSubmission, submitter: Submitter, tries: Tries, *, alone: bool = False
    ) -> Later | None:
        """Try a note once; return None when it is done with, else why it must be tried again.

        `alone`: it is converted in a process of its own. Raises UnfinishedError unless it is.
        """
        try:
            content = await self.store.submission_content(note)
        except NoSuchItemError:  # filed before a restart, or by another process
            return None
        if end := too_old(self._age_s(note), self.give_up_after_s):
            await self._fail(note, _as_it_is(content, note), end)
            return None
        try:
            if alone:
                message = await self.conversion.converted_alone(note, content)
            else:
                message = await self.conversion.converted(note, content)
        except ConversionError as error:
            end = End(Evidence("5.6.3", f"5.6.3 {error}"))
            await self._fail(note, _as_it_is(content, note), end)
            return None
        except UnsafeNoteError as error:
            await self._quarantine(note, content, error)
            return None
        if not tries.failures:
            self._record(note, Step.CONVERTED, _facts_of(message))
        self.crash.reached(CrashPoint.NOTE_CONVERTED)
        return await self._submit(note, message, submitter, tries=tries)

    async def _submit(
        self, note: PendingSubmission, message: Converted, submitter: Submitter, *, tries: Tries
    ) -> Later | None:
        sent = partial(self.crash.reached, CrashPoint.SUBMISSION_SENT)
        verdict = await submitter.submit(message, submission_id=note.submission_id, after_dot=sent)
        match verdict:
            case Accepted(queue_id):
                self.gate.answered()
                self.crash.reached(CrashPoint.SUBMISSION_ACCEPTED)
                await self.store.complete_submission(note, queue_id=queue_id)
            case Refused(evidence):
                self.gate.answered()
                await self._fail(note, message, End(evidence))
            case Later(evidence):
                self.gate.put_off(note.submission_id, is_down=verdict.is_down)
                age_s = self._age_s(note)
                if age_s <= self.give_up_after_s:
                    return verdict
                uncertain = verdict.uncertain or tries.uncertain or await self._tried_before(note)
                end = given_up(age_s, self.give_up_after_s, evidence, uncertain=uncertain)
                assert end is not None
                await self._fail(note, message, end)
        return None

    async def _tried_before(self, note: PendingSubmission) -> bool:
        """Whether an earlier process may have submitted a note: it had got as far as step 3."""
        told = await self.log.submission(note.submission_id)
        converted = [one["at"] for one in (told or {}).get("steps", ()) if one["step"] == 3]
        mine = rfc3339(self.started_us), rfc3339(self.clock.time_us())
        return any(not mine[0] <= at <= mine[1] for at in converted)  # later: by a wrong clock

    async def _quarantine(
        self, note: PendingSubmission, content: Octets, error: UnsafeNoteError
    ) -> None:
        """Put a note aside with which no process came to an end; its sender is told."""
        _log.error("note quarantined", submission_id=note.submission_id, error=str(error))
        reply = f"5.6.0 the message could not be converted: {error}; it was put aside"
        message = _as_it_is(content, note, read_mime=False)
        await self._fail(note, message, End(Evidence("5.6.0", reply)), to_corrupt=True)

    async def _fail(
        self, note: PendingSubmission, message: Converted, end: End, *, to_corrupt: bool = False
    ) -> None:
        """Tell the sender, for good: the report, its record, then the note goes."""
        now_us = self.clock.time_us()
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
            ReportedRecipient(
                address,
                "",
                end.evidence,
                action=Action.DELAYED if end.unknown else Action.FAILED,
                last_attempt_us=now_us,
            )
            for address in message.recipients
        ]
        report = self.reports.inbox_report(about, recipients)
        kind, said = ("unknown", "unknown") if end.unknown else ("failure", "failed")
        reply = end.evidence.reply
        self._record(note, Step.CONVERTED, {said: reply})
        told = {"kind": kind, "to": note.account, "reply": reply}
        self._record(note, Step.REPORT, told)
        try:
            await self.store.fail_submission(note, report, to_corrupt=to_corrupt)
        except MailboxFullError as error:
            _log.warning(
                "report to the postmaster", submission_id=note.submission_id, reason=str(error)
            )
            self.metrics.reports.labels(kind="dead-letter").inc()
            self._record(note, Step.REPORT, told | {"to": "postmaster", "reason": str(error)})
            await self._fail_to_postmaster(note, report, to_corrupt=to_corrupt)
        _log.warning(
            "submission failed", submission_id=note.submission_id, status=end.evidence.status
        )

    async def _fail_to_postmaster(
        self, note: PendingSubmission, report: bytes, *, to_corrupt: bool
    ) -> None:
        """End a note whose sender's mailbox is full beyond what is kept for reports."""
        try:
            await self.store.fail_submission(
                note, report, report_to=self.postmaster, to_corrupt=to_corrupt
            )
        except MailboxFullError:  # the postmaster's as well; the Maildir of dead letters has no end
            await self.store.fail_submission(
                note, report, report_to=DEAD_LETTER, to_corrupt=to_corrupt
            )

    def _record(self, note: PendingSubmission, step: Step, detail: dict[str, Any]) -> None:
        facts = SubmissionFacts(note.submission_id, note.draft_id, note.account, note.account)
        self.log.append(facts, Event(step, self.clock.time_us(), detail))

    def _age_s(self, note: PendingSubmission) -> float:
        """How old a note is at least. The spool forgets its key by the same clock, and later."""
        return (self.clock.sure_us() - note.ready_us) / 1_000_000


def _facts_of(message: Converted) -> dict[str, Any]:
    """What step 3 says of a message: its defects only where it has any."""
    facts: dict[str, Any] = {
        "size": size_of(message.content),
        "recipients": len(message.recipients),
    }
    if message.defects:
        facts["defects"] = list(message.defects[:_DEFECTS_MAX])
    return facts


def _as_it_is(content: Octets, note: PendingSubmission, *, read_mime: bool = True) -> Converted:
    """Return what a report says of a message that could not be converted.

    A report needs somebody it is about: without any recipient, that is its sender. Unless
    `read_mime`, only what the relay wrote itself is read.
    """
    head = content.read(0, LARGE_BYTES)
    block, length = read_private(content)
    header = head[length:]
    header = header[: min(header_end(header).header, _HEADER_BYTES_MAX)]
    properties = MessageProperties()
    if block is not None and block.properties is not None:
        properties = block.properties
    elif read_mime:
        properties = read_message(header).properties
    people = (*properties.to, *properties.cc, *properties.bcc)
    is_whole = content.size == len(head)
    returned: Content = head[length:] if is_whole else LargeContent(header, (), eight_bit=True)
    return Converted(
        content=returned,
        originator=note.account,
        recipients=tuple(dict.fromkeys(one_line(one.address) for one in people)) or (note.account,),
        smtputf8=False,
        eight_bit=False,
        message_id="",
        subject="",
    )
