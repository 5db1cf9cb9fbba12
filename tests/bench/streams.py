"""What open event streams cost: the delivery rate without and with them, in alternating rounds.

    tests/bench/streams.py                         100 streams, five rounds each, 8 clients
    tests/bench/streams.py --streams 20 --rounds 3 --messages 500
    tests/bench/streams.py --as alice              streams of the sender: its own events only
    tests/bench/streams.py --pages                 open pages of the message list, after a login

Each round sends messages to a local mailbox and ends when all of them are there. In every second
round, programs follow GET /relay/v1/events, or the live parts of five lists, on connections of
their own; the relay has one process, the senders another, the followers a third. The bound is a
loss of 5 % of the rate. The machine needs a core for the followers: what they take from the relay's
core is not the relay's cost.
"""

import argparse
import http.client
import multiprocessing
import os
import re
import selectors
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import sendmail

BOUND = 0.95
LIVE_LISTS = [
    f"/?{query}live="
    for query in ("", "state=delivered&", "q=a&", "q=from:alice&", "mailbox=bob@example.test&")
]
OPERATOR = """\
[[account]]
address = "ops@example.test"
password = "plain:ops"
token = "plain:ops"
role = "operate"
"""


@dataclass(frozen=True)
class Measured:
    """Messages a second until the last one was in its mailbox, and the relay's CPU for each."""

    rate: float
    cpu_ms: float


def main() -> int:
    """Measure, and print."""
    given = arguments()
    found: dict[bool, list[Measured]] = {False: [], True: []}
    sendmail.CONFIGURATION = sendmail.CONFIGURATION.replace("[http]\n", "[http]\npages = true\n")
    with tempfile.TemporaryDirectory(dir=given.directory, prefix="streams-") as name:
        relay = sendmail.Relay(Path(name), given.relay, more_accounts=OPERATOR)
        try:
            relay.start()
            one_round(relay, given, count=min(given.messages, 200))  # warm
            requests = followed_requests(relay.socket, given)
            for number in range(given.rounds):
                for has_streams in (False, True):
                    with followers(relay.socket, requests, given.streams * has_streams) as followed:
                        measured = one_round(relay, given, count=given.messages)
                    found[has_streams].append(measured)
                    print(
                        f"round {number + 1}, {given.streams * has_streams:3} streams:"
                        f" {measured.rate:7.1f} messages/s, {measured.cpu_ms:6.2f} ms CPU each"
                        + (f", {followed() >> 20} MiB followed" if has_streams else ""),
                        flush=True,
                    )
        finally:
            relay.stop()
    return verdict(found)


def verdict(found: dict[bool, list[Measured]]) -> int:
    """Print the ratios of the rounds; return 1 beyond the bound."""
    pairs = list(zip(found[False], found[True], strict=True))
    rates = [after.rate / before.rate for before, after in pairs]
    times = [after.cpu_ms / before.cpu_ms for before, after in pairs]
    middle = statistics.median(rates)
    print("rates with streams, of those without:", " ".join(f"{one:.2f}" for one in rates))
    print("CPU for a message, the same:         ", " ".join(f"{one:.2f}" for one in times))
    print(f"median {middle:.3f} (bound {BOUND})")
    return int(middle < BOUND)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(sys.executable).parent / "relay"
    parser.add_argument("--relay", default=os.environ.get("RELAY", str(default)))
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--messages", type=int, default=2000, help="in each round")
    parser.add_argument("--size", type=int, default=4096, help="octets of the body")
    parser.add_argument("--as", dest="token", default="ops", choices=("ops", "alice"))
    parser.add_argument("--pages", action="store_true", help="lists of messages, not events")
    parser.add_argument("--directory", default=None, help="on the disk to measure")
    return parser.parse_args()


def one_round(relay: sendmail.Relay, given: argparse.Namespace, *, count: int) -> Measured:
    """Send messages; return when all of them are in the mailbox."""
    inbox = relay.folder / "mail" / "example.test" / "bob" / "new"
    request = sendmail.request_bytes("json", sendmail.RECIPIENTS["local"], given.size)
    relay.accepted += count
    before_s = relay.cpu_s()
    with multiprocessing.get_context("spawn").Pool(1) as other:
        other.apply(int)  # it has started
        began_s = time.perf_counter()
        other.apply(sendmail.send_all, (relay.socket, request, given.clients, count))
        while (delivered := sum(1 for _ in inbox.iterdir())) < relay.accepted:
            time.sleep(0.02)
            if time.perf_counter() - began_s > sendmail.DRAIN_S:
                sys.exit(f"{relay.accepted} accepted, {delivered} delivered")
        took_s = time.perf_counter() - began_s
    return Measured(count / took_s, (relay.cpu_s() - before_s) * 1000 / count)


def followed_requests(path: str, given: argparse.Namespace) -> list[bytes]:
    """Return what the followers request in turns; for pages with the cookie of a login."""
    targets, field = ["/relay/v1/events"], f"Authorization: Bearer {given.token}"
    if given.pages:
        targets, field = LIVE_LISTS, f"Cookie: {login(path, given.token)}"
    end = f"HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{field}\r\n\r\n"
    return [f"GET {target} {end}".encode() for target in targets]


def login(path: str, user: str) -> str:
    """Log in to the pages; return the cookies."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request("GET", "/login")
    form = connection.getresponse()
    found = re.search(r'name="csrf" value="([^"]+)"', form.read().decode())
    assert found, "the login form has no token"
    fields = f"user={user}@example.test&password={user}&next=&csrf={found[1]}"
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": _cookies(form)}
    connection.request("POST", "/login", fields, headers | {"Origin": "http://localhost"})
    answer = connection.getresponse()
    assert answer.status == 303, (answer.status, answer.read())
    connection.close()
    return _cookies(answer)


def _cookies(answer: http.client.HTTPResponse) -> str:
    fields = answer.headers.get_all("set-cookie") or []
    return "; ".join(one.partition(";")[0] for one in fields)


@contextmanager
def followers(path: str, requests: list[bytes], count: int) -> Iterator[Callable[[], int]]:
    """Follow with `count` streams in a process of its own; yields what returns their octets."""
    if not count:
        yield lambda: 0
        return
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=follow, args=(path, requests, count, theirs)
    )
    process.start()
    total = 0

    def followed() -> int:
        return total

    assert ours.recv() == count
    try:
        yield followed
    finally:
        ours.send("end")
        total = ours.recv()
        process.join()


def follow(path: str, requests: list[bytes], count: int, control: Connection) -> None:
    """Read and forget what `count` streams send, until the control connection says so."""
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        for number in range(count):
            stream = socket.socket(socket.AF_UNIX)
            stream.connect(path)
            stream.sendall(requests[number % len(requests)])
            head = stream.recv(4096)
            assert head.startswith(b"HTTP/1.1 200"), head
            selector.register(stream, selectors.EVENT_READ)
        control.send(count)
        total = 0
        while True:
            for key, _ in selector.select():
                if key.fileobj is control:
                    control.recv()
                    control.send(total)
                    return
                octets = key.fileobj.recv(1 << 20)
                assert octets, "a stream was cut off"
                total += len(octets)


if __name__ == "__main__":
    sys.exit(main())
