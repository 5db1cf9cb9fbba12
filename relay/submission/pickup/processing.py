"""Process a pending submission: read, convert, submit, file the original or report the failure.

Every step can be repeated after a crash. Step 3 is recorded before the message is submitted. On a
StoreError, SpoolError or OSError the submission is unchanged.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from msgspec import Struct, structs

from relay.base.accounts.account import DEAD_LETTER
from relay.base.clock import Clock, rfc3339
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.message.content import LARGE_BYTES, Content, LargeContent, Octets, size_of
from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, Notify, Source
from relay.base.message.header import header_end
from relay.base.message.outcome import Evidence
from relay.base.message.properties import MessageProperties
from relay.base.message.status import one_line
from relay.base.message.tls_policy import TlsPolicy
from relay.base.observe.logs import get_logger
from relay.base.observe.metrics import Metrics
from relay.delivery.smtp.connect import ConnectError, Target, connect
from relay.delivery.smtp.connection import AfterDot, Connection, Timeouts
from relay.delivery.smtp.transaction import Transaction
from relay.formats.convert import ConversionError, ConvertedMessage
from relay.formats.draft import read_private_block
from relay.formats.dsn import ReportedRecipient, ReportKind
from relay.formats.read_header import parse_header, read_properties_of_header
from relay.store.journeys import details
from relay.store.journeys.events import Event, Step
from relay.store.journeys.submission_log import SubmissionFacts, SubmissionLog
from relay.store.mailbox.errors import MailboxFullError, NoSuchItemError
from relay.store.mailbox.pending_submission import PendingSubmission
from relay.submission.outbox.on_disk import OF_ACCOUNT
from relay.submission.outbox.ready_submissions import ReadySubmissions
from relay.submission.pickup import decisions
from relay.submission.pickup.conversion import ConversionPool, ConversionUnfinishedError
from relay.submission.pickup.start_limits import StartLimits

_DEFECTS_MAX = 20
_HEADER_BYTES_MAX = 64 * 1024
_OF_POLICY = "4.7."  # RFC 3463 3.8: of this message, not of the server

# The default of NOTIFY, and SUCCESS (RFC 3461 4.1).
_WITH_SUCCESS = frozenset({Notify.SUCCESS, Notify.FAILURE, Notify.DELAY})
_TIMEOUTS = Timeouts(connect_s=10, command_s=60, data_s=60, block_s=60, dot_s=600)

_log = get_logger("pickup")


@dataclass(slots=True)
class EarlierAttempts:
    """The attempts of this process with a submission until now.

    `uncertain`: an attempt ended without a reply. `is_recorded`: step 3 is in the log. `waits` is
    the last temporary reply that was logged.
    """

    failures: int = 0
    uncertain: bool = False
    is_recorded: bool = False
    waits: str = ""


class SubmissionClient:
    """Submits one message at a time on run/pickup.sock, and keeps its connection open.

    A message is submitted to all recipients or to none. ENVID is always the submission id. Errors
    are returned as a SubmissionOutcome, never raised. RFC 6409 (submission), RFC 3461 4.4 (ENVID).
    """

    def __init__(self, socket: Path, *, hostname: str) -> None:
        self._target = Target(hostname, path=str(socket), tls=TlsPolicy("none"))
        self._hostname = hostname
        self._connection: Connection | None = None

    async def submit(
        self, message: ConvertedMessage, *, submission_id: str, after_dot: AfterDot | None = None
    ) -> decisions.SubmissionOutcome:
        """Submit `message` with the key `submission_id`. It is safe to repeat this."""
        notify = _WITH_SUCCESS if message.notify_success else frozenset()
        transaction = Transaction(
            Envelope(
                message.originator,
                envid=submission_id,
                smtputf8=message.smtputf8,
                eight_bit=message.eight_bit,
            ),
            recipients=tuple(ForwardPath(address, notify) for address in message.recipients),
            content=message.content,
            whole=True,
        )
        while True:
            try:
                connection = await self._open()
            except ConnectError as error:  # a reply to EHLO or the banner, not to this message
                return decisions.SubmissionDeferred(error.outcome.evidence, is_down=True)
            if not connection.extensions.dsn:
                await self.close()  # the next attempt opens a connection
                evidence = Evidence("4.3.5", "4.3.5 the pickup socket does not offer DSN")
                return decisions.SubmissionDeferred(evidence, is_down=True)
            result = await connection.transact(transaction, after_dot=after_dot)
            if not result.stale:  # a stale connection is closed: the next one is new
                return decisions.submission_outcome(result.outcomes.values())

    async def close(self) -> None:
        """Send QUIT and close the connection."""
        if self._connection is not None and self._connection.is_open:
            await self._connection.quit()
        self._connection = None

    async def _open(self) -> Connection:
        if self._connection is None or not self._connection.is_open:
            self._connection = None
            self._connection = await connect(
                self._target, ehlo_name=self._hostname, timeouts=_TIMEOUTS
            )
        return self._connection


class SubmissionProcessor(Struct, frozen=True):
    """Processes submissions; shared by all attempts."""

    ready: ReadySubmissions  # the submissions
    # writes the report on a failure: Reporter.inbox_report() of relay.delivery.reports
    inbox_report: Callable[..., Awaitable[bytes]]
    # returns the mailbox for reports that do not fit into the sender's
    postmaster: Callable[[], str]
    conversion: ConversionPool  # the child processes of step 3
    limits: StartLimits  # when the next submission may start
    # whether an account may send mail from an address
    may_send_as: Callable[[str, str], bool]
    # whether the mailbox of this address has an account, which is not disabled
    may_submit: Callable[[str], bool]
    # returns which of these submissions the spool has
    accepted: Callable[[Sequence[str]], Awaitable[Sequence[str]]]
    log: SubmissionLog  # of steps 1 to 4
    clock: Clock  # for queue time
    crash: CrashPoints  # for crash tests
    metrics: Metrics  # counts reports
    started_us: int  # when this process began; it does not know the results of earlier attempts

    async def process(
        self, pending: PendingSubmission, client: SubmissionClient, earlier: EarlierAttempts
    ) -> decisions.SubmissionDeferred | None:
        """Make one attempt; return None if the submission has ended, else the reason to retry."""
        try:
            content = await self.ready.content(pending)
        except NoSuchItemError:  # already filed, before a restart or by another process
            return None
        if not pending.base_name:
            await self._fail_damaged(pending, content)
            return None
        if end := decisions.key_expired(self._age_s(pending)):
            await self._fail(pending, _unconverted(content, pending), end)
            return None
        # one that the spool has was sent: it is submitted again to be filed
        may_submit = pending.is_released or self.may_submit(pending.account)
        if not may_submit and not await self.accepted([pending.submission_id]):
            await self.ready.hold(pending, OF_ACCOUNT)
            _log.warning("submission held", submission_id=pending.submission_id, reason=OF_ACCOUNT)
            return None
        try:
            message = await self.conversion.convert(pending, content)
        except ConversionError as error:
            end = decisions.FinalFailure(Evidence("5.6.3", f"5.6.3 {error}"))
            await self._fail(pending, _unconverted(content, pending), end)
            return None
        except ConversionUnfinishedError as error:
            await self._move_to_corrupt(pending, content, error)
            return None
        denied = [
            author for author in message.authors if not self.may_send_as(pending.account, author)
        ]
        if denied:
            shown_author = f"<{one_line(denied[0])}>" if denied[0] else "a field without an address"
            await self._fail(pending, message, _denied(shown_author, pending.account))
            return None
        if not earlier.is_recorded:
            self._record(pending, _facts_of(message, content.size))
            earlier.is_recorded = True
        self.crash.reached(CrashPoint.SUBMISSION_CONVERTED)
        return await self._submit(pending, message, client, earlier=earlier)

    async def _submit(
        self,
        pending: PendingSubmission,
        message: ConvertedMessage,
        client: SubmissionClient,
        *,
        earlier: EarlierAttempts,
    ) -> decisions.SubmissionDeferred | None:
        sent = CrashPoint.SUBMISSION_SENT
        after_dot = partial(self.crash.reached, sent) if self.crash.is_at(sent) else None
        outcome = await client.submit(
            message, submission_id=pending.submission_id, after_dot=after_dot
        )
        match outcome:
            case decisions.SubmissionAccepted(queue_id):
                self.limits.record_success()
                self.crash.reached(CrashPoint.SUBMISSION_ACCEPTED)
                await self.ready.complete(pending, queue_id=queue_id)
            case decisions.FinalFailure():
                self.limits.record_success()
                await self._fail(pending, message, outcome)
            case decisions.SubmissionDeferred(evidence):
                if evidence.status.startswith(_OF_POLICY):  # a rule defers it: the server works
                    self.limits.record_success()
                else:
                    self.limits.record_failure(pending.submission_id, is_down=outcome.is_down)
                if not outcome.is_down and evidence.reply != earlier.waits:
                    waits = details.NotifiedDetail(waits=evidence.reply)
                    self.log.remark(pending.submission_id, waits, account=pending.account)
                    earlier.waits = evidence.reply
                if self._age_s(pending) <= decisions.GIVE_UP_AFTER_S:
                    return outcome
                uncertain = (
                    outcome.uncertain or earlier.uncertain or await self._attempted_before(pending)
                )
                end = decisions.give_up(evidence, uncertain=uncertain)
                await self._fail(pending, message, end)
        return None

    async def _attempted_before(self, pending: PendingSubmission) -> bool:
        """Return whether an earlier process may have submitted it: step 3 is recorded."""
        journey = await self.log.submission(pending.submission_id)
        converted = [step.at for step in journey.steps if step.step == 3] if journey else []
        begin, now = rfc3339(self.started_us), rfc3339(self.clock.time_us())
        # A time in the future comes from a clock that was wrong.
        return any(not begin <= at <= now for at in converted)

    async def _fail_damaged(self, pending: PendingSubmission, content: Octets) -> None:
        """End a submission whose record is damaged.

        Only the log has its account. An attempt before the damage may have sent it.
        """
        journey = await self.log.submission(pending.submission_id)
        account = (journey.facts.account if journey else "") or self.postmaster()
        was_attempted = (
            any(step.step == Step.CONVERTED for step in journey.steps) if journey else False
        )
        reply = "5.0.0 its record on the disk is damaged; what is left of it is kept in corrupt/"
        end = decisions.FinalFailure(Evidence("5.0.0", reply), unknown=was_attempted)
        owned = replace(pending, account=account)
        await self._fail(owned, _unconverted(content, owned), end, to_corrupt=True)

    async def _move_to_corrupt(
        self, pending: PendingSubmission, content: Octets, error: ConversionUnfinishedError
    ) -> None:
        """Move a submission that cannot be converted to corrupt/ and report it to its sender."""
        _log.error(
            "submission moved to corrupt", submission_id=pending.submission_id, error=str(error)
        )
        reply = f"5.6.0 the message could not be converted: {error}; it is kept in corrupt/"
        message = _unconverted(content, pending, read_mime=False)
        await self._fail(
            pending, message, decisions.FinalFailure(Evidence("5.6.0", reply)), to_corrupt=True
        )

    async def _fail(
        self,
        pending: PendingSubmission,
        message: ConvertedMessage,
        end: decisions.FinalFailure,
        *,
        to_corrupt: bool = False,
    ) -> None:
        """End the submission: report, event, then removal."""
        now_us = self.clock.time_us()
        about = MessageFacts(
            id="",
            envelope=Envelope(pending.account, envid=pending.submission_id),
            source=Source.GRAPH,
            trusted=True,
            received_us=pending.ready_us,
        )
        recipients = [
            ReportedRecipient(ForwardPath(address), end.evidence, last_attempt_us=now_us)
            for address in message.recipients
        ]
        kind = ReportKind.UNKNOWN if end.unknown else ReportKind.FAILED
        report = await self.inbox_report(kind, about, recipients, content=message.content)
        reply = end.evidence.reply
        failed, unknown = ("", reply) if end.unknown else (reply, "")
        self._record(pending, details.ConvertedDetail(failed=failed, unknown=unknown))
        detail = details.SubmissionReportDetail(kind=str(kind), to=pending.account, reply=reply)
        self._record(pending, detail)
        try:
            await self.ready.fail(pending, report, to_corrupt=to_corrupt)
        except MailboxFullError as error:
            _log.warning(
                "report to the postmaster", submission_id=pending.submission_id, reason=str(error)
            )
            self.metrics.reports.labels(kind="dead-letter").inc()
            detail = structs.replace(detail, to="postmaster", reason=str(error))
            self._record(pending, detail)
            await self._fail_to_postmaster(pending, report, to_corrupt=to_corrupt)
        _log.warning(
            "submission failed", submission_id=pending.submission_id, status=end.evidence.status
        )

    async def _fail_to_postmaster(
        self, pending: PendingSubmission, report: bytes, *, to_corrupt: bool
    ) -> None:
        """End a submission whose report does not fit into the sender's mailbox."""
        try:
            await self.ready.fail(
                pending, report, report_to=self.postmaster(), to_corrupt=to_corrupt
            )
        except MailboxFullError:  # the postmaster's too; the dead-letter Maildir has no limit
            await self.ready.fail(pending, report, report_to=DEAD_LETTER, to_corrupt=to_corrupt)

    def _record(self, pending: PendingSubmission, detail: details.Detail) -> None:
        facts = SubmissionFacts(
            pending.submission_id, pending.draft_id, pending.account, pending.account
        )
        self.log.append(facts, Event(self.clock.time_us(), detail))

    def _age_s(self, pending: PendingSubmission) -> float:
        """Return a lower bound of its age. The spool removes its key later, by the same clock."""
        return (self.clock.confirmed_us() - pending.ready_us) / 1_000_000


