"""A session with Microsoft Graph, on which transactions follow each other.

The connection is HTTPS with a verified host name; in the clear it goes to a loopback address only.
One that the host has closed between two requests is opened again.

A transaction is a request for up to RECIPIENTS_MAX recipients: a draft is made, then sent. The id
that Graph gave the draft is in the spool before /send, and decides what became of it. A draft
without such an id was never sent, whatever is found: another one is made, and the first is deleted
once the entry has ended (relay.delivery.graph.drafts). While the answer to a /send is not known,
nothing is made or sent: a draft is sent again, or deleted, at the earliest SENT_US after the loss
of the answer was noted. If the id is gone, a message with its Message-ID that is not older than the
draft, by the clock of Graph, is the sent one; it is looked for until LOOKED_FOR_US have passed.

A delivery report leaves as mail of the mailbox (relay.formats.report_as_mail), never converted.
What else is larger than the route's mime_max is converted, and its files are added one by one
(relay.delivery.graph.filling). Until /send such a draft stands in `uploads`, which no resumption
sends: who finds it there deletes it, and makes another one.

Without `confirm`, sendMail is used, and a lost answer is Indeterminate. Graph v1.0: message: send,
user: sendMail, list messages.
"""

import asyncio
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from relay.base.message.address import own_mailbox
from relay.base.message.content import read_all
from relay.base.message.nexthop import HTTPS_PORT, HopKind
from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Failed,
    Indeterminate,
    Outcome,
    Peer,
    Relayed,
    SessionEvidence,
    SessionFailure,
    SmtpStage,
    classify_session_failure,
)
from relay.base.phrases import hiding
from relay.delivery import http_connection
from relay.delivery.graph import filling
from relay.delivery.graph.claim_requests import GraphTransaction
from relay.delivery.graph.outcomes import (
    TAKEN,
    is_missing,
    is_of_one,
    is_refused,
    outcome_of,
    reply_of,
)
from relay.delivery.host_selection import HostSession
from relay.delivery.http_connection import HttpError, HttpResponse
from relay.delivery.smtp.client_protocol import SmtpProtocolError
from relay.delivery.smtp.connect import ConnectError, GetToken, Target, TokenError, reason
from relay.delivery.smtp.connection import BeforeDot, OnReplies, Timeouts
from relay.delivery.smtp.tls import certificate_matches, certificate_names, verifying_context
from relay.delivery.smtp.transaction import (
    Extensions,
    Transaction,
    TransactionResult,
    Unsupported,
    plan,
)
from relay.formats.graph_copy import graph_copy, sole_message_id
from relay.formats.graph_draft import NotConverted, graph_draft
from relay.formats.report_as_mail import report_as_mail
from relay.store.spool.types import UPLOADS_MAX, CloudRequest

# limit: the answer of Microsoft Graph to a GET
QUESTION_S = 30.0  # an order waits for it
RECIPIENTS_MAX = 500  # of a message, in Exchange Online
SENT_US = 120_000_000
LOOKED_FOR_US = 600_000_000
_LEFT_OUT_MAX = 50  # of an attempt, for the journey
_DRAFTS = "drafts"
_FOLDERS = ("sentitems", _DRAFTS, "deleteditems")  # never the Inbox: a copy may come there by SMTP
_NEVER = "never"  # after each time, where Graph does not say when it made a draft
_LOST_POSTS_MAX = 5
_DRAFTS_MAX = 3  # that are filled in an attempt
_NO_ANSWER = (ConnectError, HttpError, SmtpProtocolError)
_ITEMS_MAX = 1000  # of one Message-ID in a folder: the most that Graph lists at once
_ANSWER_BYTES_MAX = 1024 * 1024
_ANSWER_BYTES_PER_OCTET = 6  # a draft is answered with its text, in filling.JSON
_UNAUTHORIZED = 401
_SIMULATED = "Microsoft 365 (simulated)"  # at a loopback address
_ADVICE = "correct the certificate, or name its CA in the route's ca"


