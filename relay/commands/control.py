"""What the command line reads and changes: through the running daemon, or in the files without one.

ControlClient speaks HTTP on the Unix socket run/control.sock, whose file mode grants an
operator's rights. If no daemon answers, OperatorClient owns the spool's files for one command
(offline.py); modules for that are imported only then, so that a command to a daemon starts
quickly.
"""

import http.client
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlencode

import msgspec

from relay.app.state_dir import AlreadyRunningError
from relay.clock import Clock
from relay.journeys.journey import is_final
from relay.settings.tree import Settings
from relay.spool.queue_commands import UNKNOWN_HEADER, EntryList

if TYPE_CHECKING:
    from relay.commands.offline import SpoolFiles
    from relay.spool.types import Selector


_ANSWER_BYTES_MAX = 64 * 1024 * 1024
_BLOCK_BYTES = 256 * 1024


class ControlUnavailableError(Exception):
    """No daemon answers on the control socket."""


class ControlForbiddenError(ControlUnavailableError):
    """The control socket does not admit this user."""


class ControlError(Exception):
    """The daemon returned an error: HTTP `status` and the `code` of the error envelope."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class ControlResponse:
    """The JSON of a response, and its header fields."""

    value: Any
    headers: http.client.HTTPMessage


class ControlClient:
    """A blocking client of the control socket at `path`; `timeout_s` limits each read and write."""

    def __init__(self, path: Path, *, timeout_s: float = 30.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON at `/relay/v1` + `path`.

        Raises ControlUnavailableError, ControlForbiddenError, ControlError.
        """
        return self.get_response(path, query).value

    def get_response(self, path: str, query: Mapping[str, str] | None = None) -> ControlResponse:
        """Like get(), with the header fields."""
        return self._request("GET", path + ("?" + urlencode(query) if query else ""), b"")

    def post(self, path: str, value: Any) -> Any:
        """Post `value` as JSON and return the JSON of the response.

        Raises ControlUnavailableError, ControlForbiddenError, ControlError.
        """
        return self._request("POST", path, msgspec.json.encode(value)).value

    def download(self, path: str) -> Iterator[bytes]:
        """Yield the octets of the response at `/relay/v1` + `path`. Raises as get() does."""
        connection = _UnixConnection(self._path, self._timeout_s)
        try:
            with self._translated_errors():
                connection.request("GET", "/relay/v1" + path)
                answer = connection.getresponse()
                if answer.status >= http.client.BAD_REQUEST:
                    value = msgspec.json.decode(answer.read(_ANSWER_BYTES_MAX))
            if answer.status >= http.client.BAD_REQUEST:
                raise _control_error(answer.status, value)
            while True:
                with self._translated_errors():
                    block = answer.read(_BLOCK_BYTES)
                    if not block and answer.length:
                        raise http.client.IncompleteRead(b"", answer.length)
                if not block:
                    return
                yield block
        finally:
            connection.close()

    def delete(self, path: str) -> Any:
        """Delete what is at `/relay/v1` + `path`; return the JSON. Raises as get() does."""
        return self._request("DELETE", path, b"").value

    def _request(self, method: str, path: str, body: bytes) -> ControlResponse:
        connection = _UnixConnection(self._path, self._timeout_s)
        try:
            with self._translated_errors():
                connection.request(
                    method, "/relay/v1" + path, body or None, {"content-type": "application/json"}
                )
                answer = connection.getresponse()
                value = msgspec.json.decode(answer.read(_ANSWER_BYTES_MAX))
        finally:
            connection.close()
        if answer.status >= http.client.BAD_REQUEST:
            raise _control_error(answer.status, value)
        return ControlResponse(value, answer.headers)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            text = f"no relay is running: there is no {self._path}"
            raise ControlUnavailableError(text) from None
        except ConnectionRefusedError:
            text = f"no relay is running: nothing listens on {self._path}"
            raise ControlUnavailableError(text) from None
        except PermissionError:
            text = f"{self._path}: permission denied; run it as the relay's user or as root"
            raise ControlForbiddenError(text) from None
        except (OSError, http.client.HTTPException, msgspec.DecodeError, ValueError) as error:
            text = f"the relay on {self._path} did not answer: {error or type(error).__name__}"
            raise ControlUnavailableError(text) from None


