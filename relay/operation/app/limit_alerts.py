"""Warn an operator about an account near its limits: by a message, and by an event for webhooks.

An account causes one warning a day (UTC) at 80 % of a limit, and one at 100 %. The submission key
of the message and the id of the event are made of the day, the step and the account. Therefore no
second message is made after a restart or on another node of the spool, and a repeated event has the
same id. Warnings wait in memory: after a crash, the next message of the account causes them again.
"""

from collections import deque
from hashlib import sha256

from relay.base.accounts.usage import DAY_US, UsedLimit
from relay.base.message.envelope import Envelope, MessageFacts, Source
from relay.base.message.verdict import RuleMail
from relay.base.observe.logs import get_logger
from relay.formats.dsn import report_fields, write_notice
from relay.front_door.notifications.webhooks import Webhooks
from relay.operation.app.foundation import Foundation
from relay.operation.app.transport import Transport

_log = get_logger("app")


class LimitAlerts:
    """note() sends events to webhooks; send() makes the messages."""

    def __init__(self, base: Foundation, transport: Transport, webhooks: Webhooks) -> None:
        """Send nothing yet."""
        self._base = base
        self._reporter = transport.reporter
        self._webhooks = webhooks
        self._day = 0
        self._noted: set[tuple[str, int]] = set()  # the accounts and steps of this day
        self._waiting: deque[tuple[str, UsedLimit]] = deque()

    def note(self, used: UsedLimit) -> None:
        """Warn about a limit, at most once a day for each account and step."""
        now_us = self._base.clock.time_us()
        if now_us // DAY_US != self._day:
            self._day, self._noted = now_us // DAY_US, set()
        step = 80 if used.until_us is None else 100
        if not self._noted.isdisjoint([(used.account, step), (used.account, 100)]):
            return
        self._noted.add((used.account, step))
        key = f"limit {self._day} {step} {used.account}"
        limit = f"{used.limit.what} {used.limit.rate}"
        until = used.as_json()["until"]
        _log.warning("limit", login=used.account, limit=limit, used=used.used, until=until or "")
        detail = {"account": used.account, "limit": limit, "used": used.used, "until": until}
        event_id = f"limit_{sha256(key.encode()).hexdigest()[:32]}"
        self._webhooks.tell("limit", detail, account=used.account, event_id=event_id)
        self._waiting.append((key, used))

    async def send(self) -> None:
        """Store the waiting messages in the queue. Raises SpoolError: call it again later."""
        while self._waiting:
            await self._send(*self._waiting[0])
            self._waiting.popleft()

    async def _send(self, key: str, used: UsedLimit) -> None:
        to, accept = self._base.settings.limits.alert, self._reporter.copies.accept
        if not to or accept is None:
            return
        hostname, now_us = self._base.settings.hostname, self._base.clock.time_us()
        account, limit = used.account, used.limit
        count, _, period = limit.rate.partition("/")
        subject = f"{account} has sent {used.used} of {count} {limit.what} in {period}"
        text = (
            f"{subject} to other domains.\n"
            f"See: relay account usage {account}; relay log --login {account}"
        )
        lines = [("Account", account), ("Limit", f"{limit.what} {limit.rate}")]
        if until := used.as_json()["until"]:
            lines.append(("Further mail is refused until", until))

        def write(report_id: str) -> bytes:
            head = report_fields(
                author=f"Mail Delivery System <MAILER-DAEMON@{hostname}>",
                to=to,
                subject=subject,
                message_id=f"<{report_id}.limit@{hostname}>",
                now_us=now_us,
                automatic="auto-generated",
            )
            return write_notice(head, text, lines)

        mail = RuleMail(to, "", (), text)
        about = MessageFacts("", Envelope(""), Source.REPORT, True, 0)
        await accept(self._reporter.rule_mail(mail, about=about, write=write), key)
