"""How long a relay of the test kit takes: to start and stop, and for a message.

    tests/bench/kit.py                      20 relays, one after the other
    tests/bench/kit.py --relays 100

The first relay of the process loads the code and is shown on a line of its own. The aim is 50 ms for
the start and the stop of each further one, on an otherwise idle machine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

AIM_MS = 50


def timed(work: Callable[[], object]) -> float:
    """Return the milliseconds that `work` takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="How long a relay of the test kit takes.")
    parser.add_argument("--relays", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options.relays, Path(folder))


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
    main()
