"""The command line's way to a running daemon: /relay/v1 on the Unix socket run/control.sock.

On the path: cli asks; web answers with an operator's rights, given by the socket's file mode.
Holds: one connection per request, blocking, with a time-out; an answer is read up to a limit.
Fails: ControlUnavailableError when no daemon answers, ControlError when it refuses.
Standards: RFC 9112.
"""

import http.client
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlencode

import msgspec

from relay.app.state_dir import AlreadyRunningError
from relay.clock import Clock
from relay.journeys.journey import is_final
from relay.settings import Settings
from relay.spool.operating import UNKNOWN_HEADER, Listed

if TYPE_CHECKING:
    from relay.app.commands.offline import SpoolFiles
    from relay.spool.types import Selector


_ANSWER_BYTES_MAX = 64 * 1024 * 1024


class ControlUnavailableError(Exception):
    """No daemon answers on the socket."""


class ControlForbiddenError(ControlUnavailableError):
    """The socket is there, but not for this user."""


class ControlError(Exception):
    """The daemon refused: `status` is HTTP's, `code` the envelope's."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Answer:
    """The JSON of an answer, and its header fields."""

    value: Any
    headers: http.client.HTTPMessage


class ControlClient:
    """Asks the daemon whose socket is at `path`; `timeout_s` bounds each read and write."""

    def __init__(self, path: Path, *, timeout_s: float = 30.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return the JSON at `/relay/v1` + `path`.

        Raises ControlUnavailableError, ControlForbiddenError, ControlError.
        """
        return self.look(path, query).value

    def look(self, path: str, query: Mapping[str, str] | None = None) -> Answer:
        """As get(), with the header fields."""
        return self._ask("GET", path + ("?" + urlencode(query) if query else ""), b"")

    def post(self, path: str, value: Any) -> Any:
        """Post `value` as JSON and return the JSON answered.

        Raises ControlUnavailableError, ControlForbiddenError, ControlError.
        """
        return self._ask("POST", path, msgspec.json.encode(value)).value

    def _ask(self, method: str, path: str, body: bytes) -> Answer:
        connection = _UnixConnection(self._path, self._timeout_s)
        try:
            connection.request(
                method, "/relay/v1" + path, body or None, {"content-type": "application/json"}
            )
            answer = connection.getresponse()
            value = msgspec.json.decode(answer.read(_ANSWER_BYTES_MAX))
        except FileNotFoundError:
            text = f"no relay is running: there is no {self._path}"
            raise ControlUnavailableError(text) from None
        except ConnectionRefusedError:
            text = f"no relay is running: nobody listens on {self._path}"
            raise ControlUnavailableError(text) from None
        except PermissionError:
            text = f"{self._path}: permission denied; run it as the relay's user or as root"
            raise ControlForbiddenError(text) from None
        except (OSError, http.client.HTTPException, msgspec.DecodeError, ValueError) as error:
            text = f"the relay on {self._path} gave no answer: {error or type(error).__name__}"
            raise ControlUnavailableError(text) from None
        finally:
            connection.close()
        if answer.status >= http.client.BAD_REQUEST:
            told = value.get("error", {}) if isinstance(value, dict) else {}
            message = str(told.get("message", "no reason given"))
            raise ControlError(answer.status, str(told.get("code", "")), message)
        return Answer(value, answer.headers)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open the Unix socket in place of a TCP connection."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def path_of(key: str) -> str:
    """Return the path of the message that `key` names."""
    return "/messages/" + quote(key, safe="")


T = TypeVar("T")
LIST_MAX = 10_000
_NOT_FOUND = 404
WAIT_S_MAX = 300.0  # of one request
_WAIT_MARGIN_S = 10.0
_ORDER_S_MAX = 3600.0  # an order for a million entries takes its time
_NOTHING_CHANGED: dict[str, Any] = {
    "matched": 0, "done": 0, "unchanged": 0, "in_flight": 0, "dry_run": False, "entries": [],
}  # fmt: skip


