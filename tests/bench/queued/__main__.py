"""What a long queue costs: memory, time to start, rates; each beside its bound.

    python -m tests.bench.queued                    some five minutes, 2 GB of disk
    SMALL=1 python -m tests.bench.queued            a twentieth of it

Every figure is a ratio, a growth or a bound on what people notice; it ends with 1 if one does not
hold. Load and hosts are on loopback, in a process of their own; the DNS is a real one.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.bench.queued import million
from tests.bench.queued.filling import fill
from tests.bench.queued.setting import Setting, zone
from tests.bench.queued.traffic import Sinks
from tests.support.dns_server import DnsThread

ENTRIES = 200_000


def main() -> int:
    given = arguments()
    tempfile.tempdir = given.directory
    with tempfile.TemporaryDirectory(prefix="q") as name:
        filled = Path(name) / "filled"
        made_us = fill(filled, million.queue(int(ENTRIES * given.scale)))
        with Sinks() as sinks, DnsThread(zone()) as dns:
            setting = Setting(
                sinks=sinks,
                dns=dns.address,
                scale=given.scale,
                rounds=given.rounds,
                filled=filled,
                made_us=made_us,
            )
            found = []
            for figure in million.measure(setting):
                found.append(figure)
                print(figure, flush=True)
    over = [one for one in found if not one.holds]
    print(f"{len(found) - len(over)} of {len(found)} figures hold" if over else "all figures hold")
    return 1 if over else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    small = 0.05 if os.environ.get("SMALL") else 1.0
    parser.add_argument("--scale", type=float, default=small, help="of the queue's length")
    parser.add_argument("--directory", default=None, help="on the disk to measure")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
