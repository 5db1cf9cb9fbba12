"""The log: one event per line on stderr, as JSON, as logfmt, or for a terminal.

Every room logs through get_logger(); the app calls configure() once at start. A line has at most
4096 bytes and no control characters; values are clipped, secrets are left out. The lines of one
iteration of the event loop are written together at its end; only a process that is killed loses
them. When the reader of the log stops reading, lines are dropped and counted, and no code waits
(see LogSink).

repeated() is for what clients can cause without mail that is accepted, unless each line counts: a
failed login, and what is refused for another reason than pressure or a limit.

A process has one log. Several relays in one process can have a log each: use() and inherit().
sd-daemon(3) prefixes, JOURNAL_STREAM of systemd.exec(5), logfmt, JSON lines.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import select
import sys
import threading
import traceback
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from itertools import accumulate, islice
from json.encoder import encode_basestring
from pathlib import PurePath
from typing import Any, Literal

import msgspec

from relay.base.clock import Clock, SystemClock, rfc3339

Form = Literal["auto", "json", "logfmt", "pretty"]
Method = Literal["info", "warning", "error", "exception"]

LINE_BYTES_MAX = 4096  # PIPE_BUF: a writable pipe takes such a line whole, without blocking
_WRITTEN_LINES_MAX = 128  # in one write, however short they are
BACKLOG_LINES_MAX = 4000  # at most 16 MiB
_CLIP_MAX = 512
_CLIPS = (_CLIP_MAX, 128, 32, 8)  # characters per value; the first that makes the line fit
_FIELDS_MAX = 24
_PLAIN_TYPES = frozenset({str, int, float, bool, type(None)})
_FRAMES_MAX = 4
_DRAIN_TIMEOUT_MS = 1000
_SECRET_NAMES = frozenset({"authorization", "body", "content", "password", "secret", "token"})
_SPECIAL_NAMES = _SECRET_NAMES | {"exc_info"}
_PRIORITY = {"critical": 2, "exception": 3, "error": 3, "warning": 4, "info": 6, "debug": 7}
_encode_json = msgspec.json.Encoder().encode
_LEVELS = ("error", "error", "error", "error", "warning", "info", "info", "debug")
_COLORS = {2: "\x1b[31m", 3: "\x1b[31m", 4: "\x1b[33m"}
_EACH = "each-of-these"
# what no form quotes
_is_bare = re.compile(r"[!#-<>-\[\]-~]{1,128}").fullmatch
_NEEDS_QUOTES = re.compile(r'[\s"=\\]|^$')


class RoomLogger:
    """The logger of a room: `log.info("accepted", qid=..., size_bytes=...)`.

    The event is a fixed text; everything that varies is a field. The lines of error(), exception()
    and critical() are written at once.
    """

    __slots__ = ("_room",)

    def __init__(self, room: str) -> None:
        self._room = room

    def info(self, event: str, **fields: Any) -> None:
        """Log an event of ordinary work."""
        _log("info", {"room": self._room, "event": event, **fields})

    def info_of_each(self, event: str, name: str, texts: Iterable[str], **fields: Any) -> None:
        """Log an event for each text. `fields` has the name too, at the place of the texts."""
        sink = _own_sink.get() or _sink
        sink.log_each({"room": self._room, "event": event, **fields}, name, texts)

    def warning(self, event: str, **fields: Any) -> None:
        """Log an event that an administrator should look at."""
        _log("warning", {"room": self._room, "event": event, **fields})

    def error(self, event: str, **fields: Any) -> None:
        """Log a failure."""
        _log("error", {"room": self._room, "event": event, **fields})

    def exception(self, event: str, **fields: Any) -> None:
        """Log an error with the exception that is being handled, and where it was raised."""
        _log("exception", {"room": self._room, "event": event, **fields})

    def critical(self, event: str, **fields: Any) -> None:
        """Log an error that ends the process."""
        _log("critical", {"room": self._room, "event": event, **fields})

    def repeated(
        self, method: Method, event: str, /, *, of: str = "", apart_s: float = 1.0, **fields: Any
    ) -> None:
        """Log an event that clients can cause at any rate: the first one, then one in `apart_s`.

        The field `times` has the number of events since the line before, unless it is 1. Events are
        counted apart by `of`, which must have few values.
        """
        sink = _own_sink.get() or _sink
        if times := sink.times_due((self._room, event, of), apart_s):
            more = {"times": times} if times > 1 else {}
            _log(method, {"room": self._room, "event": event, **fields, **more})


def get_logger(room: str) -> RoomLogger:
    """Return the logger of a room."""
    return RoomLogger(room)


def configure(
    form: Form,
    *,
    clock: Clock,
    environ_journal_stream: str = "",
    color: bool = True,
    descriptor: int = 2,
    level: Literal["info", "warning"] = "info",
    node: str = "",
) -> None:
    """Set the format and the descriptor of the log; add the standard library's loggers to it.

    `environ_journal_stream` is JOURNAL_STREAM: if it names `descriptor`, systemd's journal stores
    time and priority. "auto" is pretty on a terminal, else logfmt. Events below `level` are
    dropped. Each line has the name `node` unless it is "".
    """
    _sink.node = node
    _sink.clock, _sink.repeated = clock, {}
    _sink.point_at(descriptor)
    _sink.to_journal = _is_journal(descriptor, environ_journal_stream)
    is_terminal = os.isatty(descriptor)
    _sink.form = ("pretty" if is_terminal else "logfmt") if form == "auto" else form
    _sink.color = color and is_terminal
    _sink.priority_max = _PRIORITY[level]
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _StandardLibrary)]:
        root.removeHandler(handler)
    root.addHandler(_StandardLibrary(logging.WARNING))
    root.setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "asyncio", "mail.log"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


def use(sink: "LogSink") -> None:
    """Log to `sink` in the current context and in the tasks and threads that it starts.

    A thread that does not copy the context needs inherit().
    """
    _own_sink.set(sink)


def inherit() -> Callable[[], None]:
    """Return a function that makes a new thread log like the caller: the initializer of a pool."""
    sink = _own_sink.get()

    def adopt() -> None:
        _own_sink.set(sink)

    return adopt


def drain(timeout_ms: int = _DRAIN_TIMEOUT_MS) -> None:
    """Write the backlog before the process ends; give up after `timeout_ms` without progress."""
    _sink.drain(timeout_ms)


class RepeatedError:
    """The last error of an operation that is repeated until it succeeds. Logs each error once."""

    def __init__(self) -> None:
        self._last = ""

    def is_new(self, error: Exception) -> bool:
        """Store the error; return whether it differs from the last one."""
        text = f"{type(error).__name__}: {error}"
        is_new = text != self._last
        self._last = text
        return is_new

    def log(self, write: Callable[..., None], event: str, error: Exception, **fields: Any) -> None:
        """Write the event, with the error as text, if the error is new."""
        if self.is_new(error):
            write(event, **fields, error=str(error))

    def clear(self) -> None:
        """Record a success: the next error is new."""
        self._last = ""


class ContainedErrors:
    """A context that logs an internal error and ends its block; the code after the block runs."""

    def __init__(self, log: RoomLogger, event: str, **fields: Any) -> None:
        self._log, self._event, self._fields = log, event, fields

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if is_internal := isinstance(error, Exception):
            self._log.exception(self._event, **self._fields)
        return is_internal


class LogSink:
    """Renders events and writes lines to a descriptor that may not be writable.

    Lines are added to a bounded backlog. In an event loop the backlog is written at the end of the
    iteration, as many lines at once as a writable pipe takes without blocking. Elsewhere, and for
    an error, it is written immediately. Before each write the descriptor is polled without waiting.
    If it is not writable (a stopped pager, a full pipe, a stalled journal), the lines stay in the
    backlog. When the backlog is full, new lines are dropped and counted, and the next line that is
    written has their number. A log without a reader never stops the mail.
    """

    def __init__(self) -> None:
        """Until configure() is called, warnings and errors are logged as logfmt on stderr."""
        self.clock: Clock = SystemClock()
        self.form: Form = "logfmt"
        self.to_journal = False
        self.color = False
        self.priority_max = _PRIORITY["warning"]
        self.node = ""
        # when the next line of an event may be written, and the events since the last one
        self.repeated: dict[tuple[str, ...], tuple[float, int]] = {}
        self._backlog: deque[bytes] = deque()
        self._dropped = 0
        self._turn_of: asyncio.AbstractEventLoop | None = None  # it will write the backlog
        self._lock = threading.Lock()
        self._poll = select.poll()
        self.point_at(2)

    def point_at(self, descriptor: int) -> None:
        """Write to `descriptor` from now on."""
        self.descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def log(self, method: str, event: dict[str, Any]) -> None:
        """Write the line of an event if its level is enabled. `method` is that of RoomLogger."""
        priority = _PRIORITY[method]
        if priority > self.priority_max:
            return
        if self.node:
            event["node"] = self.node
        self._write(self._render(method, event), at_once=priority <= _PRIORITY["error"])

    def times_due(self, key: tuple[str, ...], apart_s: float) -> int:
        """Count an event. Return how many there were since the last line, 0 if no line is due."""
        now_s = self.clock.monotonic()
        with self._lock:
            due_s, before = self.repeated.get(key, (now_s, 0))
            is_due = now_s >= due_s
            self.repeated[key] = (now_s + apart_s, 0) if is_due else (due_s, before + 1)
        return before + 1 if is_due else 0

    def log_each(self, event: dict[str, Any], name: str, texts: Iterable[str]) -> None:
        """Write a line for each text, the value of the field `name`; render the others once."""
        if _PRIORITY["info"] > self.priority_max:
            return
        if self.node:
            event["node"] = self.node
        common = self._render("info", {**event, name: _EACH})
        before, mark, after = common.partition(_EACH.encode())
        is_short = len(common) <= _CLIP_MAX and mark not in after
        for text in texts:
            if is_short and _is_bare(text):
                self._write(before + text.encode() + after, at_once=False)
            else:
                self.log("info", {**event, name: text})

    def _render(self, method: str, event: dict[str, Any]) -> bytes:
        priority = _PRIORITY[method]
        if method != "exception" and _is_plain(event, self.form):
            line = self._line(priority, event)
            if len(line) <= _CLIP_MAX:  # so no value is longer
                return line
        _describe_exception(event, method)
        for clip in _CLIPS:
            line = self._line(priority, _fields(event, clip))
            if len(line) <= LINE_BYTES_MAX:
                return line
        return line.decode()[: LINE_BYTES_MAX // 8].encode() + b"\n"

    def _write(self, encoded: bytes, *, at_once: bool) -> None:
        """Write a line now or at the end of the iteration, or drop and count it. Never waits."""
        with self._lock:
            if self._dropped or len(self._backlog) >= BACKLOG_LINES_MAX:
                self._write_backlog(0)
            if len(self._backlog) < BACKLOG_LINES_MAX:
                self._backlog.append(encoded)
            else:
                self._dropped += 1
            if at_once or not self._has_turn():
                self._write_backlog(0)

    def drain(self, timeout_ms: int) -> None:
        """Write the backlog; give up when the reader takes nothing for `timeout_ms`."""
        with self._lock:
            self._write_backlog(timeout_ms)

    def _has_turn(self) -> bool:
        """Return whether an event loop runs here; it will write the backlog after its iteration."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self._turn_of is not loop:
            self._turn_of = loop
            loop.call_soon(self._end_turn)
        return True

    def _end_turn(self) -> None:
        with self._lock:
            self._turn_of = None
            self._write_backlog(0)

    def _write_backlog(self, timeout_ms: int) -> None:
        while self._backlog and self._is_writable(timeout_ms):
            sizes = map(len, islice(self._backlog, _WRITTEN_LINES_MAX))
            count = bisect_right(list(accumulate(sizes)), LINE_BYTES_MAX)
            self._write_now(b"".join([self._backlog.popleft() for _ in range(count)]))
        if self._dropped and not self._backlog and self._is_writable(timeout_ms):
            fields = {"room": "observe", "event": "log lines dropped", "lines": self._dropped}
            self._dropped = 0
            self._write_now(self._line(_PRIORITY["warning"], fields))

    def _is_writable(self, timeout_ms: int) -> bool:
        return bool(self._poll.poll(timeout_ms))

    def _write_now(self, encoded: bytes) -> None:
        with contextlib.suppress(OSError):  # stderr is closed
            os.write(self.descriptor, encoded)

    def _line(self, priority: int, fields: Mapping[str, Any]) -> bytes:
        """Return the line with its end."""
        prefix = f"<{priority}>" if self.to_journal else ""
        now = "" if self.to_journal else rfc3339(self.clock.time_us())
        if self.form == "json":
            head = {} if self.to_journal else {"at": now, "level": _LEVELS[priority]}
            return b"%b%b\n" % (prefix.encode(), _json_line({**head, **fields}))
        if self.form == "pretty":
            text = self._pretty(priority, now, fields)
        elif self.to_journal:
            text = _pairs(fields)[1:]
        else:
            text = f"at={now} level={_LEVELS[priority]}{_pairs(fields)}"
        return f"{prefix}{text}\n".encode("utf-8", "backslashreplace")

    def _pretty(self, priority: int, now: str, fields: Mapping[str, Any]) -> str:
        rest = dict(fields)
        room, event = rest.pop("room", ""), rest.pop("event", "")
        color = _COLORS.get(priority, "") if self.color else ""
        event = event if event.isprintable() else json.dumps(event)
        event = f"{color}{event}\x1b[0m" if color else event
        return f"{now[11:19]} {room:<9} {event}{_pairs(rest)}"


