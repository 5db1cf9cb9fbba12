"""The simulated internet that tests describe: remote domains, replies of hosts, received messages.

A description is a scenario (docs/internet.md), made by calls. Replies are used in the order of
their description: the first reply that matches is used until its `times` are used up.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from relay.base.message.envelope import domain_of
from relay.base.message.lifecycle import RecipientState
from relay.development.internet.behaviour import ReceivedMail
from relay.development.internet.scenario_file import read_scenarios, scenario_of
from relay.testing.message import WAIT_S, Message, MessageSource
from relay.testing.running import RunningRelay
from relay.testing.waiting import Pattern, WaitTimeout, Wanted, journey_lines, listed, timeout_text

_SHOWN_MAX = 10


class RemoteMessage(Message):
    """A message as a remote host received it: `host`, `helo`, `tls` (its version)."""

    def __init__(self, mail: ReceivedMail, source: MessageSource) -> None:
        super().__init__(lambda: mail.content, source)
        self.host = mail.host
        self.helo = mail.helo
        self.tls = mail.tls
        self.queue_id = mail.queue_id
        self._mail = mail

    @property
    def key(self) -> tuple[str, int, int]:
        """The identity of the transaction."""
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
    """The domains of the simulated internet. Coroutines must run in the relay's event loop."""

    def __init__(self, running: RunningRelay) -> None:
        self.running = running
        self.strict = False
        self._tables: dict[str, Any] = {"domain": []}
        self._taken: set[tuple[str, int, int]] = set()  # of messages that a wait returned

    def load(self, *scenarios: str | Path) -> None:
        """Add the domains of scenarios: files, or names such as "gmail" and "gmail:over-quota".

        Raises SettingsError.
        """
        tables = dict(self._tables)
        added = tomllib.loads(read_scenarios([str(name) for name in scenarios]).toml)
        for key, value in added.items():
            is_list = isinstance(value, list)
            tables[key] = [*tables.get(key, ()), *value] if is_list else value
        self._use(tables)

    def describe(self, name: str, /, **keys: Any) -> dict[str, Any]:
        """Set keys in the table of a domain, which is created if necessary; return the table.

        Raises SettingsError; then nothing changes.
        """
        before = self._table_of(name)
        if before is not None and not keys:
            return before
        table = {**(before or {"name": name}), **keys}
        domains = [table if other is before else other for other in self._tables["domain"]]
        if before is None:
            domains.append(table)
        self._use({**self._tables, "domain": domains})
        return table

    def add_fault(self, fault: Mapping[str, Any]) -> None:
        """Add an entry of [[graph]]. Raises SettingsError; then nothing changes."""
        self._use({**self._tables, "graph": [*self._tables.get("graph", ()), dict(fault)]})

    async def reset(self) -> None:
        """Empty the relay; remove the description and the record of seen messages."""
        await self.running.reset()
        self.strict = False
        self._tables = {"domain": []}
        self._taken.clear()

    def _use(self, tables: dict[str, Any]) -> None:
        """Apply a description. Raises SettingsError; then the present description stays."""
        scenario = scenario_of(tables, Path("internet"))

        async def use() -> None:
            self.running.relay.edit_scenario(scenario)

        self.running.run(use())
        self._tables = tables

    async def received(self, domain: str = "") -> list[RemoteMessage]:
        """Return the result of read(), after work in progress has ended."""
        await self.running.observer.rest()
        return await self.read(domain)

    async def read(self, domain: str = "") -> list[RemoteMessage]:
        """Return the messages that the hosts of a domain received; "" is all domains."""
        others = (self._table_of(domain) or {}).get("aliases", ())
        names = {domain_of(f"@{name}") for name in (domain, *others)}
        return [
            RemoteMessage(message, self.running.source_of(message.queue_id))
            for message in self.running.relay.internet.received
            if not domain or any(domain_of(address) in names for address in message.addresses)
        ]

    async def wait(self, domain: str, criteria: Wanted, timeout_s: float) -> RemoteMessage:
        """Return the first message that matches and that no wait returned; raise WaitTimeout."""
        observer, messages = self.running.observer, list[RemoteMessage]()
        async for _ in observer.looks(timeout_s):
            messages = await self.read(domain)
            for message in messages:
                if message.key not in self._taken and criteria.matches_values(
                    message.subject, [message.sender]
                ):
                    self._taken.add(message.key)
                    observer.saw(message.queue_id)
                    return message
        entries = [[message.line()] for message in messages]
        lines = listed(f"Received by the hosts of {domain}", entries)
        text = timeout_text(criteria, timeout_s, await observer.observed())
        raise WaitTimeout("\n".join([text, "", *lines]))

    async def check(self, timeout_s: float) -> None:
        """Settle, and raise AssertionError for mail to a domain that was not described."""
        observer = self.running.observer
        await observer.settle(timeout_s)
        captured = {
            recipient.address: "; ".join(journey_lines(journey))
            for journey in await observer.journeys()
            for recipient in journey.recipients
            if recipient.state == RecipientState.CAPTURED
        }
        if captured:
            domains = sorted({address.rpartition("@")[2] for address in captured})
            lines = [f"mail to domains that the test does not describe: {', '.join(domains)}"]
            lines += [f"  {line}" for line in list(captured.values())[:_SHOWN_MAX]]
            raise AssertionError("\n".join(lines))

    def _table_of(self, name: str) -> dict[str, Any] | None:
        for table in self._tables["domain"]:
            if name in (table["name"], *table.get("aliases", ())):
                domain: dict[str, Any] = table
                return domain
        return None


