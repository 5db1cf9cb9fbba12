"""Repeated submissions are answered like the first one, and not carried out again.

With an Idempotency-Key the store has a record of each accepted submission for 24 hours
(relay/mailbox/submissions/idempotency.py). Without one, the repeats that SDKs make by themselves
(`Retry-Attempt` above 0) are recognised by the request: the accepted submissions of the last five
minutes are kept in memory. Two equal requests without either field are two messages. Only what was
accepted is remembered.
"""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from msgspec.structs import replace
from starlette.responses import Response

from relay.clock import Clock
from relay.graph.graph_request import GraphRequest, api_error
from relay.graph.send_mail import accepted_response
from relay.http.errors import ApiError, quoted
from relay.http.http_request import HttpRequest
from relay.mailbox.store import FileStore
from relay.mailbox.types import KeyedSubmission, OutcomeUnknownError, StoreError, SubmissionKey

KEY_CHARACTERS_MAX = 255
REPEAT_S = 5 * 60
REPEATS_PER_ACCOUNT_MAX = 10_000
REPEATS_MAX = 50_000
_REJECTIONS_PER_ACCOUNT_MAX = 1000
_REJECTIONS_MAX = 10_000
_KEY = re.compile(rb"[!-~]{1,%d}" % KEY_CHARACTERS_MAX)
_KEY_FIELD = b"idempotency-key"
_ATTEMPT_FIELD = b"retry-attempt"
_ATTEMPT = re.compile(rb"0*[1-9][0-9]{0,9}")
# A request that differs in one of these is another request, without a key also in the last one.
_FIELDS = frozenset((b"content-type", b"prefer", b"if-match"))
_CLIENT_REQUEST_ID = "client-request-id"
_REPEATED_BY_SDKS = (429, 503, 504)
_SUBMISSION, _MESSAGE_ID = b"x-relay-submission-id", b"x-relay-internet-message-id"

_Target = tuple[int, int]
_Answer = tuple[str, str, str]  # submission id, Message-ID, applied preferences
_Handler = Callable[[GraphRequest], Awaitable[Response]]


def read_key(request: HttpRequest) -> str:
    """Return the Idempotency-Key, "" without one. Raises ApiError 400."""
    given = [value for name, value in request.headers.raw if name == _KEY_FIELD]
    if not given:
        return ""
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        expected = f"one of 1 to {KEY_CHARACTERS_MAX} visible characters of ASCII"
        found = quoted(b", ".join(given).decode("latin-1"))
        raise ApiError(400, "BadRequest", f"Idempotency-Key: found {found}, expected {expected}.")
    return given[0].decode("ascii")


def key_of_part(key: str, part_id: str) -> str:
    """Return the key of a request of a batch that has a key."""
    return ".".join(hashlib.sha256(one.encode()).hexdigest() for one in (key, part_id))


