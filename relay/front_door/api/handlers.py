"""Handlers of /relay/v1, each for a principal: messages, refusals, queue, storage, login delays.

`app` answers health checks and metrics, which need no principal.

An unknown message and another account's message are the same 404. The roles read and operate see
all journeys. The content of others' messages needs the role operate, and each look is logged; not
in a development relay. A queue command needs the role operate; if its client disconnects, it stops,
and the changes made before that remain.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from msgspec.structs import replace
from starlette.responses import Response

from relay.base.accounts.account import Role, UnknownUserError
from relay.base.message.content import Content, octets_of
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import Destination
from relay.base.pauses import Paused
from relay.base.shares import Shares
from relay.base.turns import Turns
from relay.formats.body_checks import Checks, check_bodies
from relay.formats.read_mime import read_parts
from relay.front_door.api import release, request_parameters, submissions
from relay.front_door.api.dependencies import ApiDependencies, Principal
from relay.front_door.api.event_streams import WantedMessage
from relay.front_door.api.explain import TURN_S, ExplainHandler
from relay.front_door.api.message_source import NO_PREVIEW, MessagePreviews, RowFacts
from relay.front_door.api.search_text import SEARCH_PREFIXES, list_search_of, log_rows, times_of
from relay.front_door.http.errors import ApiError, bad_request, quoted, service_unavailable
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.responses import content_response, json_response
from relay.store.journeys.document import Journey
from relay.store.journeys.journey import ListPage, MessageList
from relay.store.journeys.message_list import (
    ALL_MAILBOXES,
    FINAL_STATE,
    NO_MAILBOX,
    ListPosition,
    MessageSearch,
    MessageSummary,
    in_flight,
    nearest,
)
from relay.store.journeys.sentences import are_failures_reported, has_new, needed_reports
from relay.store.mailbox.stored_message import StoredMessage
from relay.store.spool.queue_commands import (
    BEFORE_QUEUE_HEADER,
    UNKNOWN_HEADER,
    CommandReport,
    EntryList,
    Operation,
    QueueCommand,
)
from relay.store.spool.shared.traffic import GROUPINGS
from relay.store.spool.types import FIRST_KEY, Key, Selector
from relay.transport.refusals.refusal import RefusalPage

Found = TypeVar("Found")
WAIT_S_MAX = 300.0
WAIT_S = 30.0
_LOOKUP_S = 5.0  # for conditions on contents
REPORTED = "reported"  # each failed recipient has its report
THERE = "there"  # all recipients are captured or final
# limit: waits of `wait=`, `/wait` and `/quiet`, half of them for one account; then 503
WAITING_MAX = 200
# limit: the last of these, only for the roles `read` and `operate`, and the control socket
WAITING_RESERVED = 20
_COMPARED_MAX = 30  # messages that a wait without result is compared with
_LOOKED_AT_MAX = 100  # seconds for messages on their way
_NEAR_MAX = 10
_KEY_CHARACTERS = 1000
# A process of another role writes the submission log without a notification: poll as well.
_POLL_S = 1.0
# A busy relay changes all the time, and each query reads the spool: a tenth of the time at most.
_PAUSE_S_MIN = 0.02
_TIMER_S = 0.001  # timers of the event loop have milliseconds: less would be no pause
_COST_FACTOR = 10
_AGE_S_MAX = 1e9
_ENTRIES_OF_MESSAGE_MAX = 100
_NAMES_AT_ONCE = 200
_GONE = (
    "The content is gone: the queue keeps it until all recipients are final, and neither a local "
    "recipient nor the sender has a copy in a mailbox (any more):"
)
_NOT_YOURS = (
    "The content of messages of others is shown to accounts with the role operate. The journey of "
    "this message is shown to you, its content is not."
)
_NO_COPY = "The sender has no copy of this message in Drafts or Sent Items (any more)."
_LOGGED = ("error", "matched", "done", "ordered")  # of the answer to a queue command


class _PruneBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    older_than_s: float | None = None
    dry_run: bool = False


class _ResumeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    what: Paused | None = None


class _PauseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    what: Paused
    until: str = ""


class _AccountsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    change: str
    accounts: str


class _UnlockBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    address: str


class Handlers:
    """The handlers of all paths that need a principal. They raise SpoolError and StoreError too."""

    def __init__(self, dependencies: ApiDependencies) -> None:
        self._dependencies = dependencies
        self._previews = MessagePreviews(dependencies.sources, dependencies.journeys.places)
        self.checks = Turns("checks", 1)  # a hostile message takes seconds
        self.explain = ExplainHandler(dependencies.explain)
        self._waits = Shares("waits", WAITING_MAX)

    # `GET messages?q=&to=&sender=&subject=&mailbox=&state=&kind=&after=&before=&wait=&limit=`:
    # `{messages, cursor, older, since, until}`, the newest first. After a cursor come later
    # messages, with `before=OLDER` older messages. A `wait` in vain adds `nearest` (a row of `log`
    # with `compared: [{field, expected, found, matches}]`), `in_flight`, `refused`
    async def messages(
        self, query: Mapping[str, str], principal: Principal, *, after_id: str = ""
    ) -> dict[str, Any]:
        """GET /messages: a page of the list, also after a wait without result. With `after_id`, a
        queue id, only messages that arrived after that one.
        """
        before = request_parameters.list_position_of(query)
        conditions = list_search_of(query, self._dependencies.clock.time_us())
        conditions = self.with_reader(replace(conditions, after_id=after_id), principal)
        limit = request_parameters.limit_of(query)
        wait_s = request_parameters.number_of(query, "wait", default=0, limits=(0, WAIT_S_MAX))
        if conditions.after is not None:
            after = await self._dependencies.journeys.place_of(conditions.after)
            conditions = replace(conditions, after=after)

        async def search() -> MessageList:
            return await self._dependencies.journeys.search(
                conditions,
                account=principal.account,
                limit=limit,
                before=before,
                lookup_s=_LOOKUP_S,
            )

        page = await self._wait_until(
            search,
            lambda listed: bool(listed.messages),
            account=principal.account,
            timeout_s=wait_s,
        )
        older = None if page.older is None else str(page.older)
        missed = (
            {} if page.messages or not wait_s else await self._near_misses(conditions, principal)
        )
        answer = {"messages": page.messages, "cursor": str(page.cursor), "older": older}
        return answer | times_of(conditions) | missed

    async def _near_misses(self, search: MessageSearch, principal: Principal) -> dict[str, Any]:
        """Return for a wait without result: similar messages, messages on their way, refused
        messages.
        """
        journeys, account = self._dependencies.journeys, principal.account
        near = await journeys.near(search, account=account, limit=_COMPARED_MAX)
        return {
            "nearest": await asyncio.to_thread(nearest, search, *near),
            "in_flight": await self.in_flight(principal),
            "refused": (await self.refused({"limit": str(_NEAR_MAX)}, principal)).refused,
        }

    async def in_flight(self, principal: Principal) -> list[dict[str, Any]]:
        """Return the newest messages that are on their way, as rows."""
        journeys, account = self._dependencies.journeys, principal.account
        newest = await journeys.page(MessageSearch(), account=account, limit=_LOOKED_AT_MAX)
        return [row.as_json() for row in in_flight(newest.rows)[:_NEAR_MAX]]

    # `GET log?q=&…&before=&limit=&pages=`: `{messages: [{at, id, submission_id, message_id, sender,
    # subject, state, client: {address, helo}, login, size, status, reply, next_attempt, recipients:
    # [{address, state}], recipient_count, added}], older, before, since, until}`, the first 20
    # recipients; reads up to `pages` (20) times 20,000 messages, with `before=BEFORE` older ones
    async def log(self, query: Mapping[str, str], principal: Principal) -> dict[str, Any]:
        """GET /log: a page of rows."""
        return await log_rows(self._dependencies.journeys, query, account=principal.account)

    def with_reader(self, search: MessageSearch, principal: Principal) -> MessageSearch:
        """Return a search limited to texts that the principal may read without a note in the log.

        Raises ApiError 400 in a service for tags, and over the control socket for what is looked up
        in the reader's mailbox: it has none.
        """
        if search.tags and not self.is_development:
            raise bad_request("q: tag: and is:tagged are for relay dev; a service has no tags.")
        has_mailbox = self.is_development or not principal.is_at_socket
        if not has_mailbox and (search.words or search.is_unread):
            word = quoted(search.words[0] if search.words else "is:unread")
            names = ", ".join(f"{name}:" for name in SEARCH_PREFIXES if name not in ("tag", "is"))
            raise bad_request(f"q: {word}: a service searches no texts here; there are {names}.")
        if not principal.may_read_content:
            return replace(search, reader=NO_MAILBOX)
        return replace(search, reader=ALL_MAILBOXES if self.is_development else principal.name)

    async def page(
        self,
        search: MessageSearch,
        principal: Principal,
        *,
        limit: int,
        before: ListPosition | None,
    ) -> ListPage:
        """Return a page of the list as rows."""
        return await self._dependencies.journeys.page(
            self.with_reader(search, principal),
            account=principal.account,
            limit=limit,
            before=before,
        )

    # `GET messages/{id}`: the message, below. `{id}` is a Graph id, submission id, queue id,
    # Message-ID, an address or `last`
    async def message(self, key: str, principal: Principal) -> Journey:
        """GET /messages/{id}."""
        if (journey := await self._find(key, principal)) is None:
            raise _unknown(key)
        return journey

    # `GET events?after=&message=`: server-sent events, `id` the cursor, `data` `{cursor, message,
    # submission_id, step, name, at, detail, state}`; an event of the type `gap` stands for events
    # that are not kept. `Last-Event-ID` goes before `after`
    async def events(
        self, query: Mapping[str, str], last_event_id: str | None, principal: Principal
    ) -> Response:
        """GET /events?after=&message=: what is recorded, as server-sent events."""
        streams = self._dependencies.events
        view = streams.view_of(query, last_event_id, principal.account)
        if (key := query.get("message")) is not None:
            journey = await self.message(key, principal)
            message = WantedMessage(journey.id, journey.submission_id)
            view = replace(view, message=message)
        return await streams.response(view)

    # `GET messages/{id}/source`, `checks`: `message/rfc822`; `{score, has_html, features,
    # problems, links, link_count, notices, tested}`
    async def source(self, key: str, principal: Principal, *, view: str = "source") -> Response:
        """GET /messages/{id}/source: the MIME; with the view checks, /messages/{id}/checks."""
        principal.check_may_read_content()
        journey = await self.message(key, principal)
        content = await self.content(journey, principal, view=view)
        if view == "checks":
            async with self.checks.turn(principal.name, wait_s=TURN_S):
                return json_response(await asyncio.to_thread(_checks_of, content))
        headers = {
            "content-type": "message/rfc822",
            "content-disposition": f'attachment; filename="{journey.key}.eml"',
            "x-content-type-options": "nosniff",
        }
        return content_response(content, headers)

    async def content(self, journey: Journey, principal: Principal, *, view: str) -> Content:
        """Return the MIME of a message that the principal may see. `view` says in the log what is
        shown.

        Raises ApiError 403, and 404 if no copy is left.
        """
        await self._check_may_see(journey, principal, view)
        content = await self._dependencies.sources.find(journey, reader=principal.name)
        if content is None:
            raise ApiError(404, "ErrorItemNotFound", f"{_GONE} {quoted(journey.key)}.")
        return content

    async def sent_message(
        self, journey: Journey, principal: Principal, *, view: str
    ) -> tuple[str, StoredMessage]:
        """Return the sender's copy of a message that the principal may see, and its mailbox.

        Raises ApiError 403, and 404 if it is gone.
        """
        await self._check_may_see(journey, principal, view)
        message = await self._dependencies.sources.original(journey)
        if message is None:
            raise ApiError(404, "ErrorItemNotFound", _NO_COPY)
        return message

    async def _check_may_see(self, journey: Journey, principal: Principal, view: str) -> None:
        """Log access to the content of others. Raises ApiError 403 without the role operate, and
        without the scope.
        """
        principal.check_may_read_content()
        key = journey.key
        if not self.is_development and not await self._is_own(key, principal):
            if principal.role is not Role.OPERATE:
                raise ApiError(403, "ErrorAccessDenied", _NOT_YOURS)
            principal.log("content of others read", message=key, view=view[:20])

    async def _is_own(self, key: str, principal: Principal) -> bool:
        if principal.role is Role.USER:
            return True  # the journey was found for this account
        return await self._find(key, replace(principal, role=Role.USER)) is not None

    # `GET messages/{id}/wait?state=&timeout=`: the message. `there` means that each recipient is
    # captured or final, `reported` that each failed recipient has its report; `final` and the
    # states of messages are other values
    async def wait_for_message(
        self, key: str, query: Mapping[str, str], principal: Principal
    ) -> Journey:
        """GET /messages/{id}/wait?state=there&timeout=30: the journey, and `reached`.

        An unknown message is waited for as well. The wait ends when all recipients are final,
        except for state=reported: a host may still send a report.
        """
        state = query.get("state", THERE)
        choices = (THERE, REPORTED, *request_parameters.MESSAGE_STATES)
        if state not in choices:
            raise request_parameters.bad_state(state, choices)
        timeout_s = request_parameters.number_of(
            query, "timeout", default=WAIT_S, limits=(0, WAIT_S_MAX)
        )

        async def read() -> Journey | None:
            journey = await self._find(key, principal)
            if journey is None:
                return None
            is_reached = has_reached(journey, state)
            for name in needed_reports(journey) if state == REPORTED and is_reached else ():
                report = await self._find(name, principal)
                is_reached &= report is None or not has_new(report.recipients)
            return replace(journey, reached=is_reached)

        def is_enough(journey: Journey | None) -> bool:
            if journey is None:
                return False
            return journey.reached is True or (journey.is_final and state != REPORTED)

        journey = await self._wait_until(
            read, is_enough, account=principal.account, timeout_s=timeout_s
        )
        if journey is None:
            raise _unknown(key)
        return journey

    async def _wait_until(
        self,
        read: Callable[[], Awaitable[Found]],
        is_enough: Callable[[Found], bool],
        *,
        account: str | None,
        timeout_s: float,
    ) -> Found:
        """Return the result of `read` when it is enough or the time is up."""
        if timeout_s <= 0:
            return await read()
        clock, loop = self._dependencies.clock, asyncio.get_running_loop()
        deadline = loop.time() + timeout_s  # real time: a client waits
        with self.counted_wait(account):
            while True:
                seen = self._dependencies.changes.count
                began = clock.real_s()
                answer = await read()
                pause_s = max(_PAUSE_S_MIN, _COST_FACTOR * (clock.real_s() - began))
                left_s = deadline - loop.time()  # real time: a client waits
                if is_enough(answer) or left_s < _TIMER_S:
                    return answer
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left_s, _POLL_S)):  # real time: a client waits
                        await self._dependencies.changes.wait_beyond(seen)
                        await asyncio.sleep(pause_s)  # real time: collects a burst of events

    def counted_wait(self, account: str | None) -> contextlib.AbstractContextManager[None]:
        """Count one more wait inside the with block, of an account with the role `user` or None.
        Raises NoPlaceError.
        """
        return self._waits.held(account, spare=0 if account is None else WAITING_RESERVED)

    async def _find(self, key: str, principal: Principal) -> Journey | None:
        if not key or len(key) > _KEY_CHARACTERS:
            return None
        journeys, account = self._dependencies.journeys, principal.account
        journey = await journeys.journey(key, account=account, added=True)
        if journey is None and "@" in key and not key.startswith("<"):
            # a Message-ID without its brackets looks like an address
            journey = await journeys.journey(f"<{key}>", account=account, added=True)
        return journey

    # `GET refused?address=&after=&before=&limit=`: `{refused, cursor, older}`
    async def refused(self, query: Mapping[str, str], principal: Principal) -> RefusalPage:
        """GET /refused?address=&after=&before=&limit=. An account sees refusals of its own login;
        in a development relay, all.
        """
        search = request_parameters.refusal_search_of(
            query, None if self.is_development else principal.account
        )
        try:
            return await self._dependencies.refusals.page(search)
        except OSError as error:
            message = f"The refusals cannot be read: {error.strerror}."
            raise service_unavailable(message, retry_after_s=5) from error

    # `GET queue?id=&sender=&…&older_than=&limit=`: as `relay queue list`; headers `x-relay-unknown`
    # (unknown ids) and `x-relay-before-queue` (`scheduled=1, converting=0`, `held=1`). In `id`, a
    # comma or `%` is percent-encoded once more
    async def queue_list(self, query: Mapping[str, str], principal: Principal) -> Response:
        """GET /queue?CONDITION=&limit=; response headers list the unknown ids, and count what is
        not in the queue yet.
        """
        listed = await self.queue_entries(query, principal)
        needed = self._dependencies
        counts = await submissions.not_queued(needed.journeys, needed.restored)
        waiting = ", ".join(f"{state}={number}" for state, number in counts.items())
        headers = {BEFORE_QUEUE_HEADER: waiting}
        if listed.unknown:
            headers[UNKNOWN_HEADER] = ",".join(quote(name, safe="") for name in listed.unknown)
        return json_response(listed, headers=headers)

    async def queue_entries(
        self, query: Mapping[str, str], principal: Principal, *, after: Key = FIRST_KEY
    ) -> EntryList:
        """Return the entries of GET /queue that follow the entry `after`."""
        principal.check_may_read()
        selector, limit = (
            request_parameters.selector_of_query(query),
            request_parameters.limit_of(query),
        )
        needed = self._dependencies
        return await submissions.list_entries(
            needed.queue_admin, needed.restored, selector, limit=limit, after=after
        )

    # `GET queue/stats`: as `relay queue stats`
    async def queue_stats(self, principal: Principal) -> Mapping[str, Any]:
        """GET /queue/stats."""
        principal.check_may_read()
        return {**await self._dependencies.stats(), "paused": self._dependencies.pauses.as_json()}

    # `GET stats?by=&since=`: `{by, since, groups}` of `relay stats`, also `by=bounces`; `since` in
    # seconds
    async def traffic(self, query: Mapping[str, str], principal: Principal) -> Mapping[str, Any]:
        """GET /stats?by=&since=, in seconds."""
        principal.check_may_read()
        if (by := query.get("by", GROUPINGS[0])) not in GROUPINGS:
            raise bad_request(f"by: found {quoted(by)}, expected one of {', '.join(GROUPINGS)}.")
        since_s = request_parameters.number_of(
            query, "since", default=7 * 86400, limits=(1, _AGE_S_MAX)
        )
        return await self._dependencies.traffic(by, since_s)

    # `POST queue/retry`, `hold`, `release`, `cancel`, `reroute`: `{matched, done, unchanged,
    # in_flight, ordered, dry_run, unknown, entries}` (10,000 entries), with `reports`, `new`,
    # `still_held`. The body is `{ids, sender, recipient, domain, next_hop, state, subject, client,
    # login, route, older_than_s, restored, all, dry_run, reason}`, for `hold` also `until` and
    # `new`, for `release` `as_before`, for `cancel` `bounce` and `text`, for `reroute` `to`
    async def change_queue(
        self, operation: Operation, request: HttpRequest, principal: Principal
    ) -> dict[str, Any]:
        """POST /queue/{operation}."""
        principal.check_may_operate()
        request.is_idempotent = True  # a repeat finds entries held or cancelled and skips them
        return await self.run_command(operation, await request.body(), principal, request=request)

    async def run_command(
        self, operation: Operation, body: bytes, principal: Principal, *, request: HttpRequest
    ) -> dict[str, Any]:
        """Run the queue command in `body`, unless the client of `request` disconnects."""
        principal.check_may_operate()
        issuer = self._issuer(principal)
        command, fields = request_parameters.read_queue_command(operation, body, issuer)
        return await self._execute(command, request, principal, **fields)

    def _issuer(self, principal: Principal) -> request_parameters.CommandIssuer:
        return request_parameters.CommandIssuer(
            name=principal.name,
            way_to=self._dependencies.way_to,
            target_of=self._dependencies.target_of,
            clock=self._dependencies.clock,
            release_to=release.release_route(self._dependencies.development),
        )

    @property
    def is_development(self) -> bool:
        """Whether captured mail can be released."""
        return self._dependencies.development is not None

    # `POST messages/{id}/release` `{to}`: as a queue command; `relay dev` only
    async def release_message(
        self, key: str, request: HttpRequest, principal: Principal
    ) -> dict[str, Any]:
        """POST /messages/{id}/release in a development relay: send captured mail to its recipients,
        or a copy to the addresses `to`.
        """
        principal.check_may_operate()
        journey = await self._find(key, principal)
        if journey is None:
            raise _unknown(key)
        release.release_host(self._dependencies.development)
        if copy_to := release.addresses_of_body(await request.body()):
            return await self.release_copy(journey, copy_to, principal, request=request)
        entries = await self._captured_entries(journey)
        if journey.id is None or not entries:
            return CommandReport().as_json()
        development = self._dependencies.development
        release.check_own_recipients(entries, development)
        selector = Selector(ids=(journey.id,), state=RecipientState.CAPTURED)
        route = release.release_route(development)
        command = QueueCommand(Operation.RELEASE, selector, principal.name, to=route)
        return await self._execute(command, request, principal, **selector.conditions)

    async def release_copy(
        self,
        journey: Journey,
        copy_to: Sequence[str],
        principal: Principal,
        *,
        request: HttpRequest,
        why: str = "",
    ) -> dict[str, Any]:
        """Send a copy of a captured message to these addresses; its recipients stay captured.

        Raises ApiError 403 if no mail, or no mail to one of the addresses, may leave this machine;
        409 if nothing is captured; 400.
        """
        principal.check_may_operate()
        next_hop = release.release_host(self._dependencies.development)
        entry, *more = await self.captured_entries(journey)
        release.check_own_recipients([entry, *more], self._dependencies.development, named=copy_to)
        selector = Selector(ids=(f"{entry['id']}-{entry['entry']}",))
        try:
            command = QueueCommand(
                Operation.RELEASE,
                selector,
                principal.name,
                why=why.strip(),
                to=lambda _address, _sender: Destination(next_hop, chosen=True),
                copy_to=tuple(copy_to),
            )
        except ValueError as error:
            raise bad_request(f"{error}.") from None
        fields = {"reason": command.why, "to": copy_to, **selector.conditions}
        return await self._execute(command, request, principal, **fields)

    async def captured_entries(self, journey: Journey) -> Sequence[Mapping[str, Any]]:
        """Return the entries of a message that are captured. Raises ApiError 409 for none."""
        entries = await self._captured_entries(journey)
        if not entries:
            message = "Nothing of this message is captured (any more): only that is released."
            raise ApiError(409, "ErrorIrresolvableConflict", message)
        return entries

    async def _captured_entries(self, journey: Journey) -> Sequence[Mapping[str, Any]]:
        if journey.id is None:
            return ()
        selector = Selector(ids=(journey.id,), state=RecipientState.CAPTURED)
        return await self._dependencies.queue_admin.list(selector, limit=_ENTRIES_OF_MESSAGE_MAX)

    async def remove_message(self, key: str, principal: Principal) -> None:
        """DELETE /messages/{id} in a development relay. Raises ApiError 404, and 409 while it is
        being converted or delivered.
        """
        development = self._dependencies.development
        journey = await self.message(key, principal)
        copies = self._dependencies.sources.copies
        if development is None or not await development.remove_message(journey, copies):
            message = f"{quoted(key)} is being converted or delivered at present; try again."
            raise ApiError(409, "ErrorItemInUse", message, headers={"retry-after": "1"})

    async def mark_messages(
        self, names: Sequence[str], principal: Principal, *, is_read: bool
    ) -> int:
        """Mark the copies of messages as read or unread, and return how many messages have one. In
        a service, only copies in the principal's mailbox count. `names` are the names of rows of
        the list.

        Raises ApiError 403.
        """
        principal.check_may_change_content()
        mailbox = None if self.is_development else principal.name
        needed = self._dependencies
        marked = 0
        for at in range(0, len(names), _NAMES_AT_ONCE):
            batch = names[at : at + _NAMES_AT_ONCE]
            rows = await needed.journeys.rows(batch, account=principal.account)
            marked += len(await needed.sources.copies.mark(rows, is_read=is_read, mailbox=mailbox))
        return marked

    async def row_facts(
        self, rows: Sequence[MessageSummary], principal: Principal
    ) -> Mapping[str, RowFacts]:
        """Return what rows of the list show of copies and contents, by name. The mailboxes are as
        for mark_messages(). In a service, a row shows its text only if a copy is in the principal's
        mailbox.
        """
        mailbox = None if self.is_development else principal.name
        copies = self._dependencies.sources.copies
        unread = await copies.unread(rows, mailbox=mailbox, index=self._previews.places.index)
        sent = await copies.sent_from(rows, mailbox) if mailbox else ()
        previews = await self._previews.of_rows(rows) if principal.may_read_content else {}
        return {
            row.name: RowFacts(
                is_unread=unread.get(row.name, False),
                preview=previews.get(row.name, NO_PREVIEW),
                shows_text=mailbox is None or row.name in unread or row.name in sent,
                is_received=row.name in unread,
                is_removed=mailbox is None and row.name not in unread and copies.has_copies(row),
            )
            for row in rows
        }

    async def _execute(
        self, command: QueueCommand, request: HttpRequest, principal: Principal, **fields: Any
    ) -> dict[str, Any]:
        """Execute a command; the log has the `fields` and the result."""
        needed = self._dependencies
        done: dict[str, Any] = {"error": "not complete: what was changed before stays changed"}
        try:
            work = submissions.execute(
                needed.queue_admin, needed.restored, command, ready=needed.submissions
            )
            done = await request.cancel_on_disconnect(work)
            return done
        finally:
            needed.changes.notify()
            if not command.dry_run:
                counts = {name: done[name] for name in _LOGGED if name in done}
                principal.log("queue command", operation=str(command.operation), **counts, **fields)

    # `POST storage/prune` `{older_than_s, dry_run}`: as `relay storage prune`; repeat until the
    # answer has `ended`
    async def prune(self, request: HttpRequest, principal: Principal) -> Mapping[str, Any]:
        """POST /storage/prune; the default of `older_than_s` is spool.keep."""
        principal.check_may_operate()
        body = request_parameters.read_body(await request.body(), _PruneBody)
        if body.older_than_s is not None and not 0 <= body.older_than_s <= _AGE_S_MAX:
            text = f"expected a number of seconds up to {_AGE_S_MAX:.0f}"
            raise bad_request(f"The field older_than_s: {text}.")
        pruned = await self._dependencies.prune(body.older_than_s, body.dry_run)
        if not body.dry_run:
            principal.log("history pruned", older_than_s=body.older_than_s, **pruned)
        return pruned

    # `POST reload`: `{reloaded, faults, needs_restart: [{key}], rules, new_certificates, lost}`; a
    # service only
    async def reload(self, principal: Principal) -> Any:
        """POST /reload: read the configuration again, and return the outcome."""
        principal.check_may_operate()
        if (reload := self._dependencies.reload) is None:
            raise ApiError(
                404, "ResourceNotFound", "A development relay reads changed rules itself."
            )
        result = await asyncio.shield(reload())  # others may wait for it too
        principal.log("reload", reloaded=result.reloaded)
        return result

    # `POST pause` `{what, until}`, `POST resume` `{what}`, `GET pause`: `{delivery, accept}`, each
    # null or `{since, until, who}`; `POST` also `resumed: [what]`
    async def pauses(self, verb: str, request: HttpRequest, principal: Principal) -> dict[str, Any]:
        """GET and POST /pause, POST /resume: what is paused on this node.

        A resume without `what` ends all pauses.
        """
        request_parameters.single_values(request.query, ())
        if verb == "pause" and request.method == "GET":
            principal.check_may_read()
            return self._dependencies.pauses.as_json()
        request_parameters.require_method(request, "POST")
        principal.check_may_operate()
        octets, needed = await request.body(), self._dependencies
        resumed: Sequence[Paused] = ()
        try:
            if verb == "pause":
                order = request_parameters.read_body(octets, _PauseBody)
                for_s = request_parameters.seconds_until(order.until, needed.clock)
                await needed.pauses.pause(order.what, for_s=for_s, who=principal.name)
                principal.log("paused", what=str(order.what), until=order.until)
            else:
                body = request_parameters.read_body(octets, _ResumeBody)
                resumed = await needed.pauses.resume(Paused if body.what is None else (body.what,))
                principal.log("resumed", what=str(body.what or "all"))
        except OSError as error:
            text = f"{error.filename}: {error.strerror}."
            raise service_unavailable(text, retry_after_s=5) from error
        return {**self._dependencies.pauses.as_json(), "resumed": resumed}

    # `POST accounts/unlock` `{address}`: `{address, delays}`
    async def unlock(self, request: HttpRequest, principal: Principal) -> dict[str, Any]:
        """POST /accounts/unlock: lift the delays of an account after failed logins."""
        principal.check_may_operate()
        address = request_parameters.read_body(await request.body(), _UnlockBody).address
        try:
            delays = self._dependencies.unlock(address)
        except UnknownUserError:
            raise ApiError(404, "ErrorItemNotFound", f"No account is {quoted(address)}.") from None
        principal.log("logins unlocked", user=address, delays=delays)
        return {"address": address, "delays": delays}

    # `POST accounts/changed` `{change, accounts}`: `{}`, a line in the log; over the control socket
    # only
    async def note_change(self, request: HttpRequest, principal: Principal) -> dict[str, Any]:
        """POST /accounts/changed: log a change that `relay account` has made in accounts.toml."""
        body = request_parameters.read_body(await request.body(), _AccountsBody)
        principal.log("account changed", change=body.change, accounts=body.accounts)
        return {}


def has_reached(journey: Journey, state: str) -> bool:
    """Return whether a journey is in `state`. In "final", all recipients are final. In "there", all
    are captured or final. In "reported", some recipients failed, each of them has its report, and
    all others were attempted.
    """
    if state == REPORTED:
        return are_failures_reported(journey.recipients)
    if state == THERE:
        return journey.is_there
    return journey.is_final if state == FINAL_STATE else journey.state == state


def _unknown(key: str) -> ApiError:
    return ApiError(404, "ErrorItemNotFound", f"No message is known as {quoted(key)}.")


def _checks_of(content: Content) -> Checks:
    try:
        bodies = read_parts(octets_of(content)).bodies
    except OSError as error:
        message = f"The content cannot be read: {error.strerror or error}."
        raise service_unavailable(message, retry_after_s=5) from error
    return check_bodies(bodies.html, bodies.text)
