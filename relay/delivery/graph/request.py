"""The requests for one transaction: a draft is made and sent, and looked for after a lost answer.

A request is in the spool before its draft is posted, and the id of the draft before it is sent, so
that the next attempt can ask what became of it. Nothing is made or sent while that is not known: a
draft is sent again, or deleted, at the earliest SENT_US after an answer to /send was lost; what is
seen nowhere is looked for until LOOKED_FOR_US have passed. Without `confirm`, sendMail is used, and
a lost answer is Indeterminate. Graph v1.0: message: send, user: sendMail, list messages.
"""

import asyncio
from base64 import b64encode
from collections.abc import Sequence
from typing import Protocol, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.address import own_mailbox
from relay.base.message.content import UnreadableError, read_all, size_of
from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Evidence,
    Failed,
    Indeterminate,
    Outcome,
    Peer,
    Relayed,
    SmtpStage,
    classify_session_failure,
)
from relay.delivery.graph.outcomes import (
    TAKEN,
    is_refused,
    is_too_large,
    outcome_of,
    pause_s,
    reply_of,
    taken,
)
from relay.delivery.http_connection import HttpAnswer, HttpError
from relay.delivery.smtp.client_protocol import SmtpProtocolError
from relay.delivery.smtp.connect import ConnectError, GraphOptions
from relay.delivery.smtp.connection import BeforeDot
from relay.delivery.smtp.transaction import Transaction
from relay.formats.graph_copy import graph_copy, sole_message_id
from relay.store.spool.types import GraphRequest

RECIPIENTS_MAX = 500  # of a message, in Exchange Online
SENT_US = 120_000_000
LOOKED_FOR_US = 600_000_000
_LEFT_OUT_MAX = 50  # of an attempt, for the journey
_NOT_FOUND = 404
_DELETED = "deleteditems"
_FOLDERS = ("drafts", "sentitems", _DELETED)  # never the Inbox: a copy may come there by SMTP


_S = TypeVar("_S", bound=Struct)


class Ask(Protocol):
    """Makes one request: see GraphConnection."""

    async def __call__(
        self, method: str, path: str, body: bytes = b"", *, before_post: BeforeDot | None = None
    ) -> HttpAnswer:
        """Raises HttpError, ConnectError."""


class _Item(Struct, rename="camel"):
    id: str
    is_draft: bool = True


class _Items(Struct):
    value: list[_Item]


