"""Admit or reject a request before its body is stored: call its handler, or repeat an earlier
response, or answer 429, 503 or 507.

A repeat of a submission gets the first response and is not carried out again. This is checked
before pressure and the limits of the account. MIME that is not kept in memory and has no key is
recognised as a repeat only when its end has arrived. With an Idempotency-Key the store has a record
of each accepted submission for 24 hours (relay/submission/outbox/idempotency.py). Without one, the
repeats that SDKs make by themselves (`Retry-Attempt` above 0) are recognised by the request: the
accepted submissions of the last five minutes are kept in memory. Two equal requests without either
field are two messages. Only what was accepted is remembered.
"""

import asyncio
import hashlib
import re
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

from msgspec.structs import replace
from starlette.responses import Response

from relay.base.clock import Clock
from relay.base.pressure import (
    MAILBOX_REASONS,
    QUEUE_REASONS,
    ConcurrencyCounter,
    Pressure,
    PressureReason,
    describe,
)
from relay.base.shares import NoPlaceError
from relay.front_door.graph import errors, strict_profile
from relay.front_door.graph.dependencies import GraphDependencies
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.routes import GraphOperation, Intake
from relay.front_door.graph.send_mail import accepted_response
from relay.front_door.graph.store_errors import api_error
from relay.front_door.http.errors import ApiError, bad_request, quoted, service_unavailable
from relay.front_door.http.http_request import HttpRequest
from relay.store.mailbox.errors import OutcomeUnknownError, StoreError
from relay.store.mailbox.pending_submission import SubmissionKey
from relay.submission.outbox.idempotency import KeyedSubmission, slot_of

# limit of Graph: running requests of an account; then 429
REQUESTS_PER_ACCOUNT_MAX = 256
KEY_CHARACTERS_MAX = 255
REPEAT_S = 5 * 60
REPEATS_MAX = 50_000
_KEY = re.compile(rb"[!-~]{1,%d}" % KEY_CHARACTERS_MAX)
_KEY_FIELD = b"idempotency-key"
_ATTEMPT = re.compile(rb"0*[1-9][0-9]{0,9}")
# Requests that differ in one of these are different; without a key, also in client-request-id.
_FIELDS = frozenset((b"content-type", b"prefer", b"if-match"))
_CLIENT_REQUEST_ID = "client-request-id"
_REFUSED_FOR = {
    Intake.NOTHING: frozenset[PressureReason](),
    Intake.CONTENT: MAILBOX_REASONS | {PressureReason.MEMORY},
    Intake.MESSAGE: MAILBOX_REASONS | QUEUE_REASONS,
}
_CONCURRENCY_RETRY_S = 1
_PRESSURE_RETRY_S = 30

_Target = tuple[str, int, int]
_Answer = tuple[str, str, str]  # submission id, Message-ID, applied preferences
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def read_key(request: HttpRequest) -> str:
    """Return the Idempotency-Key, "" without one. Raises ApiError 400."""
    keys = [value for name, value in request.headers.raw if name == _KEY_FIELD]
    if not keys:
        return ""
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        expected = f"one of 1 to {KEY_CHARACTERS_MAX} visible characters of ASCII"
        actual = quoted(b", ".join(keys).decode("latin-1"))
        raise bad_request(f"Idempotency-Key: found {actual}, expected {expected}.")
    return keys[0].decode("ascii")


def key_of_part(key: str, part_id: str) -> str:
    """Return the key of a request of a batch that has a key."""
    return ".".join(hashlib.sha256(text.encode()).hexdigest() for text in (key, part_id))


class _RepeatedError(Exception):
    """A streamed request is a repeat; `response` is the response to the first request."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


@dataclass(eq=False, slots=True)
class _Running:
    """A request in progress. Equal requests wait until `done` is set."""

    digest: "hashlib._Hash"
    done: asyncio.Event | None = None

    async def wait(self) -> None:
        """Wait until it is over."""
        self.done = self.done or asyncio.Event()
        await self.done.wait()


class _Remembered(Generic[_Key, _Value]):
    """Values of requests, kept for five minutes; beyond REPEATS_MAX the oldest is removed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._values: OrderedDict[_Key, tuple[float, _Value]] = OrderedDict()

    def find(self, key: _Key) -> _Value | None:
        """Return the value of a key, or None."""
        known = self._values.get(key)
        return known[1] if known is not None and known[0] > self._clock.monotonic() else None

    def add(self, key: _Key, value: _Value) -> None:
        """Remember a value."""
        now_s = self._clock.monotonic()
        self._values[key] = (now_s + REPEAT_S, value)
        self._values.move_to_end(key)
        while len(self._values) > REPEATS_MAX or next(iter(self._values.values()))[0] <= now_s:
            self._values.popitem(last=False)

    def change(self, key: _Key, value: _Value) -> None:
        """Replace a value; the time at which it is removed stays the same."""
        self._values[key] = (self._values[key][0], value)