class SimulatedNetwork:
    """The simulated internet of a relay.

    With `strict`, mail to a domain that was not described fails the test; otherwise it is captured.
    """

    def __init__(self, scenario: InternetScenario) -> None:
        self._scenario = scenario

    @property
    def strict(self) -> bool:
        """Whether mail to a domain that was not described fails the test."""
        return self._scenario.strict

    @strict.setter
    def strict(self, value: bool) -> None:
        self._scenario.strict = value

    def load(self, *scenarios: str | Path) -> None:
        """Add the domains of scenarios: files, or names such as "gmail" and "gmail:4.2.2".

        Raises SettingsError.
        """
        self._scenario.load(*scenarios)

    def graph(self, status: int | str, **keys: Any) -> None:
        """Let the Graph API answer 401, 403, 404, 413, 429, 503 or 504. The keys are those of
        [[graph]] in docs/internet.md: path, method, account, retry_after, times.

        Raises SettingsError.
        """
        self._scenario.add_fault({"status": status, **keys})


class Internet(SimulatedNetwork):
    """The simulated internet, for tests without coroutines."""

    def domain(self, name: str) -> "RemoteSite":
        """Describe a remote domain: its hosts accept all mail, except where described otherwise."""
        return RemoteSite(self._scenario, name)

    def messages(self) -> list[RemoteMessage]:
        """Return the messages that remote hosts have received, in the order of their arrival."""
        return self._scenario.running.run(self._scenario.received())


class SiteScenario:
    """A remote domain and its hosts. Methods such as rcpt() name the verb for which replies are."""

    def __init__(self, scenario: InternetScenario, name: str) -> None:
        """Raises SettingsError if `name` is no domain."""
        self._scenario = scenario
        self.name = name.lower()
        scenario.describe(self.name)

    # -- replies

    def connect(self) -> "Stage":
        """Describe what happens to a connection; drop() refuses it."""
        return self._stage("CONNECT")

    def banner(self) -> "Stage":
        """Describe the greeting."""
        return self._stage("BANNER")

    def ehlo(self) -> "Stage":
        """Describe the reply to EHLO."""
        return self._stage("EHLO")

    def starttls(self) -> "Stage":
        """Describe the reply to STARTTLS; bad_certificate() presents an invalid certificate."""
        return self._stage("STARTTLS")

    def mail(self, sender: str = "") -> "Stage":
        """Describe the reply to MAIL, for senders that match this glob."""
        return self._stage("MAIL", sender=sender)

    def rcpt(self, local_part: str = "") -> "Stage":
        """Describe the reply to RCPT, for recipients whose local part matches this glob."""
        return self._stage("RCPT", recipient=self._local(local_part))

    def data(self, local_part: str = "") -> "Stage":
        """Describe the reply to DATA, if a recipient matches."""
        return self._stage("DATA", recipient=self._local(local_part))

    def dot(self, local_part: str = "") -> "Stage":
        """Describe the reply to the final dot, if a recipient matches."""
        return self._stage("DOT", recipient=self._local(local_part))

    def quit(self) -> "Stage":
        """Describe the reply to QUIT."""
        return self._stage("QUIT")

    def dns(self, host: str = "") -> "Stage":
        """Describe a fault of the name server, for the domain, or for the address of a host."""
        return self._stage("DNS", host=host)

    # -- the domain

    def mx(self, *hosts: str | tuple[str, int]) -> Self:
        """Give it these hosts, each a name or (name, preference)."""
        pairs = [(host, 10) if isinstance(host, str) else host for host in hosts]
        return self.set(mx=[{"host": host, "preference": number} for host, number in pairs])

    def null_mx(self) -> Self:
        """Make it a domain that accepts no mail (RFC 7505)."""
        return self.set(null_mx=True)

    def greylist(self, seconds: float) -> Self:
        """Refuse each pair of sender and recipient for `seconds` after its first attempt."""
        return self.set(greylist=f"{seconds:g}s")

    def latency(self, seconds: float) -> Self:
        """Delay each reply."""
        return self.set(latency=f"{seconds:g}s")

    def tls(self, mode: str) -> Self:
        """Set the TLS of its hosts: offered, required, none or bad-certificate."""
        return self.set(tls=mode)

    def limit(self, reply: str, **rates: str) -> Self:
        """Send `reply` to `connections`, `messages` or `recipients` beyond a rate: "10/1m"."""
        table = self._scenario.describe(self.name)
        return self.set(limit=[*table.get("limit", ()), {"reply": reply, **rates}])

    def add_reply(self, entry: Mapping[str, Any]) -> None:
        """Add an entry of a scenario's domain.reply. Raises SettingsError."""
        self.set(reply=[*self._scenario.describe(self.name).get("reply", ()), dict(entry)])

    def set(self, **keys: Any) -> Self:
        """Set keys of the domain's table in a scenario. Raises SettingsError."""
        self._scenario.describe(self.name, **keys)
        return self

    def _stage(self, verb: str, **keys: str) -> "Stage":
        return Stage(self, {"verb": verb, **{key: value for key, value in keys.items() if value}})

    def _local(self, local_part: str) -> str:
        """Return a local part that may be given as an address of this domain."""
        return local_part.removesuffix(f"@{self.name}")


