"""The log: one bounded line per event, in three forms, and writing never blocks."""

import asyncio
import contextvars
import fcntl
import itertools
import json
import logging
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum

import pytest
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st

from relay.base.observe import logs
from relay.base.observe.logs import RepeatedError
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row
from tests.support.terminals import open_terminal

log = logs.get_logger("ingress")
NOW = "2023-11-14T22:13:20.000000Z"  # ManualClock's


class Reader:
    """The reading end of the log, and what configure() wants to know about the writing end."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)

    def configure(self, form, **options):
        logs.configure(form, clock=ManualClock(), descriptor=self.writing, **options)

    def bytes(self):
        found = b""
        try:
            while block := os.read(self.reading, 1 << 20):
                found += block
        except BlockingIOError:
            pass
        return found

    def lines(self):
        return self.bytes().decode().splitlines()

    def line(self):
        (line,) = self.lines()
        return line

    def fill(self):
        """Leave less room than a line needs, as a reader that has stopped does."""
        os.write(self.writing, b"x" * fcntl.fcntl(self.writing, fcntl.F_GETPIPE_SZ))


@pytest.fixture
def reader():
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    made = Reader()
    yield made
    made.bytes()
    logs.drain()
    logs.configure("logfmt", clock=ManualClock())
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    os.close(made.reading)
    os.close(made.writing)


def test_json(reader):
    reader.configure("json")
    log.info("accepted", qid="abc", size_bytes=3, ok=True, to=["a", "b"], nothing=None)
    assert json.loads(reader.line()) == {
        "at": NOW,
        "level": "info",
        "room": "ingress",
        "event": "accepted",
        "qid": "abc",
        "size_bytes": 3,
        "ok": True,
        "to": "a, b",
        "nothing": None,
    }


def test_logfmt(reader):
    reader.configure("logfmt")
    log.warning("sent to", qid="abc", reply='250 "ok"', empty="", ok=True, nothing=None, n=1.5)
    expected = f'at={NOW} level=warning room=ingress event="sent to" qid=abc '
    expected += r'reply="250 \"ok\"" empty="" ok=true nothing=- n=1.5'
    assert reader.line() == expected


class Color(StrEnum):
    RED = "red"


def logfmt_text(value):
    """Return how logfmt has a value: the rule of the form."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, bytes):
        value = f"({len(value)} bytes)"
    elif isinstance(value, list):
        value = ", ".join(value)
    elif isinstance(value, Exception):
        value = f"{type(value).__name__}: {value}"
    if len(value) > 512:
        value = value[:512] + "…"
    if not value.isprintable():
        return json.dumps(value)
    if value == "" or set(value) & set(' "=\\'):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return value


TEXTS = st.one_of(st.text(max_size=20), st.text('ab ="\\\n\x7f\xa0\u2028\udcffé', max_size=6))
VALUES = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.binary(max_size=9),
    st.lists(TEXTS, max_size=3),
    TEXTS.map(ValueError),
)


@given(TEXTS, st.lists(VALUES, max_size=9))
@example("zeros are apart", [0.0, -0.0, 0, False, 1, 1.0, True, "1", Color.RED, "red", Color.RED])
@example("long", ["x" * 511, "x" * 512, "x" * 513, "ä" * 600, "\x01" * 100])
@example("not ASCII", ["caf\u00e9 au lait", "\u00e9"])
@example("together long", ["x" * 200] * 3)
@example("250 2.0.0 Ok: queued as 4F", ["bob@example.org", "mx.example.org:25", 0.012, "2.0.0"])
def test_logfmt_has_each_value_as_its_rule_says(event, values):
    reading, writing = os.pipe()
    sink = logs.LogSink()
    sink.clock = ManualClock()
    sink.point_at(writing)
    fields = {"room": "a", "event": event, **{f"f%{n}": value for n, value in enumerate(values)}}
    for _ in range(2):  # the second time, texts may come from a cache
        sink.log("warning", dict(fields))
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", newline="\n") as file:
        first, second = file
    pairs = " ".join(f"{name}={logfmt_text(value)}" for name, value in fields.items())
    assert first == second == f"at={NOW} level=warning {pairs}\n"


def test_auto_is_logfmt_for_a_pipe_and_pretty_in_color_on_a_terminal(reader):
    reader.configure("auto")
    log.info("here")
    assert reader.line().startswith("at=")
    ours, terminal = open_terminal()
    logs.configure("auto", clock=ManualClock(), descriptor=terminal)
    log.error("there")
    logs.configure("auto", clock=ManualClock(), descriptor=terminal, color=False)
    log.error("plain")
    shown = b""
    while shown.count(b"\n") < 2:
        shown += os.read(ours, 1000)
    assert shown.decode().splitlines() == [
        "22:13:20 ingress   \x1b[31mthere\x1b[0m",
        "22:13:20 ingress   plain",
    ]
    os.close(ours)
    os.close(terminal)


