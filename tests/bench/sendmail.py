"""How many sendMail a second one relay accepts, beside what the disk can do in the same run.

    tests/bench/sendmail.py                            1, 8 and 64 clients, three rounds each
    tests/bench/sendmail.py --clients 8 --rounds 5 --to capture --directory /var/tmp

Each round first makes files of the message's size, each written and synced, by as many threads as
there are clients: the machine's own rate, while the relay has nothing to do. Then as many clients
send one message after the other on connections that they keep; each answer is a 202 behind the
fsyncs of docs/design.md 1, and pickup, relay and delivery work on what was accepted at the same time.
A round ends when every message is in Sent Items. The relay has one process, the clients another;
load stays on loopback.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.process_tree import tree_cpu_s
from tests.support.relay_process import RelayProcess

RECIPIENTS = {"local": "bob@example.test", "capture": "carol@elsewhere.test"}
DRAIN_S = 120
_ANY_KEY = b"0123456789abcdef"


@dataclass(frozen=True)
class Round:
    """One round: rates per second, latencies in milliseconds, and the relay's CPU a message.

    `through` counts until the last message was in Sent Items, as `cpu_ms` does.
    """

    files: float
    files_and_directory: float
    accepted: float
    through: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float


def main() -> int:
    given = arguments()
    tempfile.tempdir = given.directory
    show(measured(given))
    return 0


def measured(given: argparse.Namespace) -> dict[int, list[Round]]:
    """Start a relay, and measure some rounds for each number of clients."""
    with Relay(given.relay) as relay:
        request = request_bytes(RECIPIENTS[given.to], given.size, is_keyed=given.keyed)
        rounds(given.clients[0], relay, request, given, count=min(given.messages, 200))  # warm
        return {
            clients: [
                rounds(clients, relay, request, given, count=given.messages)
                for _ in range(given.rounds)
            ]
            for clients in given.clients
        }


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(sys.executable).parent / "relay"
    parser.add_argument("--relay", default=os.environ.get("RELAY", str(default)))
    parser.add_argument(
        "--clients", default="1,8,64", type=lambda t: [int(n) for n in t.split(",")]
    )
    parser.add_argument("--messages", type=int, default=2000, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=4096, help="octets of the body")
    parser.add_argument("--to", choices=sorted(RECIPIENTS), default="capture")
    parser.add_argument("--directory", default=None, help="on the disk to measure")
    parser.add_argument("--keyed", action="store_true", help="each with an Idempotency-Key")
    return parser.parse_args(words)


class Relay(RelayProcess):
    """A relay of any version, its HTTP on a Unix socket; on the disk of `tempfile.tempdir`."""

    def __init__(self, program: str) -> None:
        routes = [{"domain": "elsewhere.test", "next_hop": "capture"}]
        super().__init__(config={"http": {"listen": ["unix:http.sock"]}, "route": routes})
        self.accepted = 0
        self._program = program

    def command(self, *words: str) -> list[str]:
        return [self._program, *super().command(*words)[3:]]

    def close(self) -> None:
        """End it, and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder)

    def cpu_s(self) -> float:
        """Return the processor time until now, with that of the processes that it started."""
        assert self.process is not None
        return tree_cpu_s(self.process.pid)

    def load(self, request: bytes, clients: int, count: int) -> tuple[float, list[float]]:
        """Send in another process; return how long it took, and each one's latency."""
        socket = str(self.folder / "http.sock")
        with multiprocessing.get_context("spawn").Pool(1) as other:
            took_s, latencies_s = other.apply(send_all, (socket, request, clients, count))
        self.accepted += count
        return took_s, latencies_s

    def wait_until_sent(self) -> None:
        """Every message that was accepted must come to Sent Items."""
        deadline = time.monotonic() + DRAIN_S
        while self.pending_submissions() and time.monotonic() < deadline:
            time.sleep(0.02)
        folders = (self.home("alice") / one / "cur" for one in (".Sent", ".Drafts"))
        sent, left = (sum(1 for _ in folder.iterdir()) for folder in folders)
        if sent != self.accepted or left:
            sys.exit(f"{self.accepted} accepted, {sent} in Sent Items, {left} in Drafts")