class _RepeatedError(Exception):
    """A streamed request is found to be a repeat; `response` is the first one's."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


@dataclass(eq=False, slots=True)
class _Running:
    """A request that is being carried out. `done` is for those that wait for it."""

    digest: "hashlib._Hash"
    done: asyncio.Event | None = None

    async def wait(self) -> None:
        """Wait until it is over."""
        self.done = self.done or asyncio.Event()
        await self.done.wait()


@dataclass(eq=False, slots=True)
class _AccountMemory:
    """What is known of the requests of one account; the oldest first.

    `accepted` has the answers by fingerprint and until when they are kept, `rejected` the number of
    requests to a target (its hash), with a body of some length, that got a 429 or 503.
    """

    running: dict[_Running, None] = field(default_factory=dict)
    accepted: OrderedDict[bytes, tuple[float, _Answer]] = field(default_factory=OrderedDict)
    rejected: OrderedDict[_Target, tuple[float, int]] = field(default_factory=OrderedDict)


class SubmissionRepeats:
    """Carries out submissions, but not their repeats. One event loop."""

    def __init__(self, store: FileStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._by_slot: dict[bytes, asyncio.Event] = {}
        self._accounts: OrderedDict[str, _AccountMemory] = OrderedDict()
        self._accepted = self._rejected = 0  # of all accounts

    async def submit(self, request: GraphRequest, handler: _Handler) -> Response:
        """Return the response of `handler`, or that to the request which this one repeats."""
        is_repeat = has_key = False
        http = request.http
        head = [http.target, request.mailbox.encode()]
        for name, value in http.headers.raw:
            if name in _FIELDS:
                head += (name, value)
            elif name == _KEY_FIELD:
                has_key = True
            elif name == _ATTEMPT_FIELD:
                is_repeat = _ATTEMPT.fullmatch(value) is not None
        # Equal requests of one batch are two messages, unless they have the same key. With a key,
        # the id may change: SDKs give the requests new ids when the batch is built again.
        head += (b"" if has_key else (http.part_id or "").encode(), b"\n")
        digest = hashlib.sha256(b"\n".join(head))  # it goes on with the body while it is read
        http.hash_body(digest)
        if has_key:
            return await self._with_key(request, handler, read_key(http), digest=digest)
        if client_request_id := http.headers.get(_CLIENT_REQUEST_ID):
            digest.update(client_request_id.encode("latin-1"))
        memory = self._accounts.get(request.caller.address)
        if memory is None:
            memory = self._accounts[request.caller.address] = _AccountMemory()
        running = _Running(digest)
        memory.running[running] = None
        try:
            if is_repeat and not self._was_rejected(memory, _about(http)):
                return await self._repeated(request, handler, own=(memory, running))
            return await self._first(request, handler, own=(memory, running))
        finally:
            del memory.running[running]
            if running.done is not None:
                running.done.set()
            if not (memory.running or memory.accepted or memory.rejected):
                self._accounts.pop(request.caller.address, None)

    # -- with a key

    async def _with_key(
        self, request: GraphRequest, handler: _Handler, key: str, *, digest: "hashlib._Hash"
    ) -> Response:
        account = request.caller.address
        text = f"{account}\0{request.mailbox}\0{key}"
        slot = hashlib.sha256(text.encode()).digest()
        request.http.is_idempotent = True
        while (first := self._by_slot.get(slot)) is not None:
            await first.wait()
        done = self._by_slot[slot] = asyncio.Event()
        try:
            if (found := await self._store.submissions.find_keyed(account, slot)) is not None:
                return await self._answer_again(request, found, digest)
            known = SubmissionKey(
                account, slot, digest.digest, lambda: ", ".join(dict.fromkeys(request.applied))
            )
            return await handler(replace(request, key=known))
        finally:
            del self._by_slot[slot]
            done.set()

    async def _answer_again(
        self, request: GraphRequest, found: KeyedSubmission, digest: "hashlib._Hash"
    ) -> Response:
        """Return the first answer if the body is the same. Raises ApiError 409, 413."""
        size_bytes, limit_bytes = 0, request.dependencies.max_upload * 2
        async for block in request.http.blocks():
            size_bytes += len(block)
            if size_bytes > limit_bytes:
                break
        if digest.digest() != found.fingerprint:
            message = (
                "Idempotency-Key: it was used for another request within 24 hours. A repeat has "
                "the same path, body, Content-Type, Prefer and If-Match; a new message a new key."
            )
            raise ApiError(409, "ErrorIrresolvableConflict", message)
        return _again(
            request,
            (found.submission_id, found.internet_message_id, found.preference_applied),
        )

    # -- without

    async def _repeated(
        self, request: GraphRequest, handler: _Handler, *, own: tuple[_AccountMemory, _Running]
    ) -> Response:
        """Return the response to the request that an SDK repeats, if it was accepted."""
        memory, running = own

        async def check() -> None:
            if (response := await self._first_response(request, memory, running)) is not None:
                raise _RepeatedError(response)

        try:
            if request.is_streamed():  # its hash is known at its end
                request = replace(request, before_submission=check)
            else:
                await request.http.keep_body()
                await check()
            return await self._first(request, handler, own=own)
        except _RepeatedError as repeated:
            return repeated.response

    async def _first(
        self, request: GraphRequest, handler: _Handler, *, own: tuple[_AccountMemory, _Running]
    ) -> Response:
        memory, running = own
        try:
            response = await handler(request)
        except (ApiError, StoreError) as error:
            shown = error if isinstance(error, ApiError) else api_error(error)
            if shown.status in _REPEATED_BY_SDKS and not isinstance(error, OutcomeUnknownError):
                self._reject(memory, _about(request.http))
            raise
        if response.status_code < 300:
            self._accept(request, memory, running, response=response)
        return response

    async def _first_response(
        self, request: GraphRequest, memory: _AccountMemory, own: _Running
    ) -> Response | None:
        """Return the response to an equal request that was accepted; wait for one that runs."""
        fingerprint = own.digest.digest()
        for other in tuple(memory.running):
            if other is own:
                break  # only those that began before: none waits for one that waits for it
            if other in memory.running and other.digest.digest() == fingerprint:
                await other.wait()
        until_s, answer = memory.accepted.get(fingerprint, (0.0, ("", "", "")))
        if until_s <= self._clock.monotonic():
            return None
        return _again(request, answer)

    def _accept(
        self,
        request: GraphRequest,
        memory: _AccountMemory,
        running: _Running,
        *,
        response: Response,
    ) -> None:
        submission_id = internet_message_id = ""
        for name, value in response.raw_headers:
            if name == _SUBMISSION:
                submission_id = value.decode("ascii")
            elif name == _MESSAGE_ID:
                internet_message_id = value.decode("latin-1")
        applied = ", ".join(dict.fromkeys(request.applied)) if request.applied else ""
        answer = (submission_id, internet_message_id, applied)
        fingerprint, accepted = running.digest.digest(), memory.accepted
        self._accepted += fingerprint not in accepted
        accepted[fingerprint] = (self._clock.monotonic() + REPEAT_S, answer)
        accepted.move_to_end(fingerprint)
        self._accounts.move_to_end(request.caller.address)
        self._forget(memory)

    def _forget(self, memory: _AccountMemory) -> None:
        """Forget what has expired or is too much, of this account and then of the idlest one."""
        now_s, accepted = self._clock.monotonic(), memory.accepted
        while accepted and (
            len(accepted) > REPEATS_PER_ACCOUNT_MAX or next(iter(accepted.values()))[0] <= now_s
        ):
            accepted.popitem(last=False)
            self._accepted -= 1
        while self._accepted > REPEATS_MAX:
            next(one.accepted for one in self._accounts.values() if one.accepted).popitem(
                last=False
            )
            self._accepted -= 1

    def _reject(self, memory: _AccountMemory, about: _Target) -> None:
        """Note that the client may repeat a request that was not accepted.

        It may equal one that was accepted before. Without this, its repeat would be lost.
        """
        rejected = memory.rejected
        _, count = rejected.get(about, (0.0, 0))
        self._rejected += not count
        rejected[about] = (self._clock.monotonic() + REPEAT_S, count + 1)
        rejected.move_to_end(about)
        if len(rejected) > _REJECTIONS_PER_ACCOUNT_MAX:
            rejected.popitem(last=False)
            self._rejected -= 1
        elif self._rejected > _REJECTIONS_MAX:
            next(one.rejected for one in self._accounts.values() if one.rejected).popitem(
                last=False
            )
            self._rejected -= 1

    def _was_rejected(self, memory: _AccountMemory, about: _Target) -> bool:
        """Return whether a request may repeat a rejected one; each is repeated once."""
        until_s, count = memory.rejected.get(about, (0.0, 0))
        is_kept = until_s > self._clock.monotonic()
        if is_kept and count > 1:
            memory.rejected[about] = (until_s, count - 1)
        elif count:
            del memory.rejected[about]
            self._rejected -= 1
        return is_kept


def _about(request: HttpRequest) -> _Target:
    return hash(request.target), request.declared_bytes or 0


def _again(request: GraphRequest, answer: _Answer) -> Response:
    """Return the first response to a submission."""
    submission_id, internet_message_id, applied = answer
    if applied:
        request.applied.append(applied)
    return accepted_response(request, submission_id, internet_message_id=internet_message_id)
