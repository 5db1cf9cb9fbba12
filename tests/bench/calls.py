"""How many Python calls a message costs in the relay's own process: work that no clock shows.

    python -m tests.bench calls                        small and fanout, and what is called most
    python -m tests.bench calls --workload fanout --messages 100 --top 60

A relay with the shipped rules runs under sys.setprofile(), beside the process of its SMTP sessions. A
call is the start or the resumption of a Python function. Messages share the work of a turn of the
event loop, so repetitions differ by up to 3 %. Python 3.11 counts comprehensions as well.

Exit codes: 0; 1 if the calls in the event loop's thread are over the bound; 64 for wrong arguments.
"""

import argparse
import json
import os
import runpy
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FrameType

from msgspec import Struct

from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

TOP = Path(__file__).resolve().parents[2]
SESSIONS = 10
_MAIL = "From: <a@example.org>\r\nTo: list:;\r\nSubject: calls\r\n\r\n" + 50 * ("X" * 78 + "\r\n")
_COUNTED = Path("counted.json")


class Workload(Struct, frozen=True):
    recipients: int
    domains: int
    bound: int  # calls a message in the loop's thread


WORKLOADS = {"small": Workload(1, 1, 900), "fanout": Workload(50, 10, 1850)}


class Calls(Struct, frozen=True):
    """The calls of each function, by its module and name."""

    loop: Mapping[str, int]  # in the event loop's thread
    others: Mapping[str, int]  # in all other threads
    messages: int

    def __str__(self) -> str:
        counts = [round(sum(calls.values()) / self.messages) for calls in (self.loop, self.others)]
        return "{} calls a message in the loop's thread, {} in others".format(*counts)

    @property
    def in_loop(self) -> float:
        """Calls a message in the event loop's thread."""
        return sum(self.loop.values()) / self.messages

    def table(self, top: int) -> str:
        """Return the functions that are called most."""
        return "\n".join(
            f"  {thread:<6} {count / self.messages:8.2f}  {function}"
            for thread, calls in (("loop", self.loop), ("others", self.others))
            for function, count in Counter(calls).most_common(top)
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=sorted(WORKLOADS), action="append")
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--top", type=int, default=40, help="functions")
    try:
        options = parser.parse_args()
    except SystemExit as error:
        return os.EX_USAGE if error.code else 0
    is_over = False
    for name in options.workload or WORKLOADS:
        calls, bound = measured(WORKLOADS[name], options.messages), WORKLOADS[name].bound
        print(f"\n{name}: {calls}; bound {bound}\n{calls.table(options.top)}")
        is_over |= calls.in_loop > bound
    return int(is_over)


def measured(workload: Workload, messages: int) -> Calls:
    """Start a relay, warm it up, and return its calls while it takes and delivers messages."""
    rules = {path.name: path.read_text() for path in (TOP / "policies").glob("*.toml")}
    with Remotes() as remotes:
        host = remotes.start("mx.test")
        route = {"domain": "*", "next_hop": f"smtp://{host.host}:{host.port}"}
        with _CountedRelay(config={"smtp_gate": "on", "route": [route]}, policies=rules) as relay:
            relay.load(workload, 3 * SESSIONS)
            relay.counted()
            relay.load(workload, messages)
            return Calls(*relay.counted(), messages)


class _CountedRelay(RelayProcess):
    recorded = 0  # recipients

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "tests.bench.calls", *super().command(*words)[3:]]

    def load(self, workload: Workload, messages: int) -> None:
        """Send messages by some sessions at once; wait until all recipients are recorded."""
        numbers = range(workload.recipients)
        to = [f"user{number}@d{number % workload.domains}.example.com" for number in numbers]
        left = iter(range(messages))

        def session(_number: int) -> None:
            with self.smtp() as client:
                for _ in left:
                    client.sendmail("a@example.org", to, _MAIL)

        with ThreadPoolExecutor(SESSIONS) as pool:
            list(pool.map(session, range(SESSIONS)))
        self.recorded += messages * len(to)
        until("recorded", lambda: self.log.count('"event":"recipient"') >= self.recorded)

    def counted(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return the calls since the last time, in the loop's thread and in others."""
        path = self.folder / _COUNTED
        path.unlink(missing_ok=True)
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)
        until("the counts", path.exists)
        loop, others = json.loads(path.read_text())
        return loop, others


def counting_relay() -> None:
    """Run the `relay` command of the arguments. On SIGUSR1 write its calls, and count from zero."""
    threads = loop, others = Counter[CodeType](), Counter[CodeType]()

    def write(*_: object) -> None:
        sys.setprofile(None)
        text = json.dumps([_by_name(calls) for calls in threads])
        for calls in threads:
            calls.clear()
        new = _COUNTED.with_suffix(".new")
        new.write_text(text)
        new.rename(_COUNTED)
        sys.setprofile(_counter(loop))

    signal.signal(signal.SIGUSR1, write)
    threading.setprofile(_counter(others))
    runpy.run_module("relay", run_name="__main__", alter_sys=True)


def _counter(calls: Counter[CodeType]) -> Callable[[FrameType, str, object], None]:
    def count(frame: FrameType, event: str, _value: object) -> None:
        if event == "call":
            calls[frame.f_code] += 1

    return count


def _by_name(calls: Counter[CodeType]) -> Counter[str]:
    names: Counter[str] = Counter()
    for code, count in list(calls.items()):
        path = code.co_filename.rpartition("site-packages/")[2].removeprefix(f"{TOP}/")
        names[f"{path}: {code.co_qualname}"] += count
    return names


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        counting_relay()
    sys.exit(main())