class GraphItem(Struct, rename="camel"):
    """The fields of a message in Graph that are read."""

    # a segment of a path: neither "" nor ".."
    id: Annotated[str, Meta(pattern=r"[^.]")]
    is_draft: bool = True
    created_date_time: str | None = None
    internet_message_id: str | None = None

    @property
    def created(self) -> str:
        """When it was created, to the second, in UTC: such texts can be compared."""
        return (self.created_date_time or "")[: len("2026-11-27T10:00:00")]


class GraphItems(Struct):
    """A list of messages in Graph."""

    value: list[GraphItem]


_S = TypeVar("_S", bound=Struct)
_FIELDS = "$select=id,isDraft,createdDateTime"


async def open_graph(
    target: Target,
    *,
    get_token: GetToken,
    proxy: http_connection.Proxy | None,
    timeouts: Timeouts,
    real_s: Callable[[], float],
) -> HostSession:
    """Get a token and connect to `target`. Raises ConnectError."""
    session = GraphConnection(target, get_token, proxy, timeouts=timeouts, real_s=real_s)
    await session.renew_token()
    await session.connect()
    return session


async def _permitted() -> None:
    """Permit a request at once."""


@dataclass(eq=False)
class GraphConnection:
    """A HostSession with Microsoft Graph."""

    target: Target  # has a login and GraphOptions
    get_token: GetToken  # of the login
    proxy: http_connection.Proxy | None  # not for what stays on this machine
    _: KW_ONLY
    timeouts: Timeouts  # of connecting, of a look-up (command), of what makes or sends (dot)
    real_s: Callable[[], float]  # measures how long connecting takes
    transactions: int = 0  # that ended on it
    is_worn: bool = False  # Graph counts requests, not sessions

    def __post_init__(self) -> None:
        target = self.target
        assert target.login is not None  # a route to Graph has both
        assert target.graph is not None
        self.login, self.options = target.login, target.graph
        evidence = SessionEvidence(level=target.tls.level)
        host = _SIMULATED if target.stays_here else target.host
        self.peer = Peer(host, address=str(target), session=evidence)
        self.extensions = Extensions(eight_bit=True, smtputf8=True)
        self._token = self._former = ""
        self._is_new, self._secrets = False, tuple[str, ...]()
        self._http: http_connection.ClientConnection | None = None
        self._busy = False

    @property
    def is_open(self) -> bool:
        """Whether it can take a transaction. False once the host has closed it."""
        return self._http is not None and self._http.is_open and not self._busy

    async def renew_token(self, refused: str = "", words: str = "") -> None:
        """Get the token of now, another one than the host has `refused` with these words. Raises
        ConnectError.
        """
        try:
            token = await self.get_token(self.login, HopKind.GRAPH, refused)
        except TokenError as error:
            outcome = Deferred(self.peer.evidence("4.7.8", f"{words}{error}"), DeferralClass.AUTH)
            raise ConnectError(outcome, SmtpStage.AUTH) from None
        self._former, self._token, self._is_new = self._token, token, True
        self.hide(*self._secrets)

    def hide(self, *secrets: str) -> None:
        """Let no evidence repeat these, in place of those before them, nor a token."""
        self._secrets = secrets
        self.peer = replace(self.peer, hide=hiding(self._token, self._former, *secrets))

    async def connect(self) -> None:
        """Connect, and check whose certificate it is. Raises ConnectError."""
        target, began_s = self.target, self.real_s()
        is_tls = target.tls.level == "verify"
        if not is_tls and not target.stays_here:
            raise self.no_tls(f"{target}: a token is not sent without TLS")
        http = self._http = await self.open(target.host, target.port, is_tls=is_tls)
        if http.tls is not None:
            cipher, *_ = http.tls.cipher() or ("",)
            self.peer = replace(self.peer, tls=http.tls.version() or "", cipher=cipher)
        verified = "name" if http.tls is not None else "none"
        connect_ms = round(1000 * (self.real_s() - began_s), 1)
        evidence = SessionEvidence(verified, target.tls.level, connect_ms)
        self.peer = replace(self.peer, session=evidence)

    async def open(self, host: str, port: int, *, is_tls: bool) -> http_connection.ClientConnection:
        """Connect to the host of this session, or to another one. Raises ConnectError."""
        target, is_own = self.target, host == self.target.host
        name = f"[{host}]" if ":" in host else host
        try:
            http = await http_connection.open_http(
                target.address if is_own else host,
                port,
                authority=name if port == HTTPS_PORT else f"{name}:{port}",
                host=host,
                context=verifying_context(target.tls.ca, target.tls.ca_digest) if is_tls else None,
                proxy=None if is_own and target.stays_here else self.proxy,
                timeout_s=self.timeouts.connect_s,
            )
        except HttpError as error:
            if error.untrusted:
                raise self.no_tls(f"{error}; {_ADVICE}") from None
            failure = SessionFailure.TIMEOUT if error.timed_out else SessionFailure.LOST
            stage = SmtpStage.CONNECT
            raise ConnectError.broken(stage, failure, str(error), peer=self.peer) from None
        except OSError as error:
            text = f"the CA file {target.tls.ca} cannot be used: {reason(error)}"
            raise self.no_tls(text) from None
        certificate = (http.tls.getpeercert() if http.tls is not None else None) or {}
        if is_tls and not certificate_matches(certificate, host):
            http.close()
            names = certificate_names(certificate)
            raise self.no_tls(f"{name}:{port}: the certificate is for {names}, not {host}")
        return http

    def no_tls(self, text: str) -> ConnectError:
        """Return the error where a host may not have what would be sent."""
        outcome = Deferred(self.peer.evidence("4.7.5", text), DeferralClass.TLS)
        return ConnectError(outcome, SmtpStage.STARTTLS)

    async def transact(
        self,
        transaction: Transaction,
        *,
        before_dot: BeforeDot | None = None,
        on_replies: OnReplies | None = None,  # noqa: ARG002 - of LMTP
    ) -> TransactionResult:
        """Send one message, or ask what became of it. Recipients that do not fit into one request
        are `again`. `before_dot` is awaited before each request by which the message leaves.
        Raises ConnectError if there is no token any more.
        """
        assert not self._busy, "one transaction at a time"
        assert isinstance(transaction, GraphTransaction)
        everyone = range(len(transaction.recipients))
        if isinstance(refused := plan(transaction, self.extensions), Unsupported):
            return refused.result(len(everyone), self.peer)
        if not self._is_new:
            await self.renew_token()
        self._busy = True
        try:
            outcomes = await _GraphTransaction(self, transaction, before_dot or _permitted).run()
        finally:
            self._busy = self._is_new = False
        self.transactions += 1
        left = () if transaction.requests.only_ask else everyone
        again = tuple(index for index in left if index not in outcomes)
        return TransactionResult(outcomes, again, reusable=self.is_open)

    async def request(
        self,
        method: str,
        mailbox: str,
        path: str,
        *,
        body: bytes = b"",
        kind: str = "text/plain",
        before_post: BeforeDot = _permitted,
    ) -> HttpResponse:
        """Make one request in a mailbox, or of a path that begins with a slash; with another token
        if this one is refused. Raises HttpError, ConnectError (nothing was written), and what
        `before_post` raises.
        """
        target = path if path[0] == "/" else f"/v1.0/users/{quote(mailbox, safe='')}/{path}"
        waits_s = {"GET": min(QUESTION_S, self.timeouts.command_s), "POST": self.timeouts.dot_s}
        for is_last in (False, True):
            if self._http is None or not self._http.is_open:
                self.close()
                await self.connect()
            assert self._http is not None
            await before_post()
            bearer = ("Authorization", f"Bearer {self._token}")
            answer = await self._http.request(
                method,
                target,
                fields=[
                    bearer,
                    ("Prefer", 'IdType="ImmutableId"'),
                    *([("Content-Type", kind)] if body else []),
                ],
                body=body,
                timeout_s=waits_s.get(method, self.timeouts.command_s),
                answer_bytes_max=_ANSWER_BYTES_MAX + _ANSWER_BYTES_PER_OCTET * len(body),
            )
            if answer.status != _UNAUTHORIZED or is_last:
                break
            await self.renew_token(self._token, f"{reply_of(answer)}; ")
        return answer

    async def find(self, mailbox: str, folder: str, message_id: str) -> list[GraphItem]:
        """Return the messages of a folder with this Message-ID. Raises ConnectError, HttpError."""
        text = quote(message_id.replace("'", "''"), safe="")
        query = f"$filter=internetMessageId%20eq%20'{text}'&{_FIELDS}&$top={_ITEMS_MAX}"
        path = f"mailFolders/{folder}/messages?{query}"
        return self.read(await self.request("GET", mailbox, path), GraphItems).value

    async def delete(self, mailbox: str, draft: str) -> bool:
        """Delete a draft, which may be gone; return False if a person has sent it. Raises
        ConnectError, HttpError.
        """
        answer = await self.request("GET", mailbox, f"{filling.path_of(draft)}?{_FIELDS}")
        if is_missing(answer):
            return True
        if not self.read(answer, GraphItem).is_draft:
            return False
        answer = await self.request("DELETE", mailbox, filling.path_of(draft))
        if answer.status // 100 != 2 and not is_missing(answer):
            raise self.trouble(answer)
        return True

    async def delete_found(self, mailbox: str, message_id: str) -> bool:
        """Delete the drafts with this Message-ID; return whether there were any. Raises
        ConnectError, HttpError.
        """
        found = [one for one in await self.find(mailbox, _DRAFTS, message_id) if one.is_draft]
        for one in found:
            await self.delete(mailbox, one.id)
        return bool(found)

    def read(self, answer: HttpResponse, kind: type[_S]) -> _S:
        """Return the JSON of an answer. Raises ConnectError, HttpError."""
        if answer.status not in (200, 201):
            raise self.trouble(answer)
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (ValueError, RecursionError):
            raise HttpError(f"{reply_of(answer)}: not the JSON of Microsoft Graph") from None

    def trouble(self, answer: HttpResponse) -> ConnectError:
        """Return the error for an answer to what is neither content nor /send."""
        outcome = outcome_of(answer, self.peer)
        kind = outcome.kind if isinstance(outcome, Deferred) else DeferralClass.SITE
        return ConnectError(Deferred(outcome.evidence, kind), SmtpStage.DATA)

    async def quit(self) -> None:
        """Close the connection: HTTP has no command that ends a session."""
        self.close()

    def close(self) -> None:
        """Close it at once."""
        if self._http is not None:
            self._http.close()


