"""Ask the milters (relay/transport/milter) about a session and a message, and apply their answers.

SessionFilters has the stages of a client's session. For mail of pickup and of this machine's users,
a session is simulated after the final dot: from localhost, in the name of the account. A refusal is
the reply to the client. In a simulated session, a 5yz rejects recipients, as a rule does, and a 4yz
defers the message.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.address import own_mailbox
from relay.base.message.authentication_results import AuthResult, checks_of, read_results
from relay.base.message.envelope import Envelope, ForwardPath, domain_of
from relay.base.message.header import Header, ParsedContent
from relay.base.message.lifecycle import OF_MILTER, RecipientState
from relay.base.message.status import one_line, split_reply
from relay.base.message.verdict import Hold
from relay.formats.read_header import originators
from relay.store.journeys.details import MilterSaid
from relay.store.journeys.events import Event
from relay.store.spool.types import NewRecipient
from relay.transport.ingress.data import ContentCollector, DataReply, ReceivedContent, RefusedError
from relay.transport.ingress.esmtp_parameters import FilterRefusedError
from relay.transport.milter.dialogue import FilterAnswer, FilterStage
from relay.transport.milter.filtered_message import FilterVerdict, NewBodies
from relay.transport.milter.filters import FilterClient, FilterSession

_LOCALHOST = FilterClient("localhost", "127.0.0.1")
_HELD = "quarantined"  # without a reason
_REMOVED = "removed by a milter"
_REFUSED = "5.7.1"  # without a status
_CHECKED = {"spf": "smtp.mailfrom", "dkim": "header.d", "dmarc": "header.from"}
_PATH = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^">])*>')  # of MAIL and RCPT, to its end


class SessionFilters:
    """The milters of a client's session. mail() and later stages raise FilterRefusedError.

    abort() and close() do not disturb the decision about a message: it continues if the client
    disconnects.
    """

    def __init__(self, session: FilterSession, size_max_bytes: int) -> None:
        self.session = session
        self.size_max_bytes = size_max_bytes  # of a message
        self._is_deciding = self._is_closed = False

    def connect(self, ip: str, hostname: str, fact: Callable[[str], Any]) -> None:
        """Take note of the client; `fact` is get_extra_info() of its transport."""
        peer, own = fact("peername"), fact("sockname")
        is_direct = isinstance(peer, tuple) and str(peer[0]).removeprefix("::ffff:") == ip
        macros = {"daemon_name": hostname}
        if isinstance(own, tuple):
            macros |= {"daemon_addr": str(own[0]), "daemon_port": str(own[1])}
        client = FilterClient(address=ip, port=peer[1] if is_direct else 0, macros=macros)
        self.session.connect(client)

    def helo(self, name: str, tls: str, fact: Callable[[str], Any]) -> None:
        """Take note of HELO or EHLO."""
        macros = {}
        if tls:
            cipher, _, bits = fact("cipher") or ("", "", "")
            macros = {"tls_version": tls, "cipher": cipher, "cipher_bits": str(bits)}
        self.session.helo(name, macros)

    async def mail(self, address: str, argument: str, *, mechanism: str, login: str) -> None:
        """Announce the client and MAIL, whose argument has the parameters."""
        macros = {"auth_type": mechanism, "auth_authen": login} if login else {}
        macros["mail_host"] = domain_of(address)
        _check(await self.session.mail(address, _parameters(argument), macros))

    async def rcpt(self, address: str, argument: str) -> None:
        """Announce RCPT; a refusal concerns this recipient alone."""
        macros = {"rcpt_host": domain_of(address)}
        _check(await self.session.rcpt(address, _parameters(argument), macros))

    async def data(self) -> None:
        """Announce DATA."""
        _check(await self.session.data())

    async def chunks(self, content: ContentCollector) -> None:
        """Announce the first BDAT; if it is refused, the content is rejected."""
        try:
            await self.data()
        except FilterRefusedError as refused:
            content.reject(str(refused))
            content.refused_by = refused.milter

    def deciding(self, received: ReceivedContent) -> ReceivedContent:
        """Return the content. Until its release, the session belongs to the acceptance."""
        self._is_deciding = True

        def release() -> None:
            received.release()
            self._is_deciding = False
            self.abort()
            if self._is_closed:
                self.session.close()

        return ReceivedContent(received.content, release)

    def abort(self) -> None:
        """End a transaction."""
        if not self._is_deciding:
            self.session.abort()

    def close(self) -> None:
        """End the session."""
        self._is_closed = True
        if not self._is_deciding:
            self.session.close()


def _check(answer: FilterAnswer) -> None:
    if answer.reply:
        raise FilterRefusedError(answer.reply, answer.milter)


def _parameters(argument: str) -> list[str]:
    path = _PATH.match(argument)
    return argument[path.end() :].split() if path else []


class FilteredMessage(Struct, frozen=True):
    """What the milters decided about a message that is accepted."""

    said: tuple[MilterSaid, ...] = ()  # of each that was asked
    results: tuple[AuthResult, ...] = ()  # that they added, and of our own checks
    recipients: Mapping[int, NewRecipient] = {}  # in their final states, by their positions
    added: Mapping[str, str] = {}  # recipients by address, with "milter " and its name
    hold: Hold | None = None  # of a milter, for all copies
    refused_by: str = ""  # the milter that refused recipients
    in_junk: bool = False  # DMARC puts it into Junk Email
    refusal: str = ""  # the reply by which our checks refuse it

    def noted(self, event: Event) -> Event:
        """Return the event of step 5 with what the milters said, and all results."""
        if not (self.said or self.results):
            return event
        checks = checks_of(self.results)
        return replace(event, detail=replace(event.detail, milters=self.said, checks=checks))


UNFILTERED = FilteredMessage()


async def decide(
    session: FilterSession,
    content: ParsedContent,
    store: NewBodies,
    *,
    envelope: Envelope,
    paths: Sequence[ForwardPath],
    queue_id: str,
    account: str | None,
) -> tuple[FilterVerdict, FilteredMessage]:
    """Ask about a message; the caller releases the verdict.

    With an `account` the session is simulated. Raises RefusedError, and what
    FilterSession.message() raises.
    """
    is_simulated = account is not None
    refused = (
        await simulate(session, envelope, paths, account=account) if account is not None else {}
    )
    verdict = FilterVerdict(content, store)
    by_name = {
        answer.milter: MilterSaid(
            answer.milter, FilterStage.RCPT if at else "", answer.answer, answer.reply
        )
        for at, answer in refused.items()
        if answer.milter
    }
    said = tuple(by_name.values())
    if 0 not in refused and len(refused) < len(paths):
        verdict = await session.message(content, store, {"i": queue_id})
        said = tuple(dict.fromkeys((*said, *verdict.said)))
        if verdict.answer.reply:
            refused[0] = verdict.answer
    discarded_by, of_all = verdict.discarded_by, refused.get(0)
    if of_all or discarded_by:  # none of the changes counts
        verdict.release()
        verdict = FilterVerdict(content, store)
    if of_all and (not is_simulated or of_all.reply.startswith("4")):
        reply = _line(of_all) if is_simulated else of_all.reply
        raise RefusedError(DataReply(reply, milter=of_all.milter), said)
    ended = {}
    for at, path in enumerate(paths, 1):
        if refusal := refused.get(at, of_all):
            reply = _line(refusal)
            status = split_reply(reply).status or _REFUSED
            ended[at] = NewRecipient(path, RecipientState.FAILED, status, reply, position=at)
        elif discarded_by or path.address in verdict.removed:
            reply = f"discarded by {OF_MILTER}{discarded_by}" if discarded_by else _REMOVED
            ended[at] = NewRecipient(path, RecipientState.DISCARDED, reply=reply, position=at)
    hold = None
    if verdict.quarantine is not None:
        hold = Hold(verdict.quarantine or _HELD, f"{OF_MILTER}{verdict.quarantined_by}")
    return verdict, FilteredMessage(
        said,
        read_results(verdict.results),
        ended,
        added={address: f"{OF_MILTER}{name}" for address, name in verdict.added.items()},
        hold=hold,
        refused_by=next((answer.milter for answer in refused.values()), ""),
    )


def is_verified(results: Sequence[AuthResult], sender: str, header: Header) -> bool:
    """Return whether SPF, DKIM or DMARC passed for the domain of a reverse-path.

    DKIM and DMARC count only if the sender is the only author. Otherwise a signed message could be
    sent again with the reverse-path of another user of the domain.
    """
    domain = domain_of(sender)
    passed = {
        (result.method, domain_of(f"@{result.domain(name)}"))
        for result in results
        if result.result == "pass" and (name := _CHECKED.get(result.method))
    }
    if not domain or ("spf", domain) in passed:
        return bool(domain)
    if ("dkim", domain) not in passed and ("dmarc", domain) not in passed:
        return False
    authors = [field.addresses for field in originators(header) if field.name == "From"]
    mailboxes = [[own_mailbox(author.address) for author in addresses] for addresses in authors]
    return mailboxes == [[own_mailbox(sender)]]


def _line(answer: FilterAnswer) -> str:
    """Return a reply as one line; 421, which ends a connection, becomes 451."""
    text = one_line(answer.reply)
    return f"{'451' if answer.closes else text[:3]} {text[4:]}"


async def simulate(
    session: FilterSession,
    envelope: Envelope,
    paths: Sequence[ForwardPath],
    *,
    account: str = "",
    client: FilterClient = _LOCALHOST,
    helo: str = "localhost",
) -> dict[int, FilterAnswer]:
    """Simulate the session up to DATA. Return the refusals by the positions of recipients.

    A refusal of the whole message has the position 0.
    """
    sender, refused = envelope.reverse_path, dict[int, FilterAnswer]()
    macros = {"auth_authen": account, "mail_host": domain_of(sender)}
    session.connect(client)
    session.helo(helo)
    answer = await session.mail(sender, (), macros)
    if answer.reply:
        return {0: answer}
    for at, path in enumerate(paths, 1):
        answer = await session.rcpt(path.address, (), {"rcpt_host": domain_of(path.address)})
        if answer.reply.startswith("4"):
            return {0: answer}
        if answer.reply:
            refused[at] = answer
    if len(refused) < len(paths) and (answer := await session.data()).reply:
        refused[0] = answer
    return refused