class CommandInterruptedError(Exception):
    """Ctrl-C before the answer came: so many were done; None where only the daemon knows."""

    def __init__(self, done: int | None) -> None:
        super().__init__("interrupted")
        self.done = done


class OperatorClient:
    """What the command line may ask; every method blocks."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._client = ControlClient(settings.control_socket)
        self.without_daemon = ""  # why the files were read, where no daemon answered

    def journey(self, key: str) -> dict[str, Any] | None:
        """One message, None if there is none."""
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
        """One message once it is in `state` ("final": every recipient is), with `reached`.

        When time is up, or it has ended otherwise: as it is then, or None. Raises
        ControlUnavailableError: without a daemon nothing would ever change.
        """
        client = ControlClient(self._settings.control_socket, timeout_s=WAIT_S_MAX + _WAIT_MARGIN_S)
        deadline = self._clock.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - self._clock.monotonic())
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

    def entries_of(self, queue_id: str) -> list[dict[str, Any]]:
        """A message's entries that are not yet final, as the daemon knows them."""
        listed: list[dict[str, Any]] = self._client.get("/queue", {"id": queue_id})
        return listed

    def queue_list(self, selector: "Selector") -> Listed:
        """Entries not yet final, oldest first, at most LIST_MAX."""
        query = _query(selector) | {"limit": str(LIST_MAX)}
        try:
            told = self._client.look("/queue", query)
        except ControlUnavailableError as silent:
            return self._offline(
                silent,
                lambda files: files.spool.desk.list(selector, limit=LIST_MAX),
                nothing=Listed(unknown=selector.ids),
            )
        unknown = told.headers.get(UNKNOWN_HEADER, "")
        return Listed(told.value, unknown=map(unquote, unknown.split(",") if unknown else ()))

    def stats(self) -> dict[str, Any]:
        """The queue in figures."""
        try:
            told: dict[str, Any] = self._client.get("/queue/stats")
        except ControlUnavailableError as silent:
            return self._offline(silent, lambda files: files.spool.stats(), nothing={})
        return told

    def change(self, operation: str, selector: "Selector", **more: Any) -> dict[str, Any]:
        """Do something to entries: the answer of POST /queue/{operation}.

        `more` are the other fields of its body, those that are given. Raises ControlError for what
        makes no sense, CommandInterruptedError.
        """
        wanted = _conditions(selector) | {name: one for name, one in more.items() if one}
        client = ControlClient(self._settings.control_socket, timeout_s=_ORDER_S_MAX)
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
        from relay.app.commands.offline import carry_out  # noqa: PLC0415 - see the head

        done = [0]
        order = partial(
            carry_out, operation=operation, wanted=wanted, settings=self._settings,
            clock=self._clock, tell=done.append,
        )  # fmt: skip
        try:
            return self._offline(silent, lambda files: order(files.spool.desk), nothing=nothing)
        except KeyboardInterrupt:  # the slice that was in work has been written
            raise CommandInterruptedError(done[-1]) from None

    def _offline(
        self,
        silent: ControlUnavailableError,
        ask: "Callable[[SpoolFiles], Awaitable[T]]",
        *,
        nothing: T,
    ) -> T:
        """Ask the files. Raises `silent` when there is a daemon after all, which did not answer."""
        if isinstance(silent, ControlForbiddenError):
            raise silent
        from relay.app.commands.offline import with_spool_files  # noqa: PLC0415 - see the head

        self.without_daemon = str(silent)
        try:
            return with_spool_files(self._settings, self._clock, ask, nothing=nothing)
        except AlreadyRunningError as running:
            raise ControlUnavailableError(f"{silent}, but {running}") from None


def _conditions(selector: "Selector") -> dict[str, Any]:
    """The conditions of a selector that are given, by their names in the body of a POST."""
    return {name: value for name, value in asdict(selector).items() if value not in ("", (), None)}


def _query(selector: "Selector") -> dict[str, str]:
    """A selector as the query of a GET."""
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
