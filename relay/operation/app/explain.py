"""Explain where mail for an address goes, and why, without sending anything.

It decides nothing. It asks RCPT's checks, then the stages of acceptance up to the fan-out
(relay/transport/ingress/decision.py), then the resolver and the TLS policy as delivery asks them,
and reports each answer. A running relay uses the objects that acceptance and delivery use, and adds
the state of sites; explainer_of_files() makes them from a configuration. Milters get an SMTP
session of the client, which ends after they have decided. Without a message, the content is empty,
and what the rules compare of it is unknown. docs/names.md describes the document.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import to_builtins
from msgspec.structs import replace

from relay.base.clock import Clock, rfc3339
from relay.base.message.authentication_results import checks_of
from relay.base.message.content import MemoryOctets, size_of
from relay.base.message.envelope import OWN_REPORT, Envelope, ForwardPath
from relay.base.message.header import ParsedContent
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import CAPTURE, LOCAL, NextHop
from relay.base.message.outcome import Deferred, Failed
from relay.base.message.srs import Srs
from relay.base.message.status import one_line
from relay.base.message.tls_policy import REQUIRETLS
from relay.base.message.verdict import JUNK_EMAIL
from relay.base.settings.tree import Settings, SmtpListener
from relay.base.settings.validation import is_trusted
from relay.delivery.retry import RetrySchedule
from relay.delivery.site import SiteProbe, SiteState
from relay.delivery.site_limits import SiteOptions, parse_rate
from relay.front_door.api.dependencies import Question
from relay.front_door.api.explain import MESSAGE_BYTES_MAX
from relay.operation.app.account_file import accounts_of
from relay.operation.app.configuration import RoutePlace, read_table, route_places, srs_in
from relay.operation.app.foundation import Foundation
from relay.operation.app.tenant_sets import book_of, load_strictly
from relay.operation.app.transport import Transport, resolver_of, retry_schedule, site_options
from relay.store.journeys.details import MilterSaid
from relay.store.mailbox.usage import Room
from relay.store.spool.types import NewEntry, NewRecipient
from relay.transport.checks.checker import SenderChecker
from relay.transport.ingress import arrival
from relay.transport.ingress.acceptance import POLICY_TIMEOUT_S
from relay.transport.ingress.data import DataReply, Origin, RefusedError
from relay.transport.ingress.decision import DecidingStages
from relay.transport.ingress.fanout import HoldTimes
from relay.transport.ingress.filtering import SessionFilters, simulate
from relay.transport.ingress.forwarding import ExpandedRecipients, Forwarder
from relay.transport.ingress.message_limits import RateLimits
from relay.transport.ingress.sender_checks import SenderChecks
from relay.transport.ingress.session_owner import RecipientChecks
from relay.transport.ingress.stages import DecidedMail, ExaminedMail
from relay.transport.ingress.strangers import Stranger, StrangerChecks
from relay.transport.milter.filters import FilterClient, MilterSet
from relay.transport.policy.explanation import explain
from relay.transport.policy.message_parts import TooManyPartsError
from relay.transport.policy.message_view import UndecidedError
from relay.transport.policy.rule_book import RuleBook
from relay.transport.routing.mx_hosts import Hosts, Resolution, outcome_of
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routes import HopOptions
from relay.transport.routing.routing_result import (
    REJECT_STATUS,
    InvalidRecipient,
    LocalRecipient,
    RemoteRecipient,
    RoutingResult,
    suppressed,
)
from relay.transport.routing.usable_hosts import (
    OTHER_FAMILY,
    Resolve,
    mx_of,
    of_family,
    usable_hosts,
)

_NO_RULES = RuleBook()


async def _room_for_all(_account: str, _size: int) -> Room:
    """Answer for DeliveryStore.room() that each mailbox has room, without looking at any."""
    return Room.FITS


@dataclass(frozen=True, kw_only=True)
class Explainer:
    """Explains where mail for an address goes."""

    stages: DecidingStages  # as acceptance decides
    resolve: Resolve  # as delivery resolves next hops
    schedule: RetrySchedule  # as delivery retries
    options: SiteOptions  # of sites, before a route changes them
    places: Mapping[str, RoutePlace]  # of the routes, by name
    checks: RecipientChecks  # as at RCPT; returns the active rules too
    trusts: Callable[[str], bool]  # whether a client's address is in trusted_networks
    listener: SmtpListener | None = None  # the first of role relay, to which the client connects
    strangers: StrangerChecks | None = None  # as at RCPT; None: there are none
    # returns the present state of the site of these hosts; None: no relay runs
    state_of: Callable[[NextHop, Hosts], SiteState] | None
    # returns why an operator holds what comes for an address, or ""; None: no relay runs
    why_held: Callable[[str], Awaitable[str]] | None = None
    # returns since when dead addresses are on the list, in wall time; None: no relay runs
    suppressed_us: Callable[[Sequence[str]], Awaitable[Mapping[str, int]]] | None = None
    # opens an SMTP session with these hosts, and ends it before MAIL; None: no relay runs
    probe: Callable[[NextHop, Hosts], Awaitable[SiteProbe]] | None = None

    @property
    def table(self) -> RouteTable:
        """The routes."""
        return self.stages.forwarding.router

    async def explain(self, question: Question) -> dict[str, Any]:
        """Return what would become of the mail. Raises TimeoutError if the rules take too long."""
        arrived = self._arrived(question)
        rejection = "" if question.is_report else await self._rejection_at_rcpt(arrived)
        prepared = arrival.PreparedMail(arrived, ParsedContent.of(arrived.content))
        said: Sequence[MilterSaid] = ()
        try:
            if question.content is not None and not rejection:
                prepared = await self._prepared(arrived)
                said = prepared.arrival.filtered.said
            examined = self.stages.examined(prepared)
            document = await self._explained(question, examined, rejection=rejection)
        except RefusedError as refused:
            document = self._replaced(question, []) | _rejected(refused.reply.reply)
            said = said or refused.said
        finally:
            prepared.release()
        if said:
            document["milters"] = to_builtins(said)
        if arrived.origin.checks is not None:
            document["checks"] = checks_of(prepared.arrival.filtered.results)
        if question.probe and self.probe is not None:
            document["probe"] = await self._probed(document)
        return document

    def _arrived(self, question: Question) -> arrival.ArrivedMail:
        """Return the mail as its client gives it. A client without an address has logged in, if an
        account has the address of the sender, else it is trusted.
        """
        ip, sender, content = question.ip, question.sender, question.content
        owner = None if ip else self.stages.preparation.accounts.by_address(sender)
        is_trusted, checks = not ip or self.trusts(ip), None
        if not (is_trusted or content is None or self.listener is None):
            checks = SenderChecks.of(self.listener)
        origin = Origin(
            ip,
            helo=f"[IPv6:{ip}]" if ":" in ip else ip and f"[{ip}]",
            login=owner.address if owner else "",
            trusted=is_trusted,
            checks=checks,
        )
        to = [ForwardPath(question.address)]  # it has neither a queue id nor a queue time
        return arrival.ArrivedMail(Envelope(sender), to, content or b"", origin, "", 0, sender)

    async def _rejection_at_rcpt(self, arrived: arrival.ArrivedMail) -> str:
        """Return the reply that rejects the recipient at RCPT, or ""."""
        [path], sender, origin = arrived.paths, arrived.sender, arrived.origin
        size_bytes = size_of(arrived.content)
        answer = await self.checks.answer(path.address, sender, size_bytes=size_bytes)
        if answer.reply or sender.is_trusted or self.strangers is None or self.listener is None:
            return answer.reply
        stranger = Stranger(self.strangers, self.listener, origin.ip)
        answer = await stranger.refusal(path.address, sender.reverse_path, helo=origin.helo)
        return answer.reply

    async def _prepared(self, arrived: arrival.ArrivedMail) -> arrival.PreparedMail:
        """Prepare a message; the milters hear a session of its client. Raises RefusedError."""
        preparation, origin = self.stages.preparation, arrived.origin
        session = preparation.milters.session("relay") if origin.ip else None
        if session is None:
            return await preparation.prepare(arrived)
        client, envelope = FilterClient(address=origin.ip), arrived.envelope
        try:
            refused = await simulate(
                session, envelope, arrived.paths, client=client, helo=origin.helo
            )
            for answer in refused.values():
                said = MilterSaid(answer.milter, "", answer.answer, answer.reply)
                raise RefusedError(DataReply(answer.reply), [said])
            filters = SessionFilters(session, MESSAGE_BYTES_MAX)
            return await preparation.prepare(replace(arrived, filters=filters))
        finally:
            session.close()

    async def _probed(self, document: Mapping[str, Any]) -> Any:
        """Connect to the hosts of the next hop. Return None for mail with several targets or
        without hosts.
        """
        if not document["hosts"] or "targets" in document:
            return None
        route = document["route"]
        next_hop = NextHop.parse(route["next_hop"])._replace(route=route["name"])
        if self.table.options_for(next_hop).login is None:  # then the sender logs in
            next_hop = next_hop._replace(mailbox=route.get("mailbox", ""))
        hosts = await usable_hosts(self.resolve, self.table, next_hop)
        if not isinstance(hosts, Hosts) or self.probe is None:
            return None
        return msgspec.to_builtins(await self.probe(next_hop, hosts))

    async def _explained(
        self, question: Question, examined: ExaminedMail, *, rejection: str
    ) -> dict[str, Any]:
        """Explain each recipient by itself. `rejection` is the reply that rejects the address of
        the question at RCPT, or "".
        """
        recipients, expansion = examined.recipients, examined.expand(question.address)
        targets = [
            await self._recipient(question, mail, rejection="" if expansion else rejection)
            for mail in _each_recipient(examined)
        ]
        if expansion is not None:
            for document, target in zip(targets, expansion.targets, strict=False):
                document["aliases"] = [*target.through[1:], target.address]
        if len(targets) == 1:
            explained = targets[0] | {"address": question.address}
        else:
            explained = self._replaced(question, targets)
        for recipient in recipients.aliases:
            if not recipient.successors:
                explained |= _ended(recipient)
        if rejection:
            explained["reply"] = rejection
            if explained["state"] in GOES_ON:  # its mailbox is full
                explained["state"] = "rejected"
        if expansion is not None and expansion.writers is not None:
            by = expansion.targets[0].through[0]
            explained["writers"] = {"alias": by, "from": expansion.writers.named}
        return explained

    async def _recipient(
        self, question: Question, examined: ExaminedMail, *, rejection: str
    ) -> dict[str, Any]:
        """Explain the one recipient of a message. `rejection` is the reply at RCPT, or ""."""
        [path], [route] = examined.recipients.paths, examined.routes
        rules, other_null = self.checks.rules(), {}
        if question.is_report:  # its maker asks neither RCPT nor rules
            other = self._document(path.address, question, self.table.examine(path.address))
            other_null = {"other_null": other["route"]}
            route, rules = self.table.examine(path.address, OWN_REPORT), _NO_RULES
            examined = replace(examined, routes=(route,))
        document = self._document(path.address, question, route) | other_null
        if rejection:
            document |= {"state": document["state"] or "rejected", "reply": rejection}
        if document["state"]:
            return document
        message, is_known = self.stages.rule_input(examined), question.content is not None
        try:
            async with asyncio.timeout(POLICY_TIMEOUT_S):  # real time: a thread
                explained = await asyncio.to_thread(explain, rules, message, has_content=is_known)
        except TooManyPartsError:
            return document | _rejected(arrival.TOO_MANY_PARTS.reply)
        except UndecidedError:
            return document | _rejected(arrival.NO_POLICY.reply)
        document["rules"] = [_rule(rule) for rule in to_builtins(explained.rules)]
        if (deferred := explained.verdict.deferred) is not None:
            reply = arrival.deferral_reply(deferred)
            return document | _rejected(reply.reply) | {"rule": reply.rule}
        decided = self.stages.decided(examined, explained.verdict, rules)
        [verdict], [route] = decided.verdict.recipients, decided.examined.routes
        document["route"] = self._document(path.address, question, route)["route"]
        return document | {"rule": verdict.rule} | await self._sorted(question, decided)

    async def _sorted(self, question: Question, decided: DecidedMail) -> dict[str, Any]:
        """Return where the copy of the one recipient goes, or the copies that replace it."""
        verdict, examined = decided.verdict, decided.examined
        [successors] = [recipient.successors for recipient in verdict.recipients]
        additions = tuple([copy for copy in verdict.additions if copy.address in successors])
        decided = replace(decided, verdict=replace(verdict, additions=additions))
        fan_out = self.stages.fan_out(decided, HoldTimes())
        copies: list[tuple[NewRecipient, NewEntry | None]] = [
            (recipient, queued) for queued in fan_out.entries for recipient in queued.recipients
        ]
        ended = [final for final in fan_out.final_recipients if final not in fan_out.aliases]
        copies += [(recipient, None) for recipient in ended]
        targets = list[dict[str, Any]]()
        for recipient, queued in copies:
            address, route = recipient.path.address, examined.routes[0]
            if recipient.added_by:
                route = examined.examine(address, "", False)
                document = self._document(address, question, route)
                if not document["state"]:
                    document |= await self._copy(question, recipient, queued, route=route)
                targets.append(document)
            elif queued or recipient.state in (RecipientState.FAILED, RecipientState.DISCARDED):
                return await self._copy(question, recipient, queued, route=route)
        return {"state": _state_of_all(targets), "targets": targets}

    async def _copy(
        self,
        question: Question,
        recipient: NewRecipient,
        queued: NewEntry | None,
        *,
        route: RoutingResult,
    ) -> dict[str, Any]:
        """Return where the copy of a recipient goes. `queued` is its entry, None if it has none."""
        document: dict[str, Any]
        if queued is None:
            return _ended(recipient)
        if self.suppressed_us is not None and not question.is_report:
            looked_up = self.stages.looked_up(queued)
            for since_us in (await self.suppressed_us(looked_up)).values():
                return _rejected(suppressed(since_us).text)
        if isinstance(route, LocalRecipient):
            document = {"state": "local", "mailbox": route.mailbox}
        elif queued.next_hop == CAPTURE:
            document = {"state": "captured"}
        else:
            document = await self._hosts_of(queued.next_hop)
        if queued.extra.folder:
            document["folder"] = JUNK_EMAIL
        reason = queued.extra.reason
        if self.why_held is not None:
            reason = reason or await self.why_held(recipient.path.address)
        if reason:
            document |= {"state": "held", "reason": reason}
        return document | ({"rule": queued.extra.rule} if queued.extra.rule else {})

    async def _hosts_of(self, next_hop: NextHop) -> dict[str, Any]:
        """Return the hosts of a next hop, and how they are contacted."""
        via = self.table.options_for(next_hop)
        document: dict[str, Any] = {
            "state": "remote",
            "limits": self._limits(via),
            "site": None,
            "retry": list(self.schedule.retry_s),
            "tls": None,
        }
        usable = partial(usable_hosts, self.resolve, self.table, next_hop)
        resolution = await usable()
        document |= _hosts(resolution, via)
        if not isinstance(resolution, Hosts):
            outcome = outcome_of(resolution, self.table.is_own_anywhere)
            state = "invalid" if isinstance(outcome, Failed) else "remote"
            return document | {"state": state, "reply": outcome.evidence.reply}
        tls = resolution.hosts[0].tls
        assert tls is not None
        policy = f"{tls.by}; {tls.note}" if tls.note else tls.by
        strict = isinstance(await usable(demand=REQUIRETLS), Hosts)
        document["tls"] = {"level": tls.policy.level, "policy": policy, "requiretls": strict}
        if self.state_of is not None:
            site = self.state_of(next_hop, resolution)
            document["site"] = _site(site, self.stages.preparation.clock)
        return document

    def _limits(self, via: HopOptions) -> dict[str, Any]:
        options = self.options.limited(via.connections_max, parse_rate(via.rate))
        rate = options.rate
        return {
            "max_connections": options.connections_max,
            "max_rate": f"{rate.count}/{rate.per_s:g}" if rate is not None else "",
            "source_address": via.source_address,
        }

    def _replaced(self, question: Question, targets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the document of an alias with several targets."""
        document = self._document(question.address, question, InvalidRecipient("", ""))
        return document | {"state": _state_of_all(targets), "targets": list(targets)}

    def _document(self, address: str, question: Question, result: RoutingResult) -> dict[str, Any]:
        """Return the document of an address with its route or rejection; the rest is empty."""
        next_hop = state = reply = ""
        way = login = None
        match result:
            case LocalRecipient():
                next_hop = str(LOCAL)
            case RemoteRecipient(hop):
                next_hop, way = str(hop), self.table.fallback_for(hop)
                login = self.table.options_for(hop).login
            case InvalidRecipient():
                is_refused = result.route or result.status == REJECT_STATUS
                state, reply = "rejected" if is_refused else "invalid", result.text
        place = self.places.get(result.route, RoutePlace("", 0))
        return {
            "address": address,
            "from": question.sender,
            "state": state,
            "reply": reply,
            "reason": "",
            "rule": "",
            "aliases": [],
            "rules": [],
            "route": {
                "name": result.route,
                "file": place.file,
                "line": place.line,
                "next_hop": next_hop,
                **({"mailbox": login.user} if login and login.oauth else {}),
                **({"fallback": str(way.to), "fallback_after": way.after_us / 1e6} if way else {}),
            },
            "mailbox": "",
            "hosts": [],
            "hosts_more": 0,
            "tls": None,
            "limits": {},
            "site": None,
            "retry": [],
            "running": self.state_of is not None,
        }


