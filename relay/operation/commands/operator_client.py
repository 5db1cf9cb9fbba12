"""What an operator reads and changes: by the running daemon, else what the files have.

If no daemon answers on run/control.sock, OperatorClient opens the files of the spool for one query
(offline.py). Modules for that are imported only then, so that a command to a daemon starts quickly.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

import msgspec

from relay.base.clock import Clock
from relay.base.pauses import Pause, Paused
from relay.base.running_relay import (
    ControlClient,
    ControlError,
    ControlForbiddenError,
    ControlUnavailableError,
    path_of,
)
from relay.base.settings.document import Fault, SettingsError
from relay.base.settings.tree import Settings
from relay.operation.app.state_dir import AlreadyRunningError
from relay.store.journeys.document import Journey
from relay.store.journeys.sentences import answer, needed_reports
from relay.store.spool.queue_commands import BEFORE_QUEUE_HEADER, UNKNOWN_HEADER, EntryList
from relay.store.spool.types import QUERY_NAMES, Selector
from relay.transport.refusals.refusal import Refusal, RefusalPage, RefusalSearch

if TYPE_CHECKING:
    from relay.operation.commands.offline import SpoolFiles

T = TypeVar("T")
_ENTRIES = list[dict[str, Any]]
LIST_MAX = 10_000
_PAGE_ROWS, _PAGE_JOURNEYS = 1000, 100
_REFUSED_MAX = 20
_NOT_FOUND = 404
_WAIT_S = 1.0  # of one request
_WAIT_MARGIN_S = 10.0
_CHANGE_S_MAX = 3600.0  # for a change of a million entries
_STEP_S_MAX = 120.0
_EXPLAIN_S_MAX = 120.0  # the rules may take 10 s, the name servers longer
_PRUNED = ("messages", "submissions", "refused")


class OperatorClient:
    """Reads messages and the queue; changes it through the daemon. All methods block.

    Raises ControlUnavailableError, ControlError; for the files SpoolError, OSError, and
    SettingsError with `faults`, which are of the keys that say where they are.
    """

    def __init__(self, settings: Settings, clock: Clock, *, faults: Sequence[Fault] = ()) -> None:
        self.settings = settings
        self._faults = faults
        self._clock = clock
        self._client = ControlClient(settings.control_socket)
        self.without_daemon = ""  # why the files were read, if no daemon answered
        self._relay_us: int | None = None  # the time of the relay that answered last

    def journey(self, key: str) -> Journey | None:
        """Return the journey of one message, or None."""
        try:
            return self.message_from_relay(key)
        except ControlError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        except ControlUnavailableError as silent:
            return self._offline(
                silent,
                lambda files: files.journeys.journey(key, account=None, added=True),
                nothing=None,
            )

    def log(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Return the newest messages of a search as rows: the answer of GET /log."""
        try:
            return self._client.get("/log", query)
        except ControlUnavailableError as silent:
            from relay.operation.commands.offline import read_log  # noqa: PLC0415 - slow

            ask = partial(read_log, query=query)
            nothing: dict[str, Any] = {"messages": [], "older": None, "before": None}
            return self._offline(silent, ask, nothing=nothing)

    def log_rows(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield all rows of log(), page by page."""
        page = self.log({**query, "limit": str(_PAGE_ROWS)})
        yield from page["messages"]
        while before := page["before"]:
            page = self.log({**query, "limit": str(_PAGE_ROWS), "before": before})
            yield from page["messages"]

    def search(self, text: str) -> Iterator[Journey]:
        """Yield the messages that the search of the pages finds, newest first, page by page. The
        search reads contents. Raises ControlUnavailableError without a daemon.
        """
        query: dict[str, str] = {"q": text, "limit": str(_PAGE_JOURNEYS)}
        while True:
            page = self._client.get("/messages", query)
            yield from msgspec.convert(page["messages"], list[Journey])
            if page["older"] is None:
                return
            query["before"] = page["older"]

    def refused(self, address: str) -> list[Refusal]:
        """Return the last refusals for a mail address or IP address, the newest first."""
        query = {"address": address, "limit": str(_REFUSED_MAX)}
        try:
            page = self._client.get_response("/refused", query, kind=RefusalPage).value
        except ControlForbiddenError:
            raise
        except ControlUnavailableError as silent:
            from relay.operation.commands.offline import read_refusals  # noqa: PLC0415 - slow

            self.without_daemon = str(silent)
            page = read_refusals(self.settings, RefusalSearch(address, limit=_REFUSED_MAX))
        return page.refused

    def wait(self, key: str, *, state: str, timeout_s: float) -> Journey | None:
        """Wait until a message is in `state` ("final": all recipients are final; "there": all are
        final or captured).

        Return the journey with `reached`, or None if the message is unknown. `reached` is false
        after a time-out, or if the state can no longer be reached. Raises ControlUnavailableError.
        """
        client = ControlClient(self.settings.control_socket, timeout_s=_WAIT_S + _WAIT_MARGIN_S)
        deadline = self._clock.real_s() + timeout_s
        while True:
            left_s = max(0.0, deadline - self._clock.real_s())
            query = {"state": state, "timeout": f"{min(left_s, _WAIT_S):.3f}"}
            try:
                journey: Journey | None = self._journey(client, f"{path_of(key)}/wait", query)
            except ControlError as error:
                if error.status != _NOT_FOUND:
                    raise
                journey = None
            is_over = journey is not None and (journey.reached or not journey.may_become(state))
            if is_over or left_s <= _WAIT_S:
                return journey

    def explain(
        self,
        query: Mapping[str, str],
        message: bytes | None,
        *,
        file: Path,
        environ: Mapping[str, str],
    ) -> dict[str, Any]:
        """Return where mail for an address goes, from the running relay; if none runs, from the
        configuration `file`.

        Raises ControlError for a question that cannot be answered; SettingsError for files.
        """
        client = ControlClient(self.settings.control_socket, timeout_s=_EXPLAIN_S_MAX)
        try:
            if message is None and "probe" not in query:
                return client.get("/explain", query)
            return client.post_message("/explain", query, message or b"")
        except ControlForbiddenError:
            raise
        except ControlUnavailableError as silent:
            if "probe" in query:
                raise
            self.without_daemon = str(silent)
        from relay.operation.commands.offline import explain  # noqa: PLC0415 - slow

        return explain(
            query, message, settings=self.settings, file=file, environ=environ, clock=self._clock
        )

    def message_from_relay(self, key: str) -> Journey:
        """Return the journey of one message from the daemon; an unknown message is a ControlError.

        Raises ControlUnavailableError without a daemon.
        """
        return self._journey(self._client, path_of(key))

    def _journey(
        self, client: ControlClient, path: str, query: Mapping[str, str] | None = None
    ) -> Journey:
        response = client.get_response(path, query, kind=Journey)
        self._relay_us = response.time_us
        return response.value

    def answer(self, journey: Journey) -> list[str]:
        """Return the result of a message in sentences. The relay is asked for its reports too."""
        names = () if self.without_daemon else needed_reports(journey)
        reports = {name: report for name in names if (report := self.journey(name)) is not None}
        now_us = self._relay_us or self._clock.time_us()
        lines = [line.text(now_us) for line in answer(journey, now_us=now_us, reports=reports)]
        if any(recipient.state in ("queued", "deferred") for recipient in journey.recipients):
            lines += self.delivery_paused()
        return lines

    def delivery_paused(self) -> list[str]:
        """Return a sentence in a list if delivery of the running daemon is paused, else []."""
        try:
            pause = self._client.get("/pause")[Paused.DELIVERY]
        except ControlUnavailableError:
            return []
        text = msgspec.convert(pause, Pause).text(Paused.DELIVERY) if pause else ""
        return [f"Nothing is delivered on this node: {text}."] if text else []

    def source(self, key: str) -> Iterator[bytes]:
        """Yield the MIME of a message from the daemon. Raises as message_from_relay() does."""
        return self._client.download(path_of(key) + "/source")

    def entries_of(self, queue_id: str) -> list[dict[str, Any]]:
        """Return the entries of a message that are not final, from the daemon."""
        response = self._client.get_response("/queue", {"id": queue_id}, kind=_ENTRIES)
        return response.value

    def queue_list(self, selector: Selector) -> EntryList:
        """Return entries that are not final, oldest first, at most LIST_MAX."""
        query = _query(selector) | {"limit": str(LIST_MAX)}
        try:
            response = self._client.get_response("/queue", query, kind=_ENTRIES)
        except ControlUnavailableError as silent:
            return self._offline(
                silent, partial(_list, selector), nothing=EntryList(unknown=selector.ids)
            )
        unknown = response.headers.get(UNKNOWN_HEADER, "")
        counts = (
            pair.split("=") for pair in response.headers.get(BEFORE_QUEUE_HEADER, "").split(", ")
        )
        return EntryList(
            response.value,
            unknown=map(unquote, unknown.split(",") if unknown else ()),
            before_queue={pair[0]: int(pair[1]) for pair in counts if len(pair) == 2},
        )

    def stats(self) -> dict[str, Any]:
        """Return the statistics of the queue."""
        try:
            return self._client.get("/queue/stats")
        except ControlUnavailableError as silent:
            ask = partial(_stats, self.settings, self._clock)
            return self._offline(silent, ask, nothing={})

    def change(self, operation: str, selector: Selector, **more: Any) -> dict[str, Any]:
        """Change entries; return the response of POST /queue/{operation}.

        `more` are other fields of the body; empty ones are left out. Raises ControlError for an
        invalid request, ControlUnavailableError without a daemon.
        """
        body = selector.conditions | {name: field for name, field in more.items() if field}
        client = ControlClient(self.settings.control_socket, timeout_s=_CHANGE_S_MAX)
        return client.post(f"/queue/{operation}", body)

    def prune(self, *, older_than_s: float | None, dry_run: bool) -> dict[str, Any]:
        """Remove the history of messages that finished `older_than_s` ago (default spool.keep).

        Expired submission keys and old refusals are removed as well. Return the numbers of removed
        messages, submission keys and refusals.
        """
        client = ControlClient(self.settings.control_socket, timeout_s=_STEP_S_MAX)
        counts, ended = Counter[str](), False
        while not ended:  # the daemon prunes in small steps
            body = {"older_than_s": older_than_s, "dry_run": dry_run}
            answer = client.post("/storage/prune", body)
            counts.update({name: answer[name] for name in _PRUNED})
            ended = answer["ended"]
        return {name: counts[name] for name in _PRUNED} | {"dry_run": dry_run}

    def _offline(
        self,
        silent: ControlUnavailableError,
        ask: "Callable[[SpoolFiles], Awaitable[T]]",
        *,
        nothing: T,
    ) -> T:
        """Query the files. Raises `silent` if a daemon runs but did not answer."""
        reason = str(silent)
        try:
            if isinstance(silent, ControlForbiddenError):
                raise silent
        finally:
            del silent
        if self._faults:
            raise SettingsError(self._faults)
        from relay.operation.commands.offline import with_spool_files  # noqa: PLC0415 - slow

        self.without_daemon = reason
        try:
            return with_spool_files(self.settings, self._clock, ask, nothing=nothing)
        except AlreadyRunningError as running:
            raise ControlUnavailableError(f"{reason}, but {running}") from None


async def _stats(settings: Settings, clock: Clock, files: "SpoolFiles") -> dict[str, Any]:
    from relay.operation.app.foundation import read_pauses  # noqa: PLC0415 - slow

    stats = await files.spool.stats()
    for node in stats.get("nodes", ()):
        if node["is_this"]:  # a node that lives only while this command runs
            node["state"] = "stopped"
    return {**stats, "paused": read_pauses(settings, clock).as_json()}


async def _list(selector: Selector, files: "SpoolFiles") -> EntryList:
    from relay.front_door.api.submissions import list_entries, not_queued  # noqa: PLC0415 - slow

    entries = await list_entries(files.spool.queue_admin, files.restored, selector, limit=LIST_MAX)
    entries.before_queue = await not_queued(files.journeys, files.restored)
    return entries


def _query(selector: Selector) -> dict[str, str]:
    """Return a selector as the query parameters of a GET, which has no `all`."""
    texts = {
        QUERY_NAMES.get(name, name): sought if isinstance(sought, str) else str(sought).lower()
        for name, sought in selector.conditions.items()
        if name != "all"
    }
    if selector.ids:  # a Message-ID may have commas
        texts["id"] = ",".join(quote(name, safe="") for name in selector.ids)
    return texts