class _StandardLibrary(logging.Handler):
    """Writes the records of uvicorn, asyncio, aiosmtpd and other libraries to the log."""

    def emit(self, record: logging.LogRecord) -> None:
        method = record.levelname.lower()
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 -- a library's bad format string must not stop the mail
            text = str(record.msg)
        event: dict[str, Any] = {"room": record.name, "event": text}
        if record.exc_info:
            event["exc_info"] = record.exc_info[1]
        key = record.name, str(record.msg).partition("\n")[0]
        if times := _sink.times_due(key, 1.0):  # clients cause some, such as writes after a reset
            event |= {"times": times} if times > 1 else {}
            _sink.log(method if method in _PRIORITY else "warning", event)


def _is_plain(event: Mapping[str, Any], form: Form) -> bool:
    """Return whether the event can be written as it is if its line is short. Almost always."""
    return (
        len(event) <= _FIELDS_MAX
        and _SPECIAL_NAMES.isdisjoint(event)
        and (form != "json" or _PLAIN_TYPES.issuperset(map(type, event.values())))
    )


def _describe_exception(event: dict[str, Any], method: str) -> None:
    """Replace exc_info by the error and the innermost frames, on one line."""
    error = event.pop("exc_info", None) or (sys.exception() if method == "exception" else None)
    if error is None:
        return
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_MAX:]
    places = (f"{PurePath(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    event["error"] = error
    event["where"] = " < ".join(places)


def _fields(event: Mapping[str, Any], clip: int) -> dict[str, Any]:
    """Return the event's fields, room and event first, each value clipped."""
    fields: dict[str, Any] = {"room": event.get("room", ""), "event": ""}
    for name, value in islice(event.items(), _FIELDS_MAX):
        if name in _SECRET_NAMES:
            fields[name] = "(left out)"
        elif type(value) is str and len(value) <= clip:  # almost all
            fields[name] = value
        else:
            fields[name] = _plain(value, clip)
    return fields


def _plain(value: object, clip: int) -> str | float | None:
    match value:
        case str():
            text = value
        case None | int() | float():
            return value
        case bytes() | bytearray() | memoryview():
            return f"({len(value)} bytes)"
        case BaseException():
            text = f"{type(value).__name__}: {value}"
        case list() | tuple() | set() | frozenset():
            text = ", ".join(str(item) for item in islice(value, 64))
        case _:
            text = str(value)
    return text if len(text) <= clip else f"{text[:clip]}…"


def _pairs(fields: Mapping[str, Any]) -> str:
    """Return " name=value" of each field: logfmt, with a space before it."""
    texts = [  # what is long is clipped before it can be kept in memory by _quoted()
        _quoted(value) if type(value) is str and len(value) <= _CLIP_MAX else _other_text(value)
        for value in fields.values()
    ]
    return _template(tuple(fields)) % tuple(texts)


@lru_cache(256)  # each event has the same names whenever it is logged
def _template(names: tuple[str, ...]) -> str:
    return "".join(f" {name.replace('%', '%%')}=%s" for name in names)


@lru_cache(1024)  # hosts, states and queue ids recur within a few lines
def _quoted(text: str) -> str:
    """Return `text` as it is, or quoted with JSON's escapes if necessary."""
    if not text.isprintable():
        return json.dumps(text)
    if not _NEEDS_QUOTES.search(text):
        return text
    return encode_basestring(text)  # as json.dumps(ensure_ascii=False), which makes an encoder


def _other_text(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"{value}"
        case _:
            return _quoted(str(_plain(value, _CLIP_MAX)))


def _json_line(fields: Mapping[str, Any]) -> bytes:
    try:
        line = _encode_json(fields)
    except (UnicodeEncodeError, OverflowError):  # a lone surrogate, a huge number
        return json.dumps(fields).encode()
    if line.isascii() and b"\x7f" not in line:  # the others below a space are escaped
        return line
    return line if line.decode().isprintable() else json.dumps(fields).encode()


def _is_journal(descriptor: int, journal_stream: str) -> bool:
    """Return whether JOURNAL_STREAM ("device:inode") names this descriptor."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"


_sink = LogSink()  # the process has one stderr, so it has one log
_own_sink: ContextVar[LogSink | None] = ContextVar("relay log", default=None)


def _log(method: str, event: dict[str, Any]) -> None:
    (_own_sink.get() or _sink).log(method, event)