@pytest.mark.parametrize(("form", "rest"), [("logfmt", "room=ingress event=x"), ("pretty", "")])
def test_the_systemd_journal_gets_priorities_and_no_time(reader, form, rest):
    status = os.fstat(reader.writing)
    stream = f"{status.st_dev}:{status.st_ino}"
    reader.configure(form, environ_journal_stream=stream)
    log.info("x")
    log.error("x")
    first, second = reader.lines()
    assert first.startswith(f"<6>{rest}")
    assert second.startswith(f"<3>{rest}")
    assert "2023" not in first
    reader.configure("logfmt", environ_journal_stream="8:1")  # somebody else's stream
    log.info("x")
    assert reader.line().startswith(f"at={NOW}")


FORMS = ("json", "logfmt", "pretty")
ODD = (
    "a\r\nb",
    "\x1b[2J",
    "\x9b2J",
    "\x00",
    "\x7f",
    "\u2028",
    "\udcff",
    "<\x85>",
    "\u202e",
    1 << 80,
)


@each_row("form, value", itertools.product(FORMS, ODD))
def test_no_value_contains_a_line_end_or_moves_the_cursor(reader, form, value):
    reader.configure(form)
    event = f"event {value}"
    log.info(event, field=value)
    line = reader.line()
    assert line.isprintable()
    if form == "json":
        assert json.loads(line)["field"] in (value, str(value))


@each_row("form, reply", itertools.product(FORMS, ["250", "each-of-these", 300 * "ü"]))
def test_lines_of_each_text_are_those_of_the_event_alone(reader, form, reply):
    texts = ["a@b.test", *map(str, ODD), "", "a b", 'q"', "s=x", "\\", "each-of-these", "x" * 600]
    fields = {"reply": reply, "to": "", "delay_s": 0.1}
    reader.configure(form, node="n1")
    log.info_of_each("recipient", "to", texts, **fields)
    together = reader.lines()
    for text in texts:
        log.info("recipient", **fields | {"to": text})
    assert together == reader.lines()
    reader.configure(form, level="warning")
    log.info_of_each("recipient", "to", texts, **fields)
    assert reader.lines() == []


@each_row("form, character", itertools.product(FORMS, ["x", "ä", "\U0001f600", "\x01", '"']))
def test_a_line_is_bounded_whatever_is_logged(reader, form, character):
    reader.configure(form)
    log.info(character * 100_000, **{f"field{n}": character * 100_000 for n in range(100)})
    line = reader.bytes()
    assert len(line) <= logs.LINE_BYTES_MAX
    assert line.count(b"\n") == 1
    if form == "json":
        assert json.loads(line)["field0"].startswith(character)


def test_no_long_value_stays_in_memory(reader):
    reader.configure("logfmt")
    tracemalloc.start()
    for number in range(30):
        log.info("x", text=f"{number}" + "y" * 500_000, texts=["z" * 500_000])
        reader.bytes()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000


def test_bodies_and_secrets_are_left_out(reader):
    reader.configure("logfmt")
    log.info("x", password="hunter2", token="hunter2", body="hunter2", raw=b"hunter2")
    line = reader.line()
    assert "hunter2" not in line
    assert 'raw="(7 bytes)"' in line


def fail() -> None:
    raise ValueError("two\nlines")


def test_an_exception_is_one_line_with_its_place(reader):
    reader.configure("logfmt")
    try:
        fail()
    except ValueError as error:
        log.exception("it broke", qid="abc")
        kept = error
    log.error("handed in", exc_info=kept)
    log.error("as a field", error=kept)
    first, second, third = reader.lines()
    assert r'event="it broke" qid=abc error="ValueError: two\nlines" where="test_logs.py:' in first
    assert " < test_logs.py:" in second
    assert r'error="ValueError: two\nlines"' in third


@pytest.mark.parametrize("name", ["uvicorn.error", "asyncio", "mail.log", "somewhere"])
def test_warnings_of_libraries_are_logged(reader, name):
    logging.getLogger().handlers.clear()  # pytest's own would choke on the bad format
    reader.configure("logfmt")
    logging.getLogger(name).info("chatter")
    logging.getLogger(name).warning("bad %s", "luck")
    logging.getLogger(name).warning("bad format %d", "luck")
    first, second = reader.lines()
    assert first == f'at={NOW} level=warning room={name} event="bad luck"'
    assert 'event="bad format %d"' in second


