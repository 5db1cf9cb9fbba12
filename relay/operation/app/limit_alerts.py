"""Tell an operator that an account nears its limits: a message, and an event for webhooks.

Once a day (UTC) for each account and step: 80 % of a limit, and all of it. The submission key of
the message and the id of the event are made of these: after a restart, and on another node of the
spool, no second message is made, and an event has the same id. What waits is in memory: after a
crash the next message of the account tells.
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
    """note() tells webhooks; send() makes the messages."""

    def __init__(self, base: Foundation, transport: Transport, webhooks: Webhooks) -> None:
        """Nothing is sent yet."""
        self._base = base
        self._reporter = transport.reporter
        self._webhooks = webhooks
        self._day = 0
        self._told: set[tuple[str, int]] = set()  # of the day: accounts and steps
        self._waiting: deque[tuple[str, UsedLimit]] = deque()

    def note(self, used: UsedLimit) -> None:
        """Tell of a limit, unless it was told today; bounded by twice the accounts of a day."""
        now_us = self._base.clock.time_us()
        if now_us // DAY_US != self._day:
            self._day, self._told = now_us // DAY_US, set()
        step = 80 if used.until_us is None else 100
        if not self._told.isdisjoint([(used.account, step), (used.account, 100)]):
            return
        self._told.add((used.account, step))
        key = f"limit {self._day} {step} {used.account}"
        limit = f"{used.limit.what} {used.limit.rate}"
        until = used.as_json()["until"]
        _log.warning("limit", login=used.account, limit=limit, used=used.used, until=until or "")
        detail = {"account": used.account, "limit": limit, "used": used.used, "until": until}
        event_id = f"limit_{sha256(key.encode()).hexdigest()[:32]}"
        self._webhooks.tell("limit", detail, account=used.account, event_id=event_id)
        self._waiting.append((key, used))

    async def send(self) -> None:
        """Make the messages durable that wait. Raises SpoolError: it is to be repeated."""
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
        said = f"{account} has sent {used.used} of {count} {limit.what} in {period}"
        text = (
            f"{said} to other domains.\n"
            f"See: relay account usage {account}; relay log --login {account}"
        )
        lines = [("Account", account), ("Limit", f"{limit.what} {limit.rate}")]
        if until := used.as_json()["until"]:
            lines.append(("Further mail is refused until", until))

        def write(report_id: str) -> bytes:
            head = report_fields(
                author=f"Mail Delivery System <MAILER-DAEMON@{hostname}>",
                to=to,
                subject=said,
                message_id=f"<{report_id}.limit@{hostname}>",
                now_us=now_us,
                automatic="auto-generated",
            )
            return write_notice(head, text, lines)

        mail = RuleMail(to, "", (), text)
        about = MessageFacts("", Envelope(""), Source.REPORT, True, 0)
        await accept(self._reporter.rule_mail(mail, about=about, write=write), key)