def check_pressure(pressure: Pressure, intake: Intake) -> None:
    """Raise ApiError if the relay does not accept this intake at the present pressure level, or an
    operator has paused it.

    507 if the disk of the mailboxes is full (RFC 4918 11.5), else 503; both with Retry-After.
    Reading, moving and deleting are possible at every level.
    """
    if intake is Intake.MESSAGE and (paused := pressure.paused()):
        message = f"{paused[:1].upper()}{paused[1:]}. Try again later."
        raise service_unavailable(message, retry_after_s=_PRESSURE_RETRY_S)
    if (reason := pressure.state.refusing(_REFUSED_FOR[intake])) is None:
        return
    message = f"Nothing new is taken now: {describe(reason)}. Try again later."
    if reason in MAILBOX_REASONS:
        headers = {"retry-after": str(_PRESSURE_RETRY_S)}
        raise errors.NO_RESOURCES(message, headers=headers)
    raise service_unavailable(message, retry_after_s=_PRESSURE_RETRY_S)


class Admission:
    """Carries out requests within the limits; repeats of a submission get its response.

    Belongs to one event loop.
    """

    def __init__(self, dependencies: GraphDependencies) -> None:
        self._dependencies = dependencies
        self._requests = ConcurrencyCounter()  # by account
        self._strict_requests = ConcurrencyCounter()  # by account and mailbox
        self._by_slot: dict[str, asyncio.Event] = {}
        self._running: dict[str, dict[_Running, None]] = {}  # by account, the oldest first
        # the answers by fingerprint
        self._accepted: _Remembered[tuple[str, bytes], _Answer] = _Remembered(dependencies.clock)
        # the number of requests to a target, with a body of some length, that got a 429 or 503
        self._rejected: _Remembered[_Target, int] = _Remembered(dependencies.clock)

    async def run(self, operation: GraphOperation, request: GraphRequest) -> Response:
        """Return the response to a request; for a repeat, the response to the first request.

        Raises ApiError, StoreError.
        """
        if operation.intake is not Intake.MESSAGE:
            return await self._within_limits(operation, request)
        is_repeat = has_key = False
        http = request.http
        head = [http.target, request.mailbox.encode()]
        for name, value in http.headers.raw:
            if name in _FIELDS:
                head += (name, value)
            elif name == _KEY_FIELD:
                has_key = True
            elif name == b"retry-attempt":
                is_repeat = _ATTEMPT.fullmatch(value) is not None
        # Equal requests of one batch are two messages, unless they have the same key. With a key,
        # the id may change: SDKs give the requests new ids when the batch is built again.
        head += (b"" if has_key else (http.part_id or "").encode(), b"\n")
        digest = hashlib.sha256(b"\n".join(head))  # the hash continues while the body is read
        http.hash_body(digest)
        if has_key:
            return await self._with_key(operation, request, digest)
        if client_request_id := http.headers.get(_CLIENT_REQUEST_ID):
            digest.update(client_request_id.encode("latin-1"))
        account, running = request.caller.address, _Running(digest)
        of_account = self._running.setdefault(account, {})
        of_account[running] = None
        try:
            if is_repeat and not self._was_rejected(_about(request)):
                return await self._repeated(operation, request, running)
            return await self._first(operation, request, running)
        finally:
            del of_account[running]
            if running.done is not None:
                running.done.set()
            if not of_account:
                del self._running[account]

    async def _within_limits(self, operation: GraphOperation, request: GraphRequest) -> Response:
        account, http = request.caller.address, request.http
        if not self._requests.has_room(account, per_key=REQUESTS_PER_ACCOUNT_MAX):
            message = (
                "Application is over its MailboxConcurrency limit: "
                f"{REQUESTS_PER_ACCOUNT_MAX} requests of this account are running."
            )
            raise errors.throttled(message, _CONCURRENCY_RETRY_S)
        place = (account, request.mailbox)
        is_limited = request.is_strict and strict_profile.is_in_mailbox(http.segments)
        most = strict_profile.CONCURRENT_MAX
        if is_limited and not self._strict_requests.has_room(place, per_key=most):
            headers = {"retry-after": str(_CONCURRENCY_RETRY_S)}
            raise errors.TOO_CONCURRENT(headers=headers)
        strict = self._strict_requests.counted(place) if is_limited else nullcontext()
        with self._requests.counted(account), strict:
            check_pressure(self._dependencies.pressure, operation.intake)
            has_share = self._dependencies.has_share
            if operation.intake is Intake.MESSAGE and has_share(request.mailbox):
                message = "The queue has as much of your mail as it may. Try again later."
                raise service_unavailable(message, retry_after_s=_PRESSURE_RETRY_S)
            if request.is_strict:
                strict_profile.check_query(http.segments, http.query)
            if http.query and http.method != "GET":
                request.options()  # a change has no query options: each is a 400
            return await operation.handler(request)

    # -- with a key

    async def _with_key(
        self, operation: GraphOperation, request: GraphRequest, digest: "hashlib._Hash"
    ) -> Response:
        account = request.caller.address
        slot = slot_of(account, request.mailbox, read_key(request.http))
        request.http.is_idempotent = True
        while (first := self._by_slot.get(slot)) is not None:
            await first.wait()
        done = self._by_slot[slot] = asyncio.Event()
        try:
            if (keyed := await request.store.submissions.find_keyed(account, slot)) is not None:
                return await self._answer_again(request, keyed, digest)
            known = SubmissionKey(
                slot, digest.digest, lambda: ", ".join(dict.fromkeys(request.applied))
            )
            return await self._within_limits(operation, replace(request, key=known))
        finally:
            del self._by_slot[slot]
            done.set()

    async def _answer_again(
        self, request: GraphRequest, keyed: KeyedSubmission, digest: "hashlib._Hash"
    ) -> Response:
        """Return the first answer if the body is the same. Raises ApiError 409."""
        size_bytes, limit_bytes = 0, request.dependencies.max_upload * 2
        async for block in request.http.blocks():
            size_bytes += len(block)
            if size_bytes > limit_bytes:
                break
        if digest.digest() != keyed.fingerprint:
            other = "another request: its path, body, Content-Type, Prefer or If-Match differs"
            raise errors.CONFLICT(f"Idempotency-Key: it was used for {other}.")
        return _again(
            request, (keyed.submission_id, keyed.internet_message_id, keyed.preference_applied)
        )

    # -- without

    async def _repeated(
        self, operation: GraphOperation, request: GraphRequest, running: _Running
    ) -> Response:
        """Return the response to the request that an SDK repeats, if it was accepted."""

        async def check() -> None:
            if (response := await self._first_response(request, running)) is not None:
                raise _RepeatedError(response)

        try:
            if request.is_streamed():  # its hash is known at its end
                request = replace(request, before_submission=check)
            else:
                await request.http.keep_body()
                await check()
            return await self._first(operation, request, running)
        except _RepeatedError as repeated:
            return repeated.response

    async def _first(
        self, operation: GraphOperation, request: GraphRequest, running: _Running
    ) -> Response:
        try:
            response = await self._within_limits(operation, request)
        except (ApiError, NoPlaceError, StoreError) as error:
            refusal = error if isinstance(error, ApiError) else api_error(error, request.http)
            is_repeat = request.before_submission is not None  # its original may have been accepted
            may_be_sent = is_repeat or isinstance(error, OutcomeUnknownError)
            if refusal.status in (429, 503, 504) and not may_be_sent:
                self._reject(_about(request))
            raise
        if response.status_code < 300:
            self._accept(request, running, response)
        return response

    async def _first_response(self, request: GraphRequest, own: _Running) -> Response | None:
        """Return the response to an equal request that was accepted. If one is in progress, wait
        for it.
        """
        account, fingerprint = request.caller.address, own.digest.digest()
        of_account = self._running[account]
        for other in tuple(of_account):
            if other is own:
                break  # only for requests that began earlier, so that no two wait for each other
            if other in of_account and other.digest.digest() == fingerprint:
                await other.wait()
        answer = self._accepted.find((account, fingerprint))
        return None if answer is None else _again(request, answer)

    def _accept(self, request: GraphRequest, running: _Running, response: Response) -> None:
        applied = ", ".join(dict.fromkeys(request.applied)) if request.applied else ""
        self._accepted.add(
            (request.caller.address, running.digest.digest()),
            (
                response.headers["x-relay-submission-id"],
                response.headers.get("x-relay-internet-message-id", ""),
                applied,
            ),
        )

    def _reject(self, about: _Target) -> None:
        """Note that the client may repeat a request that was not accepted.

        If an equal request was accepted before, the repetition would else count as a repeat of that
        one, and its message would be lost.
        """
        self._rejected.add(about, (self._rejected.find(about) or 0) + 1)

    def _was_rejected(self, about: _Target) -> bool:
        """Return whether a request may repeat a rejected one. Each rejected request counts once."""
        if count := self._rejected.find(about) or 0:
            self._rejected.change(about, count - 1)
        return count > 0


def _about(request: GraphRequest) -> _Target:
    http = request.http
    return request.caller.address, hash(http.target), http.declared_bytes or 0


def _again(request: GraphRequest, answer: _Answer) -> Response:
    """Return the first response to a submission."""
    submission_id, internet_message_id, applied = answer
    if applied:
        request.applied.append(applied)
    return accepted_response(request, submission_id, internet_message_id=internet_message_id)
