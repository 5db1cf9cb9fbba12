"""Explain where mail for an address goes, and why, without sending anything.

It decides nothing. It asks the route table, the rules, the resolver and the TLS policy in the order
in which acceptance and delivery ask them, and reports each answer. A running relay uses the objects
that acceptance and delivery use, and adds the state of sites; explainer_of_files() makes them from
a configuration. Milters get an SMTP session of the client, which ends after they have decided.
docs/names.md describes the document.
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
from msgspec import Struct, to_builtins
from msgspec.structs import replace

from relay.base.accounts.account import Expansion
from relay.base.clock import Clock, rfc3339
from relay.base.message.authentication_results import checks_of, read_results
from relay.base.message.content import MemoryOctets, read_all
from relay.base.message.envelope import ForwardPath, Source, domain_of
from relay.base.message.header import Header, ParsedContent
from relay.base.message.lifecycle import OF_MILTER
from relay.base.message.nexthop import CAPTURE, LOCAL, NextHop
from relay.base.message.outcome import Deferred, Failed
from relay.base.message.srs import Srs
from relay.base.message.status import one_line, own_reply
from relay.base.message.tls_policy import REQUIRETLS
from relay.base.message.verdict import (
    JUNK_EMAIL,
    AddedRecipient,
    ExaminedMessage,
    Hold,
    RecipientVerdict,
    Verdict,
    VerdictAction,
)
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
from relay.transport.checks.checker import SenderChecker, SenderQuestion
from relay.transport.ingress.acceptance import POLICY_TIMEOUT_S
from relay.transport.ingress.arrival import NO_POLICY, TOO_MANY_PARTS
from relay.transport.ingress.data import Submitter
from relay.transport.ingress.forwarding import Forwarder, expand_recipients
from relay.transport.ingress.message_limits import RateLimits
from relay.transport.ingress.sender_checks import SenderChecks, judge
from relay.transport.ingress.session_owner import RecipientChecks
from relay.transport.ingress.strangers import Stranger, StrangerChecks
from relay.transport.milter.filtered_message import FilterVerdict, NewBodies
from relay.transport.milter.filters import FilterClient, FilterSession, MilterSet
from relay.transport.policy.explanation import RulesExplained, explain
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
)
from relay.transport.routing.usable_hosts import (
    OTHER_FAMILY,
    Resolve,
    mx_of,
    of_family,
    usable_hosts,
)

_NO_PLACE = RoutePlace("", 0)


async def _room_for_all(_account: str, _size: int) -> Room:
    """Answer for DeliveryStore.room() that each mailbox has room, without looking at any."""
    return Room.FITS


@dataclass(frozen=True, kw_only=True)
class Explainer:
    """Explains where mail for an address goes."""

    forwarding: Forwarder  # aliases and the route table, as acceptance uses them
    rules: Callable[[], RuleBook]  # returns the active rules
    resolve: Resolve  # as delivery resolves next hops
    schedule: RetrySchedule  # as delivery retries
    options: SiteOptions  # of sites, before a route changes them
    clock: Clock  # for the times of a site's state, and the dates of rules
    places: Mapping[str, RoutePlace]  # of the routes, by name
    checks: RecipientChecks  # as at RCPT
    trusts: Callable[[str], bool]  # whether a client's address is in trusted_networks
    milters: MilterSet  # as acceptance asks them
    # returns the checks of a stranger's address, as at RCPT; None: there are none
    strangers: Callable[[str], Stranger] | None = None
    # returns the present state of the site of these hosts; None: no relay runs
    state_of: Callable[[NextHop, Hosts], SiteState] | None
    # returns why an operator holds what comes for an address, or ""; None: no relay runs
    why_held: Callable[[str], Awaitable[str]] | None = None
    # opens an SMTP session with these hosts, and ends it before MAIL; None: no relay runs
    probe: Callable[[NextHop, Hosts], Awaitable[SiteProbe]] | None = None
    checker: SenderChecker | None = None  # as acceptance uses it
    sender_checks: SenderChecks | None = None  # of the first listener of role relay
    hostname: str = ""  # in the results of sender checks

    @property
    def table(self) -> RouteTable:
        """The routes."""
        return self.forwarding.router

    async def explain(self, question: Question) -> dict[str, Any]:
        """Return what would become of the mail. Raises TimeoutError if the rules take too long."""
        session = None
        if question.content is not None and question.ip:
            session = self.milters.session("relay")
        document = await (self._filtered(question, session) if session else self._checked(question))
        if question.probe and self.probe is not None:
            document["probe"] = await self._probed(document)
        return document

    async def _filtered(self, question: Question, session: FilterSession) -> dict[str, Any]:
        """Ask the milters, then explain the message as they have changed it."""
        asked = await ask_milters(session, question)
        if asked.end:
            sender = Submitter(question.sender, is_trusted=False)
            return asked.added_to(self._replaced(question.address, sender, []))
        return asked.added_to(await self._checked(asked.question, question.content))

    async def _checked(self, question: Question, received: bytes | None = None) -> dict[str, Any]:
        """Check the sender of the message as the client sent it, then explain the message."""
        checks, content = self.sender_checks, received or question.content
        is_checked = content is not None and question.ip and not self.trusts(question.ip)
        if checks is None or self.checker is None or content is None or not is_checked:
            return await self._explain(question)
        helo = f"[IPv6:{question.ip}]" if ":" in question.ip else f"[{question.ip}]"
        asked = SenderQuestion(question.ip, helo, question.sender, self.hostname)
        ours = await self.checker.check(asked, content, needs_all=self.rules().reads_auth)
        checked = judge(checks, question.results, ours, ip=question.ip, hostname=self.hostname)
        document = await self._explain(replace(question, results=checked.results))
        is_refused_at_rcpt = document["state"] in ("rejected", "invalid") and not document["rule"]
        if checked.reply and not is_refused_at_rcpt:
            sender = Submitter(question.sender, is_trusted=False)
            document = self._replaced(question.address, sender, []) | _rejected(checked.reply)
        elif checked.in_junk and document["state"] == "local":
            document["folder"] = JUNK_EMAIL
        return document | {"checks": checks_of(checked.results)}

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

    async def _explain(self, question: Question) -> dict[str, Any]:
        sender = Submitter(
            question.sender,
            not question.ip or self.trusts(question.ip),
            is_checked=self.sender_checks is not None and question.content is not None,
            results=question.results,
        )
        expand = self._expander(question)
        expansion = expand(question.address)
        size_bytes = len(question.content or b"")
        answer = await self.checks.answer(question.address, sender, size_bytes=size_bytes)
        rejection = answer.reply
        if not (rejection or sender.is_trusted or self.strangers is None):
            stranger = self.strangers(question.ip)
            rejection = (await stranger.refusal(question.address, question.sender, helo="")).reply
        if expansion is None:
            return await self._recipient(question.address, sender, question, rejection=rejection)
        if not expansion.targets:  # it has forwarded the message before
            [alias] = expand_recipients([ForwardPath(question.address)], expand).aliases
            explained = self._replaced(question.address, sender, [])
            return explained | {"state": "rejected", "reply": alias.reply}
        asked = {}
        if (writers := expansion.writers) is not None:
            by = expansion.targets[0].through[0]
            asked = {"writers": {"alias": by, "from": writers.named}}
            if self.forwarding.writer_rejection(question.address, expansion, sender):
                explained = self._replaced(question.address, sender, [])
                return explained | asked | {"state": "rejected", "reply": rejection}
        targets: list[dict[str, Any]] = []
        for target in expansion.targets:
            document = await self._recipient(target.address, sender, question, is_copy=True)
            targets.append(document | {"aliases": [*target.through[1:], target.address]})
        if len(targets) == 1:
            explained = targets[0] | {"address": question.address}
        else:
            explained = self._replaced(question.address, sender, targets)
        if rejection:
            explained["reply"] = rejection
            if explained["state"] in GOES_ON:  # its mailbox is full
                explained["state"] = "rejected"
        return explained | asked

    def _examine(
        self, address: str, sender: Submitter, question: Question, *, is_copy: bool
    ) -> RoutingResult:
        """Return where mail for an address goes, as acceptance does."""
        header = Header.of(question.content or b"")
        return self.forwarding.examiner(sender, header)(address, "", is_copy)

    def _expander(self, question: Question) -> Callable[[str], Expansion | None]:
        """Return the function that expands aliases. It finds loops by the header of the message;
        without a message there are none.
        """
        header = Header.of(question.content or b"")
        return self.forwarding.expander(question.sender, header)

    async def _recipient(
        self,
        address: str,
        sender: Submitter,
        question: Question,
        *,
        rejection: str = "",
        is_copy: bool = False,
    ) -> dict[str, Any]:
        """Explain an address that is not an alias. `rejection` is the reply that rejects it at
        RCPT, or ""; `is_copy` says that an alias was expanded to this address.
        """
        recipient = self._examine(address, sender, question, is_copy=is_copy)
        document = self._document(address, sender, recipient)
        if isinstance(recipient, InvalidRecipient):
            return document | ({"reply": rejection} if rejection else {})
        if rejection:
            return document | {"state": "rejected", "reply": rejection}
        try:
            explained = await self._apply_rules(address, sender, question, recipient=recipient)
        except TooManyPartsError:
            return document | {"state": "rejected", "reply": TOO_MANY_PARTS.reply}
        except UndecidedError:
            return document | {"state": "rejected", "reply": NO_POLICY.reply}
        document["rules"] = [_rule(rule) for rule in msgspec.to_builtins(explained.rules)]
        if (deferred := explained.verdict.deferred) is not None:
            reply = own_reply(deferred.status, deferred.text)
            return document | {"state": "rejected", "reply": reply, "rule": deferred.rule}
        [verdict] = explained.verdict.recipients
        document["rule"] = verdict.rule
        return document | await self._by_verdict(verdict, sender, recipient, question=question)

    async def _apply_rules(
        self,
        address: str,
        sender: Submitter,
        question: Question,
        *,
        recipient: LocalRecipient | RemoteRecipient,
    ) -> RulesExplained:
        """Apply the rules as acceptance does. Raises TimeoutError, and all errors of rules."""
        claims_local = self.table.is_local_domain(domain_of(sender.reverse_path))
        message = ExaminedMessage(
            reverse_path=sender.reverse_path,
            sender_local=claims_local and sender.is_trusted,
            recipients=(address,),
            local=frozenset([address] if recipient.is_local else []),
            content=ParsedContent.of(question.content or b""),
            source=Source.SMTP,
            client=question.ip,
            login="" if question.ip else sender.reverse_path,
            recipient_count=1,
            time_us=self.clock.time_us(),
            is_own=self.table.is_local_domain,
            alias_domains=self.table.alias_domains,
            results=question.results,
            originals={address.lower(): (question.address,)},
        )
        rules = self.rules()
        if question.content is None:
            return explain(rules, message, has_content=False)
        async with asyncio.timeout(POLICY_TIMEOUT_S):  # real time: a thread
            return await asyncio.to_thread(explain, rules, message)

    async def _by_verdict(
        self,
        verdict: RecipientVerdict,
        sender: Submitter,
        recipient: LocalRecipient | RemoteRecipient,
        *,
        question: Question,
    ) -> dict[str, Any]:
        """Return the part of the document that follows from the verdict of the rules."""
        match verdict.action:
            case VerdictAction.REJECT:
                reply = own_reply(verdict.status, verdict.text)
                return {"state": "rejected", "reply": reply}
            case VerdictAction.DISCARD:
                return {"state": "discarded"}
            case VerdictAction.REDIRECT | VerdictAction.QUARANTINE:
                expand, addresses = self._expander(question), list[str]()
                for successor in verdict.successors:
                    expansion = expand(successor)
                    expanded = expansion.addresses if expansion is not None else ()
                    addresses += expanded or (successor,)
                copies = set(addresses).difference(verdict.successors)
                targets = [
                    await self._target(
                        AddedRecipient(to, verdict.rule), sender, question, is_copy=to in copies
                    )
                    | _held(verdict.hold)
                    for to in dict.fromkeys(addresses)
                ]
                return {"state": _state_of_all(targets), "targets": targets}
            case VerdictAction.DELIVER:
                if verdict.next_hop:
                    return await self._chosen(verdict, sender, recipient)
                hold = verdict.held(in_mailbox=isinstance(recipient, LocalRecipient))
                return await self._destination(verdict.address, recipient) | _held(hold)

    async def _chosen(
        self, verdict: RecipientVerdict, sender: Submitter, routed: LocalRecipient | RemoteRecipient
    ) -> dict[str, Any]:
        """Return where mail goes if a rule has chosen the next hop."""
        path = sender.reverse_path
        chosen = self.table.examine_chosen(
            verdict.address, verdict.next_hop, routed, reverse_path=path
        )
        route = {"route": self._document(verdict.address, sender, chosen)["route"]}
        hold = verdict.held(in_mailbox=isinstance(chosen, LocalRecipient))
        return route | await self._destination(verdict.address, chosen) | _held(hold)

    async def _target(
        self, added: AddedRecipient, sender: Submitter, question: Question, *, is_copy: bool
    ) -> dict[str, Any]:
        """Explain an address that a rule put in place of another. No rule runs for it."""
        asked = Verdict((), (), (ParsedContent.of(question.content or b""),), ())
        recipient = self.forwarding.examiner_of_added(
            lambda address, *_: self._examine(address, sender, question, is_copy=is_copy),
            asked,
            self.rules().tenants,
            sender=sender,
        )(added, added.address, "")
        document = self._document(added.address, sender, recipient)
        if isinstance(recipient, InvalidRecipient):
            return document
        return document | await self._destination(added.address, recipient)

    async def _destination(
        self, address: str, recipient: LocalRecipient | RemoteRecipient
    ) -> dict[str, Any]:
        """Return where accepted mail for this recipient goes."""
        document: dict[str, Any]
        if isinstance(recipient, LocalRecipient):
            document = {"state": "local", "mailbox": recipient.mailbox}
        elif recipient.next_hop == CAPTURE:
            document = {"state": "captured"}
        else:
            document = await self._hosts_of(recipient.next_hop)
        reason = recipient.held or (await self.why_held(address) if self.why_held else "")
        return document | ({"state": "held", "reason": reason} if reason else {})

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
            document["site"] = _site(self.state_of(next_hop, resolution), self.clock)
        return document

    def _limits(self, via: HopOptions) -> dict[str, Any]:
        options = self.options.limited(via.connections_max, parse_rate(via.rate))
        rate = options.rate
        return {
            "max_connections": options.connections_max,
            "max_rate": f"{rate.count}/{rate.per_s:g}" if rate is not None else "",
            "source_address": via.source_address,
        }

    def _replaced(
        self, address: str, sender: Submitter, targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the document of an alias with several targets."""
        document = self._document(address, sender, InvalidRecipient("", ""))
        return document | {"state": _state_of_all(targets), "targets": list(targets)}

    def _document(self, address: str, sender: Submitter, result: RoutingResult) -> dict[str, Any]:
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
        place = self.places.get(result.route, _NO_PLACE)
        return {
            "address": address,
            "from": sender.reverse_path,
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


def _held(hold: Hold | None) -> dict[str, Any]:
    """Return the changes that the hold of a rule makes. A release ends the hold of the rule and
    the hold of the route.
    """
    return {} if hold is None else {"state": "held", "reason": hold.reason, "rule": hold.rule}


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


def _strangers(
    settings: Settings, checks: StrangerChecks | None
) -> Callable[[str], Stranger] | None:
    """Return the checks of the first listener of role relay."""
    listener = _relay_listener(settings)
    return partial(Stranger, checks, listener) if checks and listener else None


def explainer_of(base: Foundation, transport: Transport) -> Explainer:
    """Return the explainer of a relay that runs."""
    forwarding, schedule = transport.acceptance.stages.forwarding, retry_schedule(base.settings)
    return Explainer(
        forwarding=forwarding,
        rules=base.sources.rules,
        resolve=transport.policies.resolve,
        schedule=schedule,
        options=site_options(base.settings, schedule),
        clock=base.clock,
        places=base.sources.route_places(),
        checks=RecipientChecks(
            forwarding, base.store.room, transport.verifier.rejection, rules=base.sources.rules
        ),
        trusts=partial(is_trusted, base.settings.smtp),
        milters=base.milters,
        strangers=_strangers(base.settings, transport.strangers),
        state_of=transport.scheduler.sites.state_of,
        why_held=base.spool.queue_admin.why_held,
        probe=transport.scheduler.probe,
        checker=transport.acceptance.checker,
        sender_checks=_sender_checks(base.settings),
        hostname=base.settings.hostname,
    )


def _relay_listener(settings: Settings) -> SmtpListener | None:
    return next((listener for listener in settings.smtp if listener.role == "relay"), None)


def _sender_checks(settings: Settings) -> SenderChecks | None:
    listener = _relay_listener(settings)
    return SenderChecks.of(listener) if listener else None


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
        explainer = Explainer(
            forwarding=forwarding,
            rules=lambda: rules,
            resolve=resolver.resolve,
            schedule=schedule,
            options=site_options(settings, schedule),
            clock=clock,
            places=route_places(file, settings),
            checks=RecipientChecks(forwarding, _room_for_all, rules=lambda: rules),
            trusts=partial(is_trusted, settings.smtp),
            milters=MilterSet(settings.milter, hostname=settings.hostname),
            strangers=_strangers(
                settings,
                StrangerChecks(
                    resolver.answers_for_clients, is_own=table.is_local_domain, clock=clock
                ),
            ),
            state_of=None,
            checker=checker,
            sender_checks=_sender_checks(settings),
            hostname=settings.hostname,
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


class AskedMilters(Struct, frozen=True):
    """The answers of the milters, and their changes to the document."""

    question: Question  # with the message as they have changed it
    said: tuple[MilterSaid, ...]
    end: Mapping[str, Any] = {}  # the state of rejected or discarded mail
    hold: Mapping[str, Any] = {}  # the state of quarantined mail

    def added_to(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the document with these answers."""
        hold = self.hold if document["state"] in GOES_ON else {}
        return {**document, **self.end, **hold, "milters": to_builtins(self.said)}


async def ask_milters(session: FilterSession, question: Question) -> AskedMilters:
    """Ask the milters about a question with a message and a client, and end the session."""
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
    content = verdict.content
    changed = ParsedContent(content.header.prepend(verdict.top), content.rest)
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
