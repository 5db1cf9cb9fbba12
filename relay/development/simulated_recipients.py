"""What the hosts of the simulated internet do with the messages that they accept.

Each recipient gets a copy in a mailbox of this relay, where it can be read. A test recipient that
bounces later (bob+later550@example.org) is reported some seconds afterwards, by SMTP to the
relay's own listener, as a remote host would. Reports that wait are lost when the relay stops.
RFC 3461 4.1 (NOTIFY), RFC 3464.
"""

from collections.abc import Callable, Mapping
from functools import partial

from msgspec import Struct

from relay.base.clock import Clock, Ids, Timer
from relay.base.message import envelope as envelopes
from relay.base.message.address import own_mailbox
from relay.base.message.content import edit_header
from relay.base.message.outcome import Evidence, Relayed
from relay.base.message.status import split_reply
from relay.base.message.tls_policy import TlsPolicy
from relay.base.observe.logs import get_logger
from relay.base.socket_address import Address
from relay.base.task_set import TaskSet
from relay.delivery.reports.texts import ReportTexts
from relay.delivery.smtp.connect import ConnectError, Target, connect
from relay.delivery.smtp.connection import Timeouts
from relay.delivery.smtp.transaction import Transaction
from relay.development.internet.behaviour import ForwardedTo, ReceivedMail
from relay.development.internet.test_recipients import Manner, find_test_recipient
from relay.formats.dsn import Report, ReportedRecipient, ReportKind, write_dsn
from relay.store.mailbox.delivery_store import DeliveryStore
from relay.store.mailbox.errors import (
    ContentUnreadableError,
    MailboxFullError,
    StoreUnavailableError,
)

_log = get_logger("development")

LATER_S = 5.0  # from the acceptance to the report
REPORTS_BYTES_MAX = 64 * 1024**2  # of all reports that wait
_TIMEOUTS = Timeouts(connect_s=10, command_s=30, data_s=30, block_s=30, dot_s=60)


class _LaterReport(Struct, frozen=True):
    host: str
    to: str
    content: bytes


class SimulatedRecipients:
    """Keeps accepted messages in `store`, and sends reports to the relay at `smtp`."""

    def __init__(
        self, store: DeliveryStore, *, clock: Clock, ids: Ids, smtp: Callable[[], Address]
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._smtp = smtp
        self._waiting: set[Timer] = set()
        self._sending = TaskSet()
        self._bytes = 0  # of the reports that wait or are being sent

    async def keep(self, mail: ReceivedMail) -> None:
        """Put a copy into the mailbox of each recipient. Raises OSError if that is impossible."""
        for recipient in mail.recipients:
            head = f"Return-Path: <{mail.sender}>\r\nDelivered-To: {recipient.address}\r\n"
            try:
                await self._store.deliver(
                    own_mailbox(recipient.address),
                    unique=self._ids.new(),
                    content=edit_header(mail.content, head.encode().__add__),
                    over_quota=True,
                )
            except (MailboxFullError, ContentUnreadableError, StoreUnavailableError) as error:
                raise OSError(str(error)) from error
        for recipient in mail.recipients:
            self._expect_report(mail, recipient)

    def in_progress(self) -> str:
        """Say what is in progress, "" for nothing.

        A report that waits for its time does not count.
        """
        return f"reports by remote hosts: {len(self._sending)}" if self._sending else ""

    async def stop(self) -> None:
        """Discard the reports that wait."""
        for timer in self._waiting:
            timer.cancel()
        self._waiting.clear()
        await self._sending.end()
        self._bytes = 0

    def _expect_report(self, mail: ReceivedMail, recipient: ForwardedTo) -> None:
        test_recipient = find_test_recipient(recipient.address)
        if test_recipient is None or test_recipient.manner is not Manner.LATER or not mail.sender:
            return
        if self._bytes >= REPORTS_BYTES_MAX:
            _log.warning("a later report is left out: too many wait", host=mail.host)
            return
        if content := self._report(mail, recipient, test_recipient.reply):
            self._bytes += len(content)
            report = _LaterReport(mail.host, mail.sender, content)

            def send() -> None:
                self._waiting.discard(timer)
                self._sending.start(self._submit(report))

            timer = self._clock.call_later(LATER_S, send)
            self._waiting.add(timer)

    async def _submit(self, report: _LaterReport) -> None:
        smtp = self._smtp()
        target = Target("localhost", address=smtp.host, port=smtp.port, tls=TlsPolicy("none"))
        is_ascii = report.content.isascii()
        transaction = Transaction(
            envelopes.Envelope("", smtputf8=not is_ascii, eight_bit=not is_ascii),
            (envelopes.ForwardPath(report.to, frozenset({envelopes.Notify.NEVER})),),
            report.content,
        )
        try:
            connection = await connect(target, ehlo_name=report.host, timeouts=_TIMEOUTS)
            result = await connection.transact(transaction)
            await connection.quit()
            outcome = result.outcomes.get(0)
        except ConnectError as error:
            outcome = error.outcome
        if not isinstance(outcome, Relayed):
            reply = outcome.evidence.reply if outcome is not None else ""
            _log.warning("a later report was not accepted", host=report.host, reply=reply)
        self._bytes -= len(report.content)

    def _report(self, mail: ReceivedMail, recipient: ForwardedTo, reply: str) -> bytes:
        """Return the DSN about one recipient, b"" if the sender wants none."""
        try:
            notify = envelopes.parse_notify(recipient.parameters.get("NOTIFY", "FAILURE"))
            path = envelopes.ForwardPath(
                recipient.address,
                notify,
                _parsed(envelopes.parse_orcpt, recipient.parameters, "ORCPT"),
            )
            envelope = envelopes.Envelope(
                mail.sender,
                ret=_parsed(envelopes.parse_ret, mail.parameters, "RET"),
                envid=_parsed(envelopes.parse_envid, mail.parameters, "ENVID"),
                smtputf8="SMTPUTF8" in mail.parameters,
            )
        except ValueError:
            return b""
        if envelopes.Notify.FAILURE not in notify:
            return b""
        now_us, queue_id = self._clock.time_us(), self._ids.new()
        facts = envelopes.MessageFacts(
            queue_id,
            envelope,
            envelopes.Source.SMTP,
            trusted=False,
            received_us=mail.received_us,
            client=f"{mail.helo} [127.0.0.1]",
        )
        evidence = Evidence(split_reply(reply).status, reply)
        failed = [ReportedRecipient(path, evidence, last_attempt_us=now_us)]
        report = Report(ReportKind.FAILED, facts, failed, mail.host)
        return write_dsn(
            report,
            content=mail.content,
            words=partial(ReportTexts().write, report),
            report_id=queue_id,
            now_us=now_us,
        )


def _parsed(parse: Callable[[str], str], parameters: Mapping[str, str], name: str) -> str:
    return parse(parameters[name]) if name in parameters else ""
