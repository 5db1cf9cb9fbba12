"""`relay dev` beside MailDev of npm, with the same messages: pages, memory, start, acceptance.

    make bench ARGS=pages                       10,000 messages, some ten minutes
    make bench ARGS="pages --messages 500"

Both keep their mail in a folder, and are loaded and asked one after the other, on loopback. MailDev's "page" is
what its script asks for, 50 summaries as JSON, of objects in memory; Relay's is the HTML of 50 rows, from
disk, hence the bounds of pages. CPU is that of all processes. Every value is Relay / MailDev; the bench ends
with 1 if one is over its bound.
"""

import argparse
import smtplib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.bench.queued.figures import Figure
from tests.support.ports import free_port
from tests.support.process_tree import tree, tree_cpu_s
from tests.support.relay_process import until

MOST = {"accept": 2.5, "first page": 8, "search": 5, "unread": 80}  # of others 1
SESSIONS, REQUESTS, WAIT_S, LEAST = 4, 20, 300.0, 0.1  # below LEAST a clock did not tick
RELAY = (
    "dev --no-demo --dir {folder} --smtp 127.0.0.1:{smtp} --http 127.0.0.1:{http}"
    " --https 127.0.0.1:0 --submission 127.0.0.1:0 --submissions 127.0.0.1:0"
)
RELAY_PAGES = (
    "/api/v1/messages?limit=1",
    {"first page": "/", "search": "/?q=parcel77", "unread": "/?q=is:unread"},
)
MAILDEV = "maildev@3.0.0"
MAILDEV_OPTIONS = (
    "--ip 127.0.0.1 --web-ip 127.0.0.1 --smtp {smtp} --web {http} --mail-directory {folder}/mail"
)
_LIST = "/api/email/summary?skip=0&limit=50&sort=desc"
MAILDEV_PAGES = (
    _LIST,
    {"first page": _LIST, "search": f"{_LIST}&search=parcel77", "unread": f"{_LIST}&unread=true"},
)
MAILDEV_JS = "node_modules/maildev/dist/bin/maildev.js"
CONTENT = """From: Shop <shop@example.com>
To: customer{n}@example.org
Subject: Order {n} has shipped
Message-ID: <order{n}@example.com>
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary=b

--b
Content-Type: text/plain

Thank you. Your parcel parcel{n} is on its way.
{text}
--b
Content-Type: text/html

<h1>Thank you</h1><p>Your parcel <b>parcel{n}</b> is on its way.<p>{text}
--b--
""".replace("\n", "\r\n")
TEXT = "It comes on a weekday, to the door, and needs no signature. " * 15


class Server:
    """One of the two, in a folder of its own."""

    def __init__(self, folder: Path, command: list[str], count: str, pages: dict[str, str]) -> None:
        """`command` has {folder}, {smtp} and {http}; `pages` are paths by name, and `count` that of an
        object with the `total` of messages.
        """
        self.command, self.count, self.pages = command, count, pages
        self.folder, self.smtp, self.http = folder, free_port(), free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.http}", trust_env=False)

    @contextmanager
    def started(self, messages: int) -> Iterator[float]:
        """Start it, wait until its page counts so many messages; yield how many seconds that took."""
        words = [one.format(**vars(self)) for one in self.command]
        with (self.folder / "log").open("ab") as log:
            began = time.monotonic()
            self.process = subprocess.Popen(words, cwd=self.folder, stdout=log, stderr=log)
            try:
                until(words[0], lambda: self.counted() == messages, timeout_s=WAIT_S)
                yield time.monotonic() - began
            finally:
                self.process.terminate()
                self.process.wait(30)

    def counted(self) -> int:
        try:
            return int(self.client.get(self.count, timeout=60).json()["total"])
        except httpx.TransportError:
            return -1

    def cpu_s(self, work: Callable[[], object]) -> float:
        before = tree_cpu_s(self.process.pid)
        work()
        return tree_cpu_s(self.process.pid) - before

    def accept(self, messages: int) -> None:
        """Send messages on kept connections, and wait until all are counted."""

        def send(numbers: range) -> None:
            with smtplib.SMTP("127.0.0.1", self.smtp, timeout=60) as session:
                for n in numbers:
                    content = CONTENT.format(n=n, text=TEXT)
                    session.sendmail("shop@example.com", [f"customer{n}@example.org"], content)

        with ThreadPoolExecutor(SESSIONS) as pool:
            list(pool.map(send, (range(n, messages, SESSIONS) for n in range(SESSIONS))))
        until("all are counted", lambda: self.counted() == messages, timeout_s=WAIT_S)

    def asked(self, path: str) -> tuple[float, float]:
        """Ask for a page some times; return CPU and median seconds of a request."""
        taken: list[float] = []

        def ask() -> None:
            for _ in range(REQUESTS):
                began = time.monotonic()
                assert self.client.get(path, timeout=60).status_code == 200
                taken.append(time.monotonic() - began)

        ask()  # warm
        return self.cpu_s(ask) / REQUESTS, statistics.median(taken[REQUESTS:])

    def memory_kib(self) -> int:
        """The proportional set size of all its processes."""
        rolled = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in tree(self.process.pid))
        return sum(int(one.partition("\nPss:")[2].split()[0]) for one in rolled)


def measured(server: Server, messages: int) -> dict[str, float]:
    """Return what it takes: milliseconds, and MiB."""
    found = {}
    with server.started(0):
        found["accept: CPU for each message"] = (
            server.cpu_s(lambda: server.accept(messages)) / messages * 1000
        )
    with server.started(messages) as start_s:
        found["start with them, until the first page"] = start_s * 1000
        for name, path in server.pages.items():
            cpu_s, wall_s = server.asked(path)
            found[f"{name}: CPU"], found[f"{name}: time"] = cpu_s * 1000, wall_s * 1000
        found["memory after them"] = server.memory_kib() / 1024
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pages") as name:
        top = Path(name)
        npm = ("npm", "install", "--prefix", name, "--no-audit", "--no-fund", "--loglevel=error")
        subprocess.run([*npm, MAILDEV], check=True, stdout=subprocess.DEVNULL)
        kept = f" --keep-messages {2 * given.messages}"
        relay = [str(Path(sys.executable).with_name("relay")), *f"{RELAY}{kept}".split()]
        maildev = ["node", str(top / MAILDEV_JS), *MAILDEV_OPTIONS.split()]
        made = []
        for words, (count, pages) in ((relay, RELAY_PAGES), (maildev, MAILDEV_PAGES)):
            (folder := top / str(len(made))).mkdir()
            made.append(measured(Server(folder, words, count, pages), given.messages))
    ours, theirs = made
    found = [
        Figure(
            one,
            ours[one] / max(theirs[one], LEAST),
            "",
            most=MOST.get(one.partition(":")[0], 1),
            note=f"{ours[one]:.2f}; MailDev {theirs[one]:.2f}",
        )
        for one in ours
    ]
    print(*found, sep="\n")
    return 0 if all(one.holds for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
