"""The command line's way to a running daemon: /relay/v1 on the Unix socket run/control.sock.

On the path: cli asks; web answers with an operator's rights, given by the socket's file mode.
Holds: one connection per request, blocking, with a time-out; an answer is read up to a limit.
Fails: ControlUnavailableError when no daemon answers, ControlError when it refuses.
Standards: RFC 9112.
"""

import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

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