class RemoteSite(SiteScenario):
    """A remote domain, for tests without coroutines."""

    def messages(self) -> list[RemoteMessage]:
        """Return the messages that its hosts have received, in the order of their arrival."""
        return self._scenario.running.run(self._scenario.received(self.name))

    def wait_for(
        self,
        *,
        subject: Pattern | None = None,
        sender: Pattern | None = None,
        timeout: float = WAIT_S,
    ) -> RemoteMessage:
        """Return the first received message that matches and that no wait returned before.

        Patterns are those of Mailbox.wait_for(). Raises WaitTimeout.
        """
        __tracebackhide__ = True
        criteria = Wanted(f"*@{self.name}", subject, sender)
        return self._scenario.running.run(self._scenario.wait(self.name, criteria, timeout))


class Stage:
    """The stage of a session, and the sender or recipient, for which it describes replies.

    Each method adds an entry. It is used `times` times; then the next entry that matches is used.
    """

    def __init__(self, site: SiteScenario, keys: Mapping[str, str]) -> None:
        self._site = site
        self._keys = keys

    def reply(
        self, text: str, *, times: int | None = None, delay: float = 0, chance: int = 100
    ) -> Self:
        """Reply `text`, such as "550 5.1.1 no such user", in `chance` percent of the cases."""
        more = {"chance": chance} if chance != 100 else {}
        return self._add(times, delay, reply=text, **more)

    def delay(self, seconds: float, *, times: int | None = None) -> Self:
        """Reply as usual, but `seconds` later."""
        return self._add(times, seconds)

    def drop(self, *, times: int | None = None, delay: float = 0) -> Self:
        """Close the connection."""
        return self._add(times, delay, action="drop")

    def stall(self, *, times: int | None = None) -> Self:
        """Send nothing any more."""
        return self._add(times, 0, action="stall")

    def bad_certificate(self, *, times: int | None = None) -> Self:
        """Present a certificate that is not valid, at STARTTLS."""
        return self._add(times, 0, action="bad-certificate")

    def servfail(self, *, times: int | None = None) -> Self:
        """Fail the query, at DNS."""
        return self._add(times, 0, action="servfail")

    def nxdomain(self, *, times: int | None = None) -> Self:
        """Answer that the name does not exist, at DNS."""
        return self._add(times, 0, action="nxdomain")

    def _add(self, times: int | None, delay_s: float, **keys: Any) -> Self:
        entry: dict[str, Any] = {**self._keys, **keys}
        if times is not None:
            entry["times"] = times
        if delay_s:
            entry["delay"] = f"{delay_s:g}s"
        self._site.add_reply(entry)
        return self