def _control_error(status: int, value: Any) -> ControlError:
    fault = value.get("error", {}) if isinstance(value, dict) else {}
    message = str(fault.get("message", "no reason given"))
    return ControlError(status, str(fault.get("code", "")), message)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def path_of(key: str) -> str:
    """Return the URL path of the message named `key`."""
    return "/messages/" + quote(key, safe="")


T = TypeVar("T")
LIST_MAX = 10_000
_NOT_FOUND, _NOT_ALLOWED = 404, 405
WAIT_S_MAX = 300.0  # per request
_WAIT_MARGIN_S = 10.0
_CHANGE_S_MAX = 3600.0  # for a change of a million entries, and an advance of the clock
_NOTHING_CHANGED: dict[str, Any] = {
    "matched": 0, "done": 0, "unchanged": 0, "in_flight": 0, "dry_run": False, "entries": [],
}  # fmt: skip


class CommandInterruptedError(Exception):
    """Ctrl-C before the response; `done` entries were changed, None if only the daemon knows."""

    def __init__(self, done: int | None) -> None:
        super().__init__("interrupted")
        self.done = done


class OperatorClient:
    """Reads messages and the queue, and changes the queue. All methods block.

    Raises ControlUnavailableError, ControlError; SpoolError and OSError for the files.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._client = ControlClient(settings.control_socket)
        self.without_daemon = ""  # why the files were read, if no daemon answered

    def journey(self, key: str) -> dict[str, Any] | None:
        """Return the journey of one message, or None."""
        try:
            found: dict[str, Any] = self._client.get(path_of(key))
        except ControlError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        except ControlUnavailableError as silent:
            return self._offline(
                silent, lambda files: files.journeys.journey(key, account=None), nothing=None
            )
        return found

    def wait(self, key: str, *, state: str, timeout_s: float) -> dict[str, Any] | None:
        """Wait until a message is in `state` ("final": all recipients are final; "there": or
        captured).

        Return its journey with `reached`, which is false after a time-out or if it ended in another
        state, or None if no message is known. Raises ControlUnavailableError.
        """
        client = ControlClient(self._settings.control_socket, timeout_s=WAIT_S_MAX + _WAIT_MARGIN_S)
        deadline = self._clock.real_s() + timeout_s
        while True:
            left_s = max(0.0, deadline - self._clock.real_s())
            query = {"state": state, "timeout": f"{min(left_s, WAIT_S_MAX):.3f}"}
            try:
                found: dict[str, Any] | None = client.get(path_of(key) + "/wait", query)
            except ControlError as error:
                if error.status != _NOT_FOUND:
                    raise
                found = None
            is_over = found is not None and (found["reached"] or is_final(found))
            if is_over or left_s <= WAIT_S_MAX:
                return found

    def message_from_relay(self, key: str) -> dict[str, Any]:
        """Return the journey of one message from the daemon; an unknown message is a ControlError.

        Raises ControlUnavailableError without a daemon.
        """
        found: dict[str, Any] = self._client.get(path_of(key))
        return found

    def source(self, key: str) -> Iterator[bytes]:
        """Yield the MIME of a message from the daemon. Raises as message_from_relay() does."""
        return self._client.download(path_of(key) + "/source")

    def reset(self) -> dict[str, Any] | None:
        """Delete everything that a development relay has stored; None: it is a service.

        Raises ControlUnavailableError without a daemon.
        """
        client = ControlClient(self._settings.control_socket, timeout_s=_CHANGE_S_MAX)
        try:
            deleted: dict[str, Any] = client.delete("/messages")
        except ControlError as error:
            if error.status in (_NOT_FOUND, _NOT_ALLOWED):
                return None
            raise
        return deleted

    def entries_of(self, queue_id: str) -> list[dict[str, Any]]:
        """Return the entries of a message that are not final, from the daemon."""
        listed: list[dict[str, Any]] = self._client.get("/queue", {"id": queue_id})
        return listed

    def unlock(self, address: str) -> dict[str, Any]:
        """Lift the delays of an account; return its `address` and their number in `delays`.

        Raises ControlUnavailableError without a daemon, which alone has delays.
        """
        done: dict[str, Any] = self._client.post("/accounts/unlock", {"address": address})
        return done

    def clock_state(self) -> dict[str, Any]:
        """Return `now` and `advanced_s` of a development relay. A service raises ControlError."""
        found: dict[str, Any] = self._client.get("/dev/clock")
        return found

    def advance_clock(self, seconds: float) -> dict[str, Any]:
        """Advance the clock of a development relay; return what clock_state() does then."""
        client = ControlClient(self._settings.control_socket, timeout_s=_CHANGE_S_MAX)
        found: dict[str, Any] = client.post("/dev/clock", {"advance_s": seconds})
        return found

    def queue_list(self, selector: "Selector") -> EntryList:
        """Return entries that are not final, oldest first, at most LIST_MAX."""
        query = _query(selector) | {"limit": str(LIST_MAX)}
        try:
            response = self._client.get_response("/queue", query)
        except ControlUnavailableError as silent:
            return self._offline(
                silent,
                lambda files: files.spool.queue_admin.list(selector, limit=LIST_MAX),
                nothing=EntryList(unknown=selector.ids),
            )
        unknown = response.headers.get(UNKNOWN_HEADER, "")
        return EntryList(
            response.value, unknown=map(unquote, unknown.split(",") if unknown else ())
        )

    def stats(self) -> dict[str, Any]:
        """Return the statistics of the queue."""
        try:
            stats: dict[str, Any] = self._client.get("/queue/stats")
        except ControlUnavailableError as silent:
            return self._offline(silent, lambda files: files.spool.stats(), nothing={})
        return stats

    def change(self, operation: str, selector: "Selector", **more: Any) -> dict[str, Any]:
        """Change entries; return the response of POST /queue/{operation}.

        `more` are other fields of the body; empty ones are left out. Raises ControlError for an
        invalid request, CommandInterruptedError.
        """
        wanted = _conditions(selector) | {name: one for name, one in more.items() if one}
        client = ControlClient(self._settings.control_socket, timeout_s=_CHANGE_S_MAX)
        try:
            done: dict[str, Any] = client.post(f"/queue/{operation}", wanted)
        except ControlUnavailableError as silent:
            nothing = _NOTHING_CHANGED | {"unknown": list(selector.ids)}
            return self._change_offline(silent, operation, wanted, nothing=nothing)
        except KeyboardInterrupt:
            raise CommandInterruptedError(None) from None
        return done

    def _change_offline(
        self,
        silent: ControlUnavailableError,
        operation: str,
        wanted: dict[str, Any],
        *,
        nothing: dict[str, Any],
    ) -> dict[str, Any]:
        from relay.commands.offline import execute  # noqa: PLC0415 - slow

        done = [0]
        order = partial(
            execute, operation=operation, wanted=wanted, settings=self._settings,
            clock=self._clock, tell=done.append,
        )  # fmt: skip
        try:
            return self._offline(
                silent, lambda files: order(files.spool.queue_admin), nothing=nothing
            )
        except KeyboardInterrupt:  # the slice in progress was committed
            raise CommandInterruptedError(done[-1]) from None

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
        from relay.commands.offline import with_spool_files  # noqa: PLC0415 - slow

        self.without_daemon = reason
        try:
            return with_spool_files(self._settings, self._clock, ask, nothing=nothing)
        except AlreadyRunningError as running:
            raise ControlUnavailableError(f"{reason}, but {running}") from None


def _conditions(selector: "Selector") -> dict[str, Any]:
    """Return the conditions of a selector that are set, by their names in the body of a POST."""
    return {name: value for name, value in asdict(selector).items() if value not in ("", (), None)}


def _query(selector: "Selector") -> dict[str, str]:
    """Return a selector as the query parameters of a GET."""
    query = {
        "id": ",".join(quote(one, safe="") for one in selector.ids),  # a Message-ID may have commas
        "sender": selector.sender,
        "recipient": selector.recipient,
        "domain": selector.domain,
        "next_hop": selector.next_hop,
        "state": selector.state,
    }
    if selector.older_than_s is not None:
        query["older_than"] = f"{selector.older_than_s:g}"
    return {name: value for name, value in query.items() if value}
