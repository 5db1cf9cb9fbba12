"""Prepare a message after its final dot: check, clean up and complete its header, before the rules.

A message with a fault in the header is refused; the replies to the final dot are here. Milters see
the header after fields are removed and before fields are added.
RFC 5321 6.3 (loops).
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from msgspec import Struct
from msgspec.structs import replace

from relay.base.accounts.account import AccountDirectory
from relay.base.accounts.usage import BeyondLimit
from relay.base.clock import Clock
from relay.base.message.content import Content
from relay.base.message.envelope import Client, Envelope, ForwardPath, domain_of
from relay.base.message.header import FIELDS_MAX, ParsedContent, has_short_header
from relay.base.message.status import own_reply
from relay.base.message.verdict import Deferral
from relay.base.observe.logs import get_logger
from relay.formats.complete_addresses import with_domains
from relay.store.spool.types import IncomingBody, NewMessage
from relay.transport.checks.checker import SenderChecker, SenderQuestion
from relay.transport.ingress import data, header_cleanup
from relay.transport.ingress.dropped_mail import FILE_BYTES_MAX
from relay.transport.ingress.filtering import UNFILTERED, FilteredMessage, SessionFilters, decide
from relay.transport.ingress.send_as import header_rejection, local_rejection
from relay.transport.ingress.sender_checks import judge
from relay.transport.milter.filtered_message import NewBodies
from relay.transport.milter.filters import FilterSession, MilterSet
from relay.transport.policy import engine

LOCAL_ERROR = data.DataReply(data.ContentRejection.LOCAL_ERROR)
# RFC 3463 3.8
NO_POLICY = data.DataReply(f"451 4.7.1 {engine.NOT_APPLIED}")
TOO_MANY_PARTS = data.DataReply(own_reply(engine.TOO_MANY_PARTS_STATUS, engine.TOO_MANY_PARTS))
LONG_HEADER = data.DataReply(data.ContentRejection.LONG_HEADER)
MANY_FIELDS = data.DataReply(
    f"554 5.6.0 The header has more than {FIELDS_MAX} fields"
)  # RFC 3463 3.7
NO_ROOM = data.DataReply(data.ContentRejection.DISK_FULL)
HAS_SHARE = data.DataReply(
    # RFC 3463 3.4
    "452 4.3.1 The queue has as much of your mail as it may, try again later"
)
# RFC 5321 6.3; RFC 3463 3.5
LOOP = data.DataReply("554 5.4.6 Routing loop detected: too many Received fields")
# For the copies of one tenant, if other copies of the message are accepted (RFC 3463 3.4)
HOLDS_FULL_OF_TENANT = "5.3.1", "The rules of its domain hold as many messages as they may"
_log = get_logger("ingress")


def accepted_reply(queue_id: str) -> data.DataReply:
    """Return the reply that makes Relay responsible for the message (RFC 5321 4.1.1.4)."""
    return data.DataReply(f"250 2.0.0 Ok: queued as {queue_id}", queue_id)


def deferral_reply(deferral: Deferral) -> data.DataReply:
    """Return the reply that makes the client try again later."""
    reply = own_reply(deferral.status, deferral.text)
    if reply.startswith("421"):  # that would close the connection (RFC 5321 3.8)
        reply = f"451{reply[3:]}"
    return data.DataReply(reply, rule=deferral.rule)


def limit_reply(beyond: BeyondLimit) -> data.DataReply:
    """Return the reply to a message beyond a limit of its sender (RFC 3463 3.8)."""
    code = "550 5.7.1" if beyond.is_for_good else "450 4.7.1"  # RFC 5321 4.2.3
    return data.DataReply(f"{code} {beyond.text}")


def log_accepted(message: NewMessage, client: Client) -> None:
    """Log one line per message, with Postfix's terms where they apply."""
    facts = message.facts
    count = sum(len(entry.recipients) for entry in message.entries)
    _log.info(
        "accepted",
        qid=facts.id,
        sender=facts.envelope.reverse_path,
        recipients=count + len(message.final_recipients),
        size_bytes=facts.size,
        via=facts.source.value,  # the log is slow for what is not exactly a str
        client=client.address,
        helo="" if facts.submission_id else client.helo,
        login=client.account or facts.account if facts.submission_id else client.account,
        tls=client.tls,
        message_id=facts.message_id,
    )