class _HostError(Exception):
    """The host cannot be used now: the outcome is that of all recipients without one."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.evidence.reply)
        self.outcome = outcome


def too_large(size: int, options: GraphOptions) -> str:
    """Return why a content of so many octets is not sent, "" if it can be."""
    if size <= options.mime_max:
        return ""
    return f"the message has {size} bytes, the route sends at most {options.mime_max} (mime_max)"


class GraphTransaction:
    """One transaction. run() gives the outcomes by the index of the recipient."""

    def __init__(
        self,
        transaction: Transaction,
        options: GraphOptions,
        *,
        mailbox: str,
        peer: Peer,
        ask: Ask,
        before_post: BeforeDot | None,
    ) -> None:
        assert transaction.graph is not None
        self._transaction, self._options = transaction, options
        self._requests = transaction.graph
        self._mailbox, self._peer, self._ask = mailbox, peer, ask
        self._before_post = before_post
        ended = self._requests.ended
        self._open = [one for one in self._requests.requests if one.message_id not in ended]
        self._left_out: tuple[str, ...] = ()

    async def run(self) -> dict[int, Outcome]:
        """Ask what became of earlier requests, then make one for recipients that are in none. Who
        has no outcome then needs another transaction. Raises SpoolError.
        """
        numbers, outcomes = self._requests.recipients, dict[int, Outcome]()
        try:
            for request in tuple(self._open):
                live = [number for number in request.recipients if number in numbers]
                if live and (outcome := await self._resume(request, live)):
                    outcomes |= dict.fromkeys(live, outcome)
            part = [number for number in numbers if number not in outcomes][:RECIPIENTS_MAX]
            if part:
                outcomes |= dict.fromkeys(part, await self._begin(part))
        except _HostError as error:
            rest = [number for number in numbers if number not in outcomes]
            outcomes |= dict.fromkeys(rest, error.outcome)
        done = {number for number, one in outcomes.items() if isinstance(one, Relayed | Failed)}
        self._requests.ended |= {
            one.message_id for one in self._open if done.issuperset(one.recipients)
        }
        return {
            index: self._with_left_out(outcomes[number])
            for index, number in enumerate(numbers)
            if number in outcomes
        }

    # -- requests of earlier attempts
    async def _resume(self, request: GraphRequest, numbers: Sequence[int]) -> Outcome | None:
        """Return the outcome for these recipients of a request; None if they need another one."""
        found = await self._look(request)
        if found is not None and not found.is_draft:
            text = f"HTTP 200: it is no draft any more, so it was sent ({request.message_id})"
            return Relayed(self._peer.evidence("2.0.0", text, remote=True))
        now_us = self._requests.now_us()
        if found is not None:
            if request.sent_us and now_us < request.sent_us + SENT_US:
                return self._waiting("its draft is there, and may still be sent")
            if set(numbers) == set(request.recipients):
                return await self._send(request, found.id)
            await self._delete(request, found.id)
            self._open.remove(request)
            return None
        if now_us < max(request.posted_us, request.sent_us) + LOOKED_FOR_US:
            return self._waiting("the message is looked for in Drafts and Sent Items")
        await self._forget(request)
        if not request.sent_us:
            return None
        text = "no answer to /send, and it is neither in Drafts nor in Sent or Deleted Items"
        return Indeterminate(self._peer.evidence("4.4.2", text), unanswered=True)

    async def _look(self, request: GraphRequest) -> _Item | None:
        """Return the message of a request, the sent one if there are several."""
        mailbox = quote(request.mailbox, safe="")
        if request.draft:
            path = f"{mailbox}/messages/{quote(request.draft, safe='')}?$select=id,isDraft"
            answer = await self._asked("GET", path)
            if answer.status != _NOT_FOUND:
                return self._read(answer, _Item)
        found: list[_Item] = []
        text = quote(request.message_id.replace("'", "''"), safe="")
        query = f"$filter=internetMessageId%20eq%20'{text}'&$select=id,isDraft"
        for folder in _FOLDERS:
            answer = await self._asked("GET", f"{mailbox}/mailFolders/{folder}/messages?{query}")
            # What came by SMTP may have been deleted; what was not to be sent, was not.
            may_be_sent = folder != _DELETED or request.sent_us
            items = self._read(answer, _Items).value
            found += [item for item in items if item.is_draft or may_be_sent]
        return min(found, key=lambda item: item.is_draft, default=None)

    # -- drafts
    async def _begin(self, numbers: Sequence[int]) -> Outcome:
        """Make a request for these recipients. Raises _HostError."""
        content, requests = self._transaction.content, self._requests
        if text := too_large(size_of(content), self._options):
            return Failed(self._peer.evidence("5.3.4", f"5.3.4 {text}"))
        if not self._options.confirm:
            return await self._send_at_once(numbers)
        message_id = await requests.message_id(sole_message_id(content))
        body = await self._body(numbers, message_id)
        await self._permitted()
        request = GraphRequest(self._mailbox, message_id, tuple(numbers), requests.now_us())
        await self._note(request, new=True)
        try:
            path = f"{quote(self._mailbox, safe='')}/messages"
            answer = await self._asked("POST", path, body)
        except HttpError as error:
            if not error.may_have_arrived:
                await self._forget(request)
            raise self._lost(f"{error}; its draft is looked for") from None
        except _HostError:  # nothing was written
            await self._forget(request)
            raise
        if answer.status in TAKEN:
            return await self._send(request, self._read(answer, _Item).id)
        outcome = outcome_of(answer, self._peer)
        if is_refused(answer) or is_too_large(answer):
            await self._forget(request)
        if isinstance(outcome, Failed):
            return outcome
        raise _HostError(outcome)

    async def _send(self, request: GraphRequest, draft: str) -> Outcome:
        """Send a draft. Raises _HostError."""
        await self._permitted()
        sent = replace(request, draft=draft, sent_us=self._requests.now_us())
        await self._note(sent, instead=request)
        path = f"{quote(request.mailbox, safe='')}/messages/{quote(draft, safe='')}/send"
        try:
            answer = await self._asked("POST", path)
        except HttpError as error:
            raise self._lost(f"{error}; it is looked for") from None
        if answer.status in TAKEN:
            return Relayed(taken(answer, self._peer))
        outcome = outcome_of(answer, self._peer)
        if is_refused(answer):
            if isinstance(outcome, Failed):
                await self._delete(request, draft)
                return outcome
            await self._note(replace(sent, sent_us=0), instead=sent)
        elif answer.status // 100 != 5:
            found = await self._look(sent)
            if found is not None and not found.is_draft:
                return Relayed(taken(answer, self._peer))
            return self._waiting(f"{reply_of(answer)}; it is looked for")
        raise _HostError(outcome)

    async def _delete(self, request: GraphRequest, draft: str) -> None:
        path = f"{quote(request.mailbox, safe='')}/messages/{quote(draft, safe='')}"
        answer = await self._asked("DELETE", path)
        if answer.status // 100 != 2 and answer.status != _NOT_FOUND:
            raise self._trouble(answer)

    # -- without drafts
    async def _send_at_once(self, numbers: Sequence[int]) -> Outcome:
        """Send the message by sendMail. Raises _HostError."""
        body = await self._body(numbers, "")
        try:
            answer = await self._asked("POST", f"{quote(self._mailbox, safe='')}/sendMail", body)
        except HttpError as error:
            lost = self._lost(str(error))
            if error.may_have_arrived:
                return Indeterminate(lost.outcome.evidence, unanswered=True)
            raise lost from None
        if answer.status in TAKEN:
            return Relayed(taken(answer, self._peer))
        outcome = outcome_of(answer, self._peer)
        if answer.status // 100 == 5 and not pause_s(answer):
            return Indeterminate(outcome.evidence, unanswered=True)
        if isinstance(outcome, Failed):
            return outcome
        raise _HostError(outcome)

    # -- what all of them use
    async def _body(self, numbers: Sequence[int], message_id: str) -> bytes:
        """Return the body of a request: the base64 of a copy. Raises _HostError."""
        paths = zip(self._requests.recipients, self._transaction.recipients, strict=True)
        addresses = [path.address for number, path in paths if number in numbers]

        def encoded() -> tuple[bytes, tuple[str, ...]]:
            content = self._transaction.content
            copy = graph_copy(content, addresses, message_id=message_id)
            return b64encode(read_all(copy.content)), copy.left_out

        try:
            body, left_out = await asyncio.to_thread(encoded)
        except UnreadableError as error:
            text = f"451 4.3.0 the message cannot be read: {error}"  # RFC 3463 3.4
            raise _HostError(Deferred(Evidence("4.3.0", text), DeferralClass.CONTENT)) from None
        others = {own_mailbox(path.address) for path in self._transaction.recipients}
        strangers = [address for address in left_out if own_mailbox(address) not in others]
        self._left_out = tuple(strangers[:_LEFT_OUT_MAX])
        return body

    async def _permitted(self) -> None:
        """Wait for what earlier requests left to record. Raises _HostError."""
        if self._before_post is None:
            return
        try:
            await self._before_post()
        except SmtpProtocolError as error:
            outcome = classify_session_failure(
                SmtpStage.DATA, error.trouble, error.text, peer=self._peer
            )
            raise _HostError(outcome) from None

    async def _asked(self, method: str, path: str, body: bytes = b"") -> HttpAnswer:
        """Make a request. Raises _HostError if nothing was written; of a POST also HttpError."""
        is_post = method == "POST"
        try:
            return await self._ask(
                method, path, body, before_post=self._permitted if is_post else None
            )
        except ConnectError as error:
            raise _HostError(error.outcome) from None
        except HttpError as error:
            if is_post:
                raise
            raise self._lost(str(error)) from None

    def _read(self, answer: HttpAnswer, kind: type[_S]) -> _S:
        """Return what an answer has. Raises _HostError."""
        if answer.status not in (200, 201):
            raise self._trouble(answer)
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self._lost(f"{reply_of(answer)}: not the JSON of Microsoft Graph") from None

    async def _note(
        self, request: GraphRequest, *, instead: GraphRequest | None = None, new: bool = False
    ) -> None:
        self._open = [one for one in self._open if one is not instead] + [request]
        await self._requests.note(self._open, new=new)

    async def _forget(self, request: GraphRequest) -> None:
        self._open.remove(request)
        await self._requests.note(self._open)

    def _trouble(self, answer: HttpAnswer) -> _HostError:
        """The error for an answer to what is neither content nor /send: it fails no message."""
        outcome = outcome_of(answer, self._peer)
        if isinstance(outcome, Failed):
            evidence = replace(outcome.evidence, status=f"4{outcome.evidence.status[1:]}")
            outcome = Deferred(evidence, DeferralClass.SITE)
        return _HostError(outcome)

    def _lost(self, text: str) -> _HostError:
        evidence = self._peer.evidence("4.4.2", text)
        return _HostError(Deferred(evidence, DeferralClass.CONNECT))

    def _waiting(self, text: str) -> Deferred:
        return Deferred(self._peer.evidence("4.4.2", text), DeferralClass.SITE)

    def _with_left_out(self, outcome: Outcome) -> Outcome:
        if not self._left_out:
            return outcome
        return replace(outcome, evidence=replace(outcome.evidence, left_out=self._left_out))
