"""How many Python calls a message costs in the relay's own process: work that no clock shows.

    python -m tests.bench calls                        small and fanout, and what is called most
    python -m tests.bench calls --workload fanout --messages 300 --sessions 20 --top 60

A relay with the shipped rules runs under sys.setprofile(), beside the process of its SMTP sessions. A
call is the start or the resumption of a Python function. Sessions that send at once share the work
of a turn of the event loop, so more of them cost fewer calls a message; a repetition differs by up
to 3 %. Python 3.11 counts comprehensions as well.

Exit codes: 0; 1 if the calls in the event loop's thread are over the bound (of SESSIONS); 64 for
wrong arguments.
"""

import argparse
import asyncio
import json
import os
import runpy
import signal
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from msgspec import Struct

from tests.support.relay_process import RelayProcess, until

TOP = Path(__file__).resolve().parents[2]
SESSIONS = 10
_BODY = b"From: <a@example.org>\r\nTo: list:;\r\nSubject: calls\r\n\r\n" + b"X" * 78 + b"\r\n"
_COUNTED = "counted.json"


class Workload(Struct, frozen=True):
    recipients: int
    domains: int
    bound: int  # calls a message in the loop's thread, with SESSIONS


WORKLOADS = {"small": Workload(1, 1, 880), "fanout": Workload(50, 10, 2450)}


class Calls(Struct, frozen=True):
    """The calls of each function, by its module and name."""

    loop: Mapping[str, int]  # in the event loop's thread
    others: Mapping[str, int]  # in all other threads
    messages: int

    @property
    def in_loop(self) -> float:
        """Calls a message in the event loop's thread."""
        return sum(self.loop.values()) / self.messages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=sorted(WORKLOADS), action="append")
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--top", type=int, default=40, help="functions")
    try:
        options = parser.parse_args()
    except SystemExit as error:
        return os.EX_USAGE if error.code else 0
    is_over = False
    for name in options.workload or WORKLOADS:
        workload = WORKLOADS[name]
        calls = measured(workload, options.messages, sessions=options.sessions)
        total = sum(calls.others.values()) / calls.messages
        print(f"\n{name}: {calls.in_loop:.0f} calls a message in the loop's thread (bound"
              f" {workload.bound}), {total:.0f} in others")  # fmt: skip
        for thread, functions in (("loop", calls.loop), ("others", calls.others)):
            for function, count in Counter(functions).most_common(options.top):
                print(f"  {thread:<6} {count / calls.messages:8.2f}  {function}")
        is_over |= calls.in_loop > workload.bound
    return int(is_over)


def measured(workload: Workload, messages: int, *, sessions: int = SESSIONS) -> Calls:
    """Start a relay, warm it up, and return its calls while it takes and delivers messages."""
    return asyncio.run(_measured(workload, messages, sessions))


async def _measured(workload: Workload, messages: int, sessions: int) -> Calls:
    sink = await asyncio.start_server(_take, "127.0.0.1", 0, limit=1 << 20)
    hop = f"smtp://127.0.0.1:{sink.sockets[0].getsockname()[1]}"
    rules = {path.name: path.read_text() for path in (TOP / "policies").glob("*.toml")}
    config = {
        "smtp_gate": "on",
        "delivery": {"max_connections_per_next_hop": 20},
        "route": [{"domain": "*", "next_hop": hop}],
    }
    relay = _CountedRelay(config=config, policies=rules)
    async with sink:
        try:
            await asyncio.to_thread(relay.start)
            await _load(relay, workload, 3 * sessions, sessions)
            await asyncio.to_thread(relay.counted)
            await _load(relay, workload, messages, sessions)
            loop, others = await asyncio.to_thread(relay.counted)
        finally:
            await asyncio.to_thread(relay.close)
    return Calls(loop, others, messages)


class _CountedRelay(RelayProcess):
    """A relay that counts its calls. It has neither a log of ours nor an end that is waited for."""

    recorded = 0  # recipients

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "tests.bench.calls", *super().command(*words)[3:]]

    def counted(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return the calls since the last time, in the loop's thread and in others."""
        path = self.folder / _COUNTED
        path.unlink(missing_ok=True)
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)
        until("the counts", path.exists)
        loop, others = json.loads(path.read_text())
        return loop, others


async def _load(relay: _CountedRelay, workload: Workload, messages: int, sessions: int) -> None:
    """Send messages by some sessions at once; wait until all recipients are recorded."""
    numbers = iter(range(messages))

    async def session() -> None:
        reader, writer = await asyncio.open_connection(*relay.smtp_address())
        await _say(reader, writer, b"")
        await _say(reader, writer, b"EHLO client.example.org\r\n")
        for _ in numbers:
            await _say(reader, writer, b"MAIL FROM:<a@example.org>\r\n")
            for number in range(workload.recipients):
                address = b"user%d@d%d.example.com" % (number, number % workload.domains)
                await _say(reader, writer, b"RCPT TO:<%b>\r\n" % address)
            await _say(reader, writer, b"DATA\r\n")
            await _say(reader, writer, _BODY * 40 + b".\r\n")
        writer.close()

    await asyncio.gather(*(session() for _ in range(sessions)))
    relay.recorded += messages * workload.recipients
    await asyncio.to_thread(
        until, "recorded", lambda: relay.log.count('"event":"recipient"') >= relay.recorded
    )


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> None:
    """Send a command, and read its reply."""
    writer.write(line)
    reply = b"250-"
    while reply[3:4] == b"-":
        reply = await reader.readline()
    assert reply[:1] in b"23", reply


async def _take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take any mail that comes."""
    writer.write(b"220 sink.example.com ESMTP\r\n")
    while line := await reader.readline():
        verb = line[:4].upper()
        replies = {b"DATA": b"354 go on\r\n", b"EHLO": b"250-sink\r\n250 PIPELINING\r\n"}
        writer.write(replies.get(verb, b"250 2.1.5 ok\r\n"))
        if verb == b"DATA":
            await reader.readuntil(b"\r\n.\r\n")
            writer.write(b"250 2.0.0 taken\r\n")
        elif verb == b"QUIT":
            break
    writer.close()


def counting_relay() -> None:
    """Run the `relay` command of the arguments. On SIGUSR1 write its calls, and count from zero."""
    loop: Counter[object] = Counter()
    others: Counter[object] = Counter()

    def count_loop(frame: FrameType, event: str, _value: object) -> None:
        if event == "call":
            loop[frame.f_code] += 1

    def count_others(frame: FrameType, event: str, _value: object) -> None:
        if event == "call":
            others[frame.f_code] += 1

    def write(*_: object) -> None:
        sys.setprofile(None)
        text = json.dumps([_by_name(loop), _by_name(others)])
        loop.clear()
        others.clear()
        Path("counting").write_text(text)
        Path("counting").rename(_COUNTED)
        sys.setprofile(count_loop)

    signal.signal(signal.SIGUSR1, write)
    threading.setprofile(count_others)
    runpy.run_module("relay", run_name="__main__", alter_sys=True)


def _by_name(calls: Counter) -> Counter[str]:
    names: Counter[str] = Counter()
    for code, count in list(calls.items()):
        path = code.co_filename.rpartition("site-packages/")[2].removeprefix(f"{TOP}/")
        names[f"{path}: {code.co_qualname}"] += count
    return names


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        counting_relay()
    sys.exit(main())
