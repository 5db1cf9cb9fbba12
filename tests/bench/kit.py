"""How long a relay of the test kit takes: to start and stop, and for a message; and how long it takes
until a newcomer sees the first own mail.

    python -m tests.bench.kit               20 relays, one after the other
    python -m tests.bench.kit --relays 100

The first relay of the process loads the code and is shown on a line of its own. The aim is 50 ms for
the start and the stop of each further one, on an otherwise idle machine. The first own mail is that of
README.md, sent when `relay dev` is ready; it ends with 1 if the list does not show it within 10 s.
"""

import argparse
import contextlib
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.dev_process import DevProcess
from tests.support.relay_process import ROOT, until

AIM_MS = 50
FIRST_MAIL_S_MAX = 10.0


def timed(work: Callable[[], object]) -> float:
    """Return the milliseconds that `work` takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def main() -> int:
    """Measure, and print; return the exit status."""
    parser = argparse.ArgumentParser(description="How long a relay of the test kit takes.")
    parser.add_argument("--relays", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options.relays, Path(folder))
    took_s = first_mail_s()
    print(
        f"first own mail is listed {took_s:.1f} s after relay dev is ready (<= {FIRST_MAIL_S_MAX:g} s)"
    )
    return int(took_s > FIRST_MAIL_S_MAX)


def first_mail_s() -> float:
    """Return how long the first command of README.md takes until the page shows its mail."""
    readme = (ROOT / "README.md").read_text().partition("\n## Send a message\n")[2]
    block = re.search(r"^```\n(curl .*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert block is not None
    with contextlib.redirect_stderr(io.StringIO()), DevProcess() as relay:  # it shows its log
        began_s = time.perf_counter()
        port = relay.ready["http"][0].rpartition(":")[2]
        command = block[1].replace("127.0.0.1:8025", f"127.0.0.1:{port}")
        subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=60)
        until("the mail is listed", lambda: b">Hello<" in relay.request("GET", "/").body)
        return time.perf_counter() - began_s


def measure(count: int, ca_dir: Path) -> None:
    """Start and stop relays; send messages with each."""
    taken: dict[str, list[float]] = {}
    for number in range(count + 1):
        for name, took_ms in one_relay(ca_dir).items():
            if number:
                taken.setdefault(name, []).append(took_ms)
            else:
                print(f"first relay  {name:<28} {took_ms:8.1f} ms")
    for name, values in taken.items():
        values.sort()
        low, middle, high = values[0], statistics.median(values), values[-1]
        print(f"{count:>5} relays {name:<28} {middle:8.1f} ms  ({low:.1f} to {high:.1f})")
    both = statistics.median(
        start + stop for start, stop in zip(taken["start"], taken["stop"], strict=True)
    )
    print(f"start and stop: {both:.1f} ms (aim: {AIM_MS} ms)")


def one_relay(ca_dir: Path) -> dict[str, float]:
    """Return what each part takes."""
    relay = None

    def start() -> None:
        nonlocal relay
        from relay.testing import Relay

        relay = Relay(ca_dir=ca_dir)
        relay.__enter__()

    def send(**body: str) -> None:
        relay.send("alice@example.test", "bob@example.test", "Hello", **body)
        relay.mailbox("bob@example.test").wait_for(subject="Hello")

    return {
        "start": timed(start),
        "text, until it has arrived": timed(lambda: send(text="x")),
        "HTML, until it has arrived": timed(lambda: send(html="<p>x</p>")),
        "assert_no_more_mail": timed(lambda: relay.assert_no_more_mail(timeout=60)),
        "stop": timed(lambda: relay.__exit__(None, None, None)),
    }


if __name__ == "__main__":
    sys.exit(main())