def rounds(
    clients: int, relay: Relay, request: bytes, given: argparse.Namespace, *, count: int
) -> Round:
    """Measure the disk, then the relay."""
    files = files_per_second(relay.folder, clients, given.size, count=count, directories=False)
    both = files_per_second(relay.folder, clients, given.size, count=count, directories=True)
    before_s = relay.cpu_s()
    took_s, latencies_s = relay.load(request, clients, count)
    began_s = time.perf_counter()
    relay.wait_until_sent()
    drained_s = time.perf_counter() - began_s
    return Round(
        files=files,
        files_and_directory=both,
        accepted=count / took_s,
        through=count / (took_s + drained_s),
        p50_ms=statistics.median(latencies_s) * 1000,
        p99_ms=sorted(latencies_s)[int(len(latencies_s) * 0.99)] * 1000,
        cpu_ms=(relay.cpu_s() - before_s) * 1000 / count,
    )


def files_per_second(
    folder: Path, threads: int, size: int, *, count: int, directories: bool
) -> float:
    """Make files, each synced (and its directory as well), by some threads at once."""
    target = folder / "files"
    target.mkdir()
    content = b"x" * (size + 1024)  # a draft's fields come on top of its body
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            file = os.open(target / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(file, content)
            os.fsync(file)
            os.close(file)
            if directories:
                os.fsync(directory)
        os.close(directory)

    began_s = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work) for _ in range(threads)]:
            done.result()
    took_s = time.perf_counter() - began_s
    shutil.rmtree(target)
    return count / took_s


def request_bytes(recipient: str, size: int = 4096, *, is_keyed: bool = False) -> bytes:
    text = ("The quick brown fox jumps over the lazy dog. " * (size // 45 + 1))[:size]
    message = {
        "subject": "A measured message",
        "body": {"contentType": "text", "content": text},
        "toRecipients": [{"emailAddress": {"address": recipient, "name": "Somebody"}}],
    }
    body = json.dumps({"message": message}).encode()
    head = (
        "POST /v1.0/me/sendMail HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    key = b"Idempotency-Key: %b\r\n" % _ANY_KEY if is_keyed else b""
    return head.encode() + key + b"\r\n" + body


def send_all(path: str, request: bytes, clients: int, count: int) -> tuple[float, list[float]]:
    """Send `count` requests by some clients; return how long it took, and each one's latency."""
    return uvloop.run(_send_all(path, request, clients, count))


async def _send_all(
    path: str, request: bytes, clients: int, count: int
) -> tuple[float, list[float]]:
    numbers = iter(range(count))
    latencies_s: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        for _ in numbers:
            began_s = time.perf_counter()
            writer.write(request.replace(_ANY_KEY, os.urandom(8).hex().encode()))
            answer = await reader.readuntil(b"\r\n\r\n")
            latencies_s.append(time.perf_counter() - began_s)
            if not answer.startswith(b"HTTP/1.1 202"):
                raise SystemExit(answer.decode() + (await reader.read(2000)).decode())
        writer.close()

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - began_s, latencies_s


def show(found: dict[int, list[Round]]) -> None:
    """Print the medians, and the lowest and highest of what is to be compared."""
    print(
        "| clients | synced files/s | with directory | accepted/s | of files | p50 | p99"
        " | through/s | CPU |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for clients, some in found.items():
        ratios = sorted(one.accepted / one.files for one in some)

        def middle(name: str, some: list[Round] = some) -> float:
            return statistics.median(getattr(one, name) for one in some)

        print(
            f"| {clients} | {middle('files'):.0f} | {middle('files_and_directory'):.0f}"
            f" | {middle('accepted'):.0f}"
            f" | {statistics.median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
            f" | {middle('p50_ms'):.1f} ms | {middle('p99_ms'):.1f} ms"
            f" | {middle('through'):.0f} | {middle('cpu_ms'):.2f} ms |"
        )


if __name__ == "__main__":
    sys.exit(main())
