"""The scenario of a relay under test, described step by step, and what its hosts received."""

import asyncio
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay.internet.behaviour import ReceivedMail
from relay.internet.scenario_file import read_scenarios, scenario_of
from relay.message.lifecycle import RecipientState
from relay.settings.document import SettingsError
from relay.testing.message import Message, MessageSource
from relay.testing.waiting import WaitTimeout, Wanted, journey_lines, timeout_text

if TYPE_CHECKING:
    from relay.testing.running import RunningRelay

_queue_id = re.compile(r"\bid ([0-9a-z]{16})\b")
_HEADER_BYTES_MAX = 16 * 1024
_SHOWN_MAX = 10


class RemoteMessage(Message):
    """A message as a remote host received it: `host`, `helo`, `tls` (its version)."""

    def __init__(self, mail: ReceivedMail, source: MessageSource) -> None:
        super().__init__(lambda: mail.content, source)
        self.host = mail.host
        self.helo = mail.helo
        self.tls = mail.tls
        self.queue_id = _id_of(mail)
        self._mail = mail

    @property
    def key(self) -> tuple[str, int, int]:
        """What identifies the transaction."""
        return self.host, self._mail.session, self._mail.received_us

    def line(self) -> str:
        """Return one line about it."""
        to = ", ".join(self.recipients)
        return f'{self.host}: "{self.subject}" from {self.sender or "<>"} to {to}'

    @property
    def sender(self) -> str:
        """The reverse-path."""
        return self._mail.sender

    @property
    def recipients(self) -> list[str]:
        """The recipients of this transaction."""
        return self._mail.addresses


class InternetScenario:
    """Which domains there are. Coroutines are for the relay's loop."""

    def __init__(self, running: "RunningRelay") -> None:
        self.running = running
        self.strict = False
        self._tables: dict[str, Any] = {"domain": []}
        self._taken: set[tuple[str, int, int]] = set()  # of messages that a wait returned

    def load(self, *scenarios: str | Path) -> None:
        """Add the domains of scenarios: files, or names such as "gmail" and "gmail:over-quota".

        Raises SettingsError.
        """
        found = tomllib.loads(read_scenarios([str(one) for one in scenarios]).toml)
        self._extend(found)

    def describe(self, name: str) -> dict[str, Any]:
        """Return the table of a domain, a new one if there is none. Raises SettingsError."""
        table = self._table_of(name)
        if table is None:
            table = {"name": name}
            self._extend({"domain": [table]})
        return table

    def reset(self) -> None:
        """Forget everything: the relay was emptied."""
        self.strict = False
        self._tables = {"domain": []}
        self._taken.clear()

    def apply(self) -> None:
        """Put the description into force. Raises SettingsError; then what is in force stays."""
        scenario = scenario_of(self._tables, Path("internet"))

        async def use() -> None:
            self.running.relay.extend_scenario(scenario)

        self.running.run(use())

    async def read(self, domain: str = "") -> list[RemoteMessage]:
        """Return what the hosts of a domain received, of all for ""."""
        names = {domain, *(self._table_of(domain) or {}).get("aliases", ())}
        return [
            RemoteMessage(one, self.running.source_of(_id_of(one)))
            for one in self.running.relay.internet.received
            if not domain or any(each.lower().rpartition("@")[2] in names for each in one.addresses)
        ]

    async def wait(self, domain: str, wanted: Wanted, timeout_s: float) -> RemoteMessage:
        """Return the first message that matches and that no wait returned; raise WaitTimeout."""
        changes = self.running.relay.daemon.changes
        deadline_s = asyncio.get_running_loop().time() + timeout_s  # real time: a test waits
        while True:
            count = changes.count
            found = await self.read(domain)
            for one in found:
                if one.key not in self._taken and wanted.matches_values(one.subject, [one.sender]):
                    self._taken.add(one.key)
                    self.running.observer.saw(one.queue_id)
                    return one
            try:
                async with asyncio.timeout_at(deadline_s):  # real time: as above
                    await changes.wait_beyond(count)
            except TimeoutError:
                break
        lines = [f"Received by the hosts of {domain}: {len(found) or 'nothing'}"]
        lines += [f"  {one.line()}" for one in found[-_SHOWN_MAX:]]
        text = timeout_text(wanted, timeout_s, await self.running.observer.observed())
        raise WaitTimeout("\n".join([text, "", *lines]))

    async def check(self, timeout_s: float) -> None:
        """Settle, and raise AssertionError for mail to a domain that was not described."""
        observer = self.running.observer
        await observer.settle(timeout_s)
        found = {
            one["address"]: "; ".join(journey_lines(journey))
            for journey in await observer.journeys()
            for one in journey["recipients"]
            if one["state"] == RecipientState.CAPTURED
        }
        if found:
            domains = sorted({address.rpartition("@")[2] for address in found})
            lines = [f"mail to domains that the test does not describe: {', '.join(domains)}"]
            lines += [f"  {one}" for one in list(found.values())[:_SHOWN_MAX]]
            raise AssertionError("\n".join(lines))

    def _extend(self, tables: dict[str, Any]) -> None:
        """Add to the lists, replace other values. Raises SettingsError; then nothing changes."""
        before, extended = self._tables, dict(self._tables)
        for key, value in tables.items():
            is_list = isinstance(value, list)
            extended[key] = [*extended.get(key, ()), *value] if is_list else value
        self._tables = extended
        try:
            self.apply()
        except SettingsError:
            self._tables = before
            raise

    def _table_of(self, name: str) -> dict[str, Any] | None:
        for table in self._tables["domain"]:
            if name in (table["name"], *table.get("aliases", ())):
                found: dict[str, Any] = table
                return found
        return None


def _id_of(mail: ReceivedMail) -> str:
    """Return the queue id that Relay wrote into the first Received field, "" without one."""
    header = mail.content[:_HEADER_BYTES_MAX].decode("latin-1")
    found = _queue_id.search(header)
    return found[1] if found else ""