def _denied(author: str, account: str) -> decisions.FinalFailure:
    reply = (
        f"5.7.1 found {author} in From or Sender: the account {account} does not have the right to "
        "send mail from there"
    )
    return decisions.FinalFailure(Evidence("5.7.1", reply))


def _facts_of(message: ConvertedMessage, draft_bytes: int) -> details.ConvertedDetail:
    return details.ConvertedDetail(
        size=size_of(message.content),
        recipients=len(message.recipients),
        draft="MIME" if message.from_mime else "properties",
        draft_size=draft_bytes,
        changes=message.changes,
        defects=message.defects[:_DEFECTS_MAX],
    )


def _unconverted(
    content: Octets, pending: PendingSubmission, *, read_mime: bool = True
) -> ConvertedMessage:
    """Return a message that could not be converted, for its report.

    A report needs a recipient: if there is none, it is the sender. Unless `read_mime`, only the
    private block that Relay wrote is read.
    """
    head = content.read(0, LARGE_BYTES)
    block, length = read_private_block(content)
    header = head[length:]
    header = header[: min(header_end(header).header, _HEADER_BYTES_MAX)]
    properties = MessageProperties()
    if block is not None and block.properties is not None:
        properties = block.properties
    elif read_mime:
        properties = read_properties_of_header(parse_header(header), is_stored=False)
    addresses = (*properties.to, *properties.cc, *properties.bcc)
    is_whole = content.size == len(head)
    returned: Content = head[length:] if is_whole else LargeContent(header, (), eight_bit=True)
    return ConvertedMessage(
        content=returned,
        originator=pending.account,
        authors=(),
        recipients=tuple(dict.fromkeys(one_line(recipient.address) for recipient in addresses))
        or (pending.account,),
        smtputf8=False,
        eight_bit=False,
        message_id="",
        subject="",
    )