def _each_recipient(examined: ExaminedMail) -> Iterator[ExaminedMail]:
    """Yield the message for each recipient that gets it, without those that milters added."""
    every = examined.recipients
    places = zip(every.paths, every.positions, every.forwarded_by, examined.routes, strict=True)
    for path, position, by, route in places:
        if path.address not in every.added_by:
            recipient = ExpandedRecipients((path,), (position,), (by,), every.aliases)
            yield replace(examined, recipients=recipient, routes=(route,))


def _ended(recipient: NewRecipient) -> dict[str, Any]:
    """Return the state of a recipient that gets nothing."""
    if recipient.state is RecipientState.DISCARDED:
        return {"state": "discarded"}
    return _rejected(recipient.reply)


def _rule(finding: dict[str, Any]) -> dict[str, Any]:
    """Return a rule without its recipients, because the question has only one."""
    return {name: value for name, value in finding.items() if name != "recipients"}


def _state_of_all(targets: Sequence[Mapping[str, Any]]) -> str:
    """Return the state of the first target that gets the mail, else of the first target."""
    states = [str(target["state"]) for target in targets] or ["rejected"]
    return next((state for state in states if state in GOES_ON), states[0])


def _hosts(resolution: Resolution, via: HopOptions) -> dict[str, Any]:
    """Return the hosts in the order in which delivery tries them, then those that it skips."""
    mx, documents = mx_of(resolution, via.source_address), []
    hosts = resolution.hosts if isinstance(resolution, Hosts) else ()
    for host in hosts:
        addresses = list(of_family(host.addresses, via.source_address))
        documents.append(
            {
                "name": host.name,
                "preference": host.preference,
                "addresses": addresses,
                "skipped": "" if addresses else OTHER_FAMILY,
            }
        )
    names = {host.name for host in hosts}
    documents += [
        {"name": host.name, "preference": host.preference, "addresses": [], "skipped": host.skipped}
        for host in mx.hosts
        if host.name not in names
    ]
    return {"hosts": documents, "hosts_more": mx.more}