def test_a_repeated_event_is_a_line_a_second_with_the_number_of_events(reader):
    logging.getLogger().handlers.clear()
    clock = ManualClock()
    logs.configure("logfmt", clock=clock, descriptor=reader.writing)
    for pause_s in (0, 0, 0.5, 0.5, 0.4, 0, 100):
        clock.advance(pause_s)
        for of in "ab":
            log.repeated("warning", "no room", of=of, client=of)
        log.repeated("info", "rare", apart_s=200)
        logging.getLogger("asyncio").warning("%s is gone", clock.now_s)
    lines = [line.partition(" event=")[2] for line in reader.lines()]
    assert lines == [
        '"no room" client=a',
        '"no room" client=b',
        "rare",
        '"1000.0 is gone"',
        '"no room" client=a times=3',
        '"no room" client=b times=3',
        '"1001.0 is gone" times=3',
        '"no room" client=a times=3',
        '"no room" client=b times=3',
        '"1101.4 is gone" times=3',
    ]


def test_a_reader_that_stops_loses_lines_and_blocks_nothing(reader, monkeypatch):
    monkeypatch.setattr(logs, "BACKLOG_LINES_MAX", 10)
    reader.configure("logfmt")
    reader.fill()
    for number in range(100):
        log.info("waits", number=number)
    assert reader.lines()[0].strip("x") == ""
    log.info("again")
    lines = reader.lines()
    assert [line.partition("number=")[2] for line in lines[:10]] == [str(n) for n in range(10)]
    assert 'event="log lines dropped" lines=90' in lines[10]
    assert lines[11].endswith("event=again")


def test_the_backlog_is_written_at_the_end_if_there_is_a_reader(reader):
    reader.configure("logfmt")
    reader.fill()
    log.info("last words")
    logs.drain(timeout_ms=1)  # without a reader it gives up
    reader.bytes()
    logs.drain(timeout_ms=1)
    assert reader.line().endswith('event="last words"')


def test_a_closed_stderr_does_not_raise(reader):
    reader.configure("logfmt")
    other, writing = os.pipe()
    os.close(other)
    logs.configure("logfmt", clock=ManualClock(), descriptor=writing)
    log.info("into the void")
    os.close(writing)
    log.info("into nothing")
    reader.configure("logfmt")
    log.info("back")
    assert reader.line().endswith("event=back")


@pytest.mark.parametrize("length", [1, 300, 4000])
async def test_the_lines_of_a_turn_come_whole_and_in_their_order(reader, length):
    reader.configure("logfmt")
    count = 30_000 // (100 + length)  # of what a pipe takes without a reader
    for number in range(count):
        log.info("x", filler="y" * length, number=number)
    await asyncio.sleep(0)
    numbers = [line.rpartition("number=")[2] for line in reader.lines()]
    assert numbers == [str(number) for number in range(count)]


async def test_threads_do_not_mix_their_lines(reader):
    reader.configure("logfmt")
    await asyncio.gather(
        *(asyncio.to_thread(log.info, "x", filler="y" * 500, n=n) for n in range(50))
    )
    lines = reader.lines()
    assert sorted(int(line.rpartition("n=")[2]) for line in lines) == list(range(50))
    assert {line.count("room=") for line in lines} == {1}


def test_an_error_is_new_once_until_it_changes() -> None:
    repeated, full, gone = RepeatedError(), OSError("full"), OSError("gone")
    new = [repeated.is_new(error) for error in (full, full, OSError("full"), gone, gone, full)]
    assert new == [True, False, False, True, False, True]
    assert repeated.is_new(ValueError("full")), "of another kind"


class TestSeveralLogs:
    """Each relay of a process can have its own log."""

    @pytest.fixture
    def own(self):
        """A second log, and its reader."""
        reader, sink = Reader(), logs.LogSink()
        sink.point_at(reader.writing)
        reader.sink = sink
        yield reader
        os.close(reader.reading)
        os.close(reader.writing)

    def test_tasks_and_threads_inherit_the_sink(self, reader, own):
        reader.configure("logfmt")

        async def warn():
            await asyncio.create_task(asyncio.to_thread(log.warning, "to_thread"))
            with ThreadPoolExecutor(1, initializer=logs.inherit()) as pool:
                await asyncio.get_running_loop().run_in_executor(pool, log.warning, "pool")

        context = contextvars.copy_context()
        context.run(logs.use, own.sink)
        context.run(uvloop.run, warn())
        assert reader.bytes() == b""
        assert [line.split("event=")[1] for line in own.lines()] == ["to_thread", "pool"]