class _GraphTransaction:
    """One transaction."""

    def __init__(
        self, session: GraphConnection, transaction: GraphTransaction, before_post: BeforeDot
    ) -> None:
        self._session, self._transaction = session, transaction
        self._requests, self._before_post = transaction.requests, before_post
        user = own_mailbox(session.login.user)  # the route may have another login now
        self._open = [
            request
            for request in self._requests.noted.requests
            if request.sent_us or own_mailbox(request.mailbox) == user
        ]
        self._lost = self._requests.noted.lost_posts
        elsewhere = [draft for draft in self._requests.noted.requests if draft not in self._open]
        self._uploads = [*self._requests.noted.uploads, *elsewhere]
        self._found: dict[str, Any] = {}  # about the copy, for the evidence
        self._is_report = not transaction.envelope.reverse_path  # no other null sender comes here

    async def run(self) -> dict[int, Outcome]:
        """Ask what became of earlier requests, then make one for recipients that are in none.
        Return the outcomes by the index of the recipient. Raises SpoolError.
        """
        numbers, outcomes = self._requests.recipients, dict[int, Outcome]()
        try:
            await self._note_losses()
            await self._delete_uploads()
            for request in tuple(self._open):
                live = [number for number in request.recipients if number in numbers]
                outcome = await self._resume(request, live) if live else None
                if outcome and (len(live) == 1 or not is_of_one(outcome)):
                    outcomes |= dict.fromkeys(live, outcome)
            left = [] if self._requests.only_ask else numbers
            part = [number for number in left if number not in outcomes][:RECIPIENTS_MAX]
            while part:
                outcome = await self._begin(part)
                if len(part) == 1 or not is_of_one(outcome):
                    outcomes |= dict.fromkeys(part, outcome)
                    break
                part = part[: len(part) // 2]  # the others have the next transaction
        except (*_NO_ANSWER, OSError) as error:
            failed = self._of_error(error)
            failed = replace(failed, evidence=replace(failed.evidence, **self._found))
            outcomes |= {number: failed for number in numbers if number not in outcomes}
        return {at: outcomes[number] for at, number in enumerate(numbers) if number in outcomes}

    def _of_error(self, error: Exception) -> Outcome:
        """Return the outcome of all recipients without one: the host cannot be used now."""
        match error:
            case ConnectError():
                return error.outcome
            case SmtpProtocolError():
                peer, stage = self._session.peer, SmtpStage.DATA
                return classify_session_failure(stage, error.trouble, error.text, peer=peer)
            case OSError():
                text = f"451 4.3.0 the message cannot be read: {error}"  # RFC 3463 3.4
                return self._deferred(text, DeferralClass.CONTENT, status="4.3.0")
        return self._deferred(str(error), DeferralClass.CONNECT)

    # -- requests of earlier attempts
    async def _note_losses(self) -> None:
        """Make durable from when on is waited for each /send whose answer is lost."""
        now_us = self._requests.clock.queue_us()
        noted = [
            replace(request, lost_us=now_us) if request.sent_us and not request.lost_us else request
            for request in self._open
        ]
        if noted != self._open:
            self._open = noted
            await self._note()

    async def _resume(self, request: CloudRequest, numbers: Sequence[int]) -> Outcome | None:
        """Return the outcome for these recipients of a request; None if they are in none now."""
        message, now_us = await self._look(request), self._requests.clock.queue_us()
        if message is None and request.sent_us:
            if now_us < request.lost_us + LOOKED_FOR_US:
                return self._deferred("the message is looked for in Sent Items")
            await self._note(without=request)
            text = "no answer to /send, and it is neither in Drafts nor in Sent or Deleted Items"
            return Indeterminate(self._session.peer.evidence("4.4.2", text), unanswered=True)
        if message is not None:
            if not message.is_draft:
                return self._relayed("HTTP 200: it is no draft any more, so it was sent")
            if request.sent_us and now_us < request.lost_us + SENT_US:
                return self._deferred("its draft is there, and may still be sent")
            if set(numbers) == set(request.recipients) and not self._requests.only_ask:
                return await self._send(request)
            await self._session.delete(request.mailbox, request.draft)
        await self._note(without=request)
        return None

    async def _look(self, request: CloudRequest) -> GraphItem | None:
        """Return the message of a request: by its id, else the sent one by its Message-ID."""
        answer = await self._ask("GET", request, f"{filling.path_of(request.draft)}?{_FIELDS}")
        if not is_missing(answer):
            return self._session.read(answer, GraphItem)
        for folder in _FOLDERS if request.sent_us else ():
            found = await self._session.find(request.mailbox, folder, request.message_id)
            for item in found:  # an older one is another's
                if not item.is_draft and item.created >= request.created:
                    return item
        return None

    # -- drafts
    async def _begin(self, numbers: Sequence[int]) -> Outcome:
        """Make a request for these recipients."""
        requests, session, options = self._requests, self._session, self._session.options
        request = CloudRequest(session.login.user, "", tuple(numbers), 0)
        if requests.size > options.mime_max and not self._is_report:
            if options.confirm:
                return await self._convert(request)
            has, most = f"{requests.size} bytes", f"{options.mime_max} (mime_max)"
            text = (
                f"5.3.4 the message has {has}, with confirm = false the route sends at most {most}"
            )
            return Failed(session.peer.evidence("5.3.4", text))
        if not options.confirm:
            return await self._send_at_once(request)
        message_id = await requests.message_id(sole_message_id(self._transaction.content))
        request = replace(request, message_id=message_id)
        body = await self._body(request)
        lost, self._lost = self._lost, (*self._lost, (request.mailbox, message_id))
        made = await self._make(
            request, body, partial(setattr, self, "_lost", lost), kind="text/plain"
        )
        return await self._send(made) if isinstance(made, CloudRequest) else made

    async def _make(
        self, request: CloudRequest, body: bytes, unmark: Callable[[], None], *, kind: str
    ) -> CloudRequest | Failed:
        """Make a draft. What it is marked as, `unmark` ends: until its id is known, it counts as
        lost.
        """
        await self._note(new=1)
        try:
            answer = await self._ask("POST", request, "messages", body=body, kind=kind)
        except _NO_ANSWER as error:
            if not isinstance(error, HttpError) or not error.may_have_arrived:
                unmark()
                await self._note(new=-1)
            raise
        if answer.status in TAKEN:
            made = self._session.read(answer, GraphItem)
            unmark()
            return replace(
                request,
                posted_us=self._requests.clock.queue_us(),
                draft=made.id,
                created=made.created or _NEVER,
                message_id=made.internet_message_id or request.message_id,
            )
        if is_refused(answer) or answer.status == 200:
            unmark()
            await self._note(new=-1)
        return self._failed(answer)

    # -- drafts with files
    async def _convert(self, request: CloudRequest) -> Outcome:
        """Make the request for a message that is too large as MIME."""
        content, session = self._transaction.content, self._session
        own_id = await self._requests.message_id(sole_message_id(content))
        message_id = await self._requests.message_id("")
        request = replace(request, message_id=message_id)
        convert = partial(graph_draft, message_id=message_id, signed=bool(session.options.convert))
        try:
            draft = await asyncio.to_thread(convert, content, self._addresses(request))
        except NotConverted as error:
            return Failed(session.peer.evidence("5.3.4", f"5.3.4 {error}"))
        self._found = {"not_carried": draft.not_carried, "encoded": "converted into JSON and files"}
        self._note_left_out(draft.left_out)
        files = filling.DraftFilling(session, request.mailbox, draft.files)
        for _ in range(_DRAFTS_MAX):
            self._uploads.append(request)
            unmark = partial(self._uploads.remove, request)
            made = await self._make(request, draft.message, unmark, kind=filling.JSON)
            if isinstance(made, Failed):
                return made
            self._uploads.append(made)
            await self._note()
            try:
                ready = await files.fill(made, own_id if own_id != message_id else "")
            except (filling.FillingError, HttpError) as error:
                why = error
                await self._delete_upload(made)
                if isinstance(why, filling.FillingError) and why.answer is not None:
                    return self._failed(why.answer)
            except ConnectError as error:
                if error.stage is SmtpStage.STARTTLS:  # no other draft has another host
                    await self._delete_upload(made)
                raise
            else:
                self._uploads.remove(made)  # durable with what is noted before /send
                return await self._send(ready)
        return self._deferred(f"none of {_DRAFTS_MAX} drafts got its files; the last: {why}")

    async def _delete_upload(self, upload: CloudRequest) -> None:
        """Delete a draft by its id, which frees its Message-ID. Raises ConnectError, HttpError."""
        await self._session.delete(upload.mailbox, upload.draft)
        self._uploads.remove(upload)
        await self._note(new=-1)

    async def _delete_uploads(self) -> None:
        """Delete the drafts with files of earlier attempts."""
        session, user = self._session, own_mailbox(self._session.login.user)
        for upload in tuple(self._uploads):
            if own_mailbox(upload.mailbox) != user:
                continue
            if upload.draft:
                await self._delete_upload(upload)
                continue
            if await session.delete_found(upload.mailbox, upload.message_id):
                self._uploads.remove(upload)
                await self._note()

    async def _send(self, request: CloudRequest) -> Outcome:
        """Send a draft."""
        await self._before_post()
        sent = replace(request, sent_us=self._requests.clock.queue_us(), lost_us=0)
        await self._note(sent, without=request)
        try:
            answer = await self._ask_to_send(request, f"{filling.path_of(request.draft)}/send")
        except _NO_ANSWER as error:
            if isinstance(error, HttpError) and error.may_have_arrived:
                await self._note_losses()
            else:
                await self._note(request, without=sent)
            raise
        if answer.status in TAKEN:
            return self._relayed(reply_of(answer))
        if not is_refused(answer):
            await self._note_losses()
            raise self._session.trouble(answer)
        await self._note(request, without=sent)  # an earlier /send may be in doubt
        if isinstance(outcome_of(answer, self._session.peer), Failed):
            await self._session.delete(request.mailbox, request.draft)
            await self._note(without=request)
        return self._failed(answer)

    # -- without drafts
    async def _send_at_once(self, request: CloudRequest) -> Outcome:
        """Send the message by sendMail."""
        body = await self._body(request)
        try:
            answer = await self._ask_to_send(request, "sendMail", body)
        except HttpError as error:
            if not error.may_have_arrived:
                raise
            return Indeterminate(self._session.peer.evidence("4.4.2", str(error)), unanswered=True)
        if answer.status in TAKEN:
            return self._relayed(reply_of(answer))
        outcome = outcome_of(answer, self._session.peer)
        if answer.status // 100 == 5 and not (answer.status == 503 and outcome.evidence.pause_s):
            return Indeterminate(outcome.evidence, unanswered=True)
        return self._failed(answer)

    # -- what all of them use
    async def _body(self, request: CloudRequest) -> bytes:
        """Return the base64 of the copy for a request. Raises UnreadableError."""
        addresses, most = self._addresses(request), self._session.options.mime_max
        as_mail = partial(
            report_as_mail, mailbox=request.mailbox, recipients=addresses, octets_max=most
        )

        def encoded() -> tuple[bytes, tuple[str, ...]]:
            content = self._transaction.content
            content = as_mail(content) if self._is_report else content
            copy = graph_copy(content, addresses, message_id=request.message_id)
            return b64encode(read_all(copy.content)), copy.left_out

        body, left_out = await asyncio.to_thread(encoded)
        self._note_left_out(left_out)
        return body

    def _addresses(self, request: CloudRequest) -> list[str]:
        """Return the addresses of a request."""
        pairs = zip(self._requests.recipients, self._transaction.recipients, strict=True)
        return [path.address for number, path in pairs if number in request.recipients]

    def _note_left_out(self, left_out: Sequence[str]) -> None:
        """Note for the evidence which addresses of the content are no recipients."""
        others = {own_mailbox(path.address) for path in self._transaction.recipients}
        strangers = [address for address in left_out if own_mailbox(address) not in others]
        self._found["left_out"] = tuple(strangers[:_LEFT_OUT_MAX])

    async def _ask(
        self, method: str, request: CloudRequest, path: str, **sent: Any
    ) -> HttpResponse:
        """Make a request in the mailbox of this transaction."""
        return await self._session.request(method, request.mailbox, path, **sent)

    async def _ask_to_send(
        self, request: CloudRequest, path: str, body: bytes = b""
    ) -> HttpResponse:
        """Make the request by which the message leaves: until its answer it may have left."""
        self._requests.is_sending = True
        answer = await self._ask("POST", request, path, body=body, before_post=self._before_post)
        self._requests.is_sending = False
        return answer

    async def _note(
        self,
        request: CloudRequest | None = None,
        *,
        without: CloudRequest | None = None,
        new: int = 0,
    ) -> None:
        """Make a request durable, in place of another one, the lost drafts, and those with files;
        `new` 1: one more draft is posted; -1: the last one had no effect, and its Message-ID is
        free.
        """
        noted = self._open if request is None else [*self._open, request]
        self._open = [kept for kept in noted if kept != without]
        before = self._requests.noted
        after = replace(
            before,
            requests=tuple(self._open),
            requests_before=before.requests_before + new,
            lost_posts=self._lost[-_LOST_POSTS_MAX:],
            uploads=tuple(self._uploads[-UPLOADS_MAX:]),
        )
        await self._requests.note(after)

    def _failed(self, answer: HttpResponse) -> Failed:
        """Return the outcome of a message. Raises ConnectError if the answer is not about the
        message.
        """
        outcome = outcome_of(answer, self._session.peer)
        if isinstance(outcome, Failed):
            return Failed(replace(outcome.evidence, **self._found))
        raise ConnectError(outcome, SmtpStage.DATA)

    def _relayed(self, reply: str) -> Relayed:
        evidence = self._session.peer.evidence("2.0.0", reply, remote=True)
        return Relayed(replace(evidence, **self._found))

    def _deferred(
        self, text: str, kind: DeferralClass = DeferralClass.SITE, *, status: str = "4.4.2"
    ) -> Deferred:
        return Deferred(self._session.peer.evidence(status, text), kind)