def _site(state: SiteState, clock: Clock) -> dict[str, Any]:
    """Return the state of a site as JSON."""
    now_us = clock.time_us()
    paused_us, failed_us = int(state.paused_s * 1e6), int(state.failed_s * 1e6)
    return {
        "connections": state.connections,
        "paused_until": rfc3339(now_us + paused_us) if paused_us > 0 else None,
        "paused_by": state.paused_by,
        "last_failure": _failure(state.failure, rfc3339(now_us - failed_us)),
    }


def _failure(outcome: Deferred | Failed | None, at: str) -> dict[str, str] | None:
    if outcome is None:
        return None
    return {"at": at, "host": outcome.evidence.host, "reply": outcome.evidence.reply}


def explainer_of(base: Foundation, transport: Transport) -> Explainer:
    """Return the explainer of a relay that runs."""
    stages, schedule = transport.acceptance.stages, retry_schedule(base.settings)
    return Explainer(
        stages=stages,
        resolve=transport.policies.resolve,
        schedule=schedule,
        options=site_options(base.settings, schedule),
        places=base.sources.route_places(),
        checks=RecipientChecks(
            stages.forwarding,
            base.store.room,
            transport.verifier.rejection,
            rules=base.sources.rules,
        ),
        trusts=partial(is_trusted, base.settings.smtp),
        listener=_relay_listener(base.settings),
        strangers=transport.strangers,
        state_of=transport.scheduler.sites.state_of,
        why_held=base.spool.queue_admin.why_held,
        suppressed_us=base.spool.suppression.since_us,
        probe=transport.scheduler.probe,
    )