# limit: Received fields; more is a loop
RECEIVED_MAX = 100  # more Received fields are a loop (RFC 5321 6.3)


class ArrivedMail(Struct, frozen=True):
    """A message as it arrived, with its queue id and queue time."""

    envelope: Envelope  # with the sender that a milter or a rule gave it
    paths: Sequence[ForwardPath]  # as the client named them
    content: Content  # as the client sent it
    origin: data.Origin  # its client
    queue_id: str  # its id in the queue
    received_us: int  # queue time
    mail_from: str  # the reverse-path that the client named
    filters: SessionFilters | None = None  # of the session; None: no milter heard it
    filtered: FilteredMessage = UNFILTERED  # what the milters decided

    @property
    def sender(self) -> data.Submitter:
        """The sender, which a milter or a rule may have replaced."""
        sender = self.origin.sender(self.envelope.reverse_path)
        return replace(sender, results=self.filtered.results)


class PreparedMail(Struct, frozen=True):
    """A message for the rules; the receiver calls `release` once, when the message is decided."""

    arrival: ArrivedMail
    content: ParsedContent
    release: Callable[[], None] = lambda: None


class Preparation(Struct, frozen=True):
    """Makes messages as the rules see them."""

    hostname: str  # in Received fields
    accounts: AccountDirectory  # whose addresses a sender may use
    clock: Clock  # of the fields that are added
    any_sender: bool  # a login may send from any address
    milters: MilterSet  # that hear the message
    new_body: Callable[[], IncomingBody]  # makes a file for a body that a milter writes
    checker: SenderChecker | None = None  # finds SPF, DKIM and DMARC results
    reads_auth: Callable[[], bool] = lambda: False  # whether a rule reads them

    async def prepare(self, arrival: ArrivedMail) -> PreparedMail:
        """Return the message as the milters made it, with the results of our own checks.

        The checks read the content as received, while the milters are asked. If they refuse it,
        `filtered` has the reply. Raises RefusedError.
        """
        origin, checker = arrival.origin, self.checker
        if origin.checks is None or checker is None or not origin.ip:
            return await self._prepared(arrival)
        sender = arrival.envelope.reverse_path
        question = SenderQuestion(origin.ip.partition("%")[0], origin.helo, sender, self.hostname)
        check = checker.check(question, arrival.content, needs_all=self.reads_auth())
        checking = asyncio.create_task(check)
        with ExitStack() as undo:
            undo.callback(checking.cancel)
            prepared = await self._prepared(arrival)
            undo.callback(prepared.release)
            arrival, content = prepared.arrival, prepared.content
            filtered = arrival.filtered
            checked = judge(
                origin.checks,
                filtered.results,
                await checking,
                ip=origin.ip,
                hostname=self.hostname,
            )
            undo.pop_all()
        filtered = replace(
            filtered, results=checked.results, in_junk=checked.in_junk, refusal=checked.reply
        )
        header = content.header.prepend(checked.field)
        return replace(
            prepared,
            arrival=replace(arrival, filtered=filtered),
            content=ParsedContent(header, content.rest),
        )

    async def _prepared(self, arrival: ArrivedMail) -> PreparedMail:
        origin, filters = arrival.origin, arrival.filters
        session = filters.session if filters is not None else None
        if filters is None and (origin.is_promised or origin.user is not None):
            session = self.milters.session("local")
        make = self._made if session is None else self._cleaned
        if has_short_header(arrival.content):
            content = make(arrival)
        else:
            content = await asyncio.to_thread(make, arrival)
        if session is None:
            return _prepared(arrival, content)
        return await self._filtered(arrival, content, session)

    async def _filtered(
        self, arrival: ArrivedMail, content: ParsedContent, session: FilterSession
    ) -> PreparedMail:
        """Ask the milters, and complete the message that they return."""
        filters, account, size_max_bytes = arrival.filters, None, FILE_BYTES_MAX
        if filters is not None:
            size_max_bytes = filters.size_max_bytes
        else:
            user = arrival.origin.user
            account = user.address if user else self.account_of(arrival)
        try:
            verdict, filtered = await decide(
                session,
                content,
                NewBodies(size_max_bytes, self.new_body),
                envelope=arrival.envelope,
                paths=arrival.paths,
                queue_id=arrival.queue_id,
                account=account,
            )
        finally:
            if filters is None:
                session.close()
        envelope = arrival.envelope
        if verdict.sender is not None:
            address = verdict.sender.address
            smtputf8 = envelope.smtputf8 or not address.isascii()
            envelope = replace(envelope, reverse_path=address, smtputf8=smtputf8)
        arrival = replace(arrival, envelope=envelope, filtered=filtered)
        content = self._completed(arrival, verdict.content, top=verdict.top)
        return replace(_prepared(arrival, content), release=verdict.release)

    def account_of(self, arrival: ArrivedMail) -> str:
        """Return the account: the login, or the owner of a trusted reverse-path."""
        origin = arrival.origin
        if origin.login or not origin.trusted:
            return origin.login
        account = self.accounts.by_address(arrival.mail_from)
        return account.address if account else ""

    def _made(self, arrival: ArrivedMail) -> ParsedContent:
        """Return the content for the rules, if there are no milters. Raises RefusedError."""
        return self._completed(arrival, self._cleaned(arrival))

    def _cleaned(self, arrival: ArrivedMail) -> ParsedContent:
        """Return the content without the fields that no message keeps. Raises RefusedError.

        This splits the header into fields, for all later steps.
        """
        parsed, origin = ParsedContent.of(arrival.content), arrival.origin
        header = parsed.header
        if header.size > data.HEADER_BYTES_MAX:
            raise data.RefusedError(LONG_HEADER)
        if len(header.fields) > FIELDS_MAX and not origin.role.is_promised:
            raise data.RefusedError(MANY_FIELDS)
        if header.count("Received") > RECEIVED_MAX:
            raise data.RefusedError(LOOP)
        checks_sender = origin.login and not self.any_sender
        if checks_sender and (rejection := header_rejection(self.accounts, origin.login, header)):
            raise data.RefusedError(data.DataReply(rejection))
        if (user := origin.user) is not None:
            sender = arrival.envelope.reverse_path
            # cron writes "root (Cron Daemon)" as any user, logwatch as root "Logwatch"
            header = with_domains(
                header,
                senders=domain_of(user.address),
                recipients=user.domain,
                author="" if user.any_sender else sender or user.address,
            )
            if rejection := local_rejection(user, sender, header):
                raise data.RefusedError(data.DataReply(rejection))
        header = header_cleanup.cleaned(header, origin=origin, hostname=self.hostname)
        return ParsedContent(header, parsed.rest)

    def _completed(
        self, arrival: ArrivedMail, content: ParsedContent, *, top: bytes = b""
    ) -> ParsedContent:
        """Return the content with the fields that this relay adds, after those in `top`."""
        header = header_cleanup.completed(
            content.header,
            arrival.envelope,
            arrival.paths,
            origin=arrival.origin,
            hostname=self.hostname,
            queue_id=arrival.queue_id,
            time_us=self.clock.time_us(),
            top=top,
        )
        return ParsedContent(header, content.rest)


def _prepared(arrival: ArrivedMail, content: ParsedContent) -> PreparedMail:
    """Return the message for the rules; its envelope has the TLS that its header asks for."""
    envelope = header_cleanup.with_demand(arrival.envelope, content.header, arrival.origin)
    if envelope is not arrival.envelope:
        arrival = replace(arrival, envelope=envelope)
    return PreparedMail(arrival, content)