def _relay_listener(settings: Settings) -> SmtpListener | None:
    return next((listener for listener in settings.smtp if listener.role == "relay"), None)


@contextmanager
def explainer_of_files(
    settings: Settings, *, file: Path, environ: Mapping[str, str], clock: Clock
) -> Iterator[tuple[Explainer, Callable[[], Any]]]:
    """Yield an explainer of a configuration that no relay uses, and the function that closes its
    resolver. Both are for use in an event loop. Raises SettingsError.
    """
    boxes = settings.mailboxes
    accounts = accounts_of(settings, clock=clock, environ=environ)
    resolver = resolver_of(settings, clock)
    checker = SenderChecker(resolver.answers_for_clients, clock=clock)
    try:
        table = read_table(settings, accounts, file)
        srs = srs_in(settings) or Srs(secrets.token_bytes(), boxes.srs_domain)
        forwarding = Forwarder(
            accounts, table, srs, clock, RateLimits(clock), boxes.forward_own_from
        )
        schedule = retry_schedule(settings)
        rules = book_of(load_strictly(settings, file), settings)
        preparation = arrival.Preparation(
            settings.hostname,
            accounts,
            clock,
            any_sender=False,
            milters=MilterSet(settings.milter, hostname=settings.hostname),
            new_body=_BodyInMemory,
            checker=checker,
            reads_auth=lambda: rules.reads_auth,
        )
        explainer = Explainer(
            stages=DecidingStages(preparation, forwarding),
            resolve=resolver.resolve,
            schedule=schedule,
            options=site_options(settings, schedule),
            places=route_places(file, settings),
            checks=RecipientChecks(forwarding, _room_for_all, rules=lambda: rules),
            trusts=partial(is_trusted, settings.smtp),
            listener=_relay_listener(settings),
            strangers=StrangerChecks(
                resolver.answers_for_clients, is_own=table.is_local_domain, clock=clock
            ),
            state_of=None,
        )
        yield explainer, resolver.close
    finally:
        checker.close()
        accounts.close()


# states in which mail is delivered or queued
GOES_ON: Final = ("local", "remote", "captured", "held")


class _BodyInMemory:
    """An IncomingBody that stays in memory, because questions with a message are rare."""

    def __init__(self) -> None:
        self._octets = bytearray()

    async def write(self, blocks: Sequence[bytes]) -> None:
        """See IncomingBody."""
        self._octets += b"".join(blocks)

    def octets(self) -> MemoryOctets:
        """See IncomingBody."""
        return MemoryOctets(bytes(self._octets))

    def discard(self) -> None:
        """See IncomingBody."""


def _rejected(reply: str) -> dict[str, Any]:
    return {"state": "rejected", "reply": one_line(reply)}
