"""What a long queue costs: memory, time to start, rates, fairness, syncs; each beside its bound.

    python -m tests.bench.queued                    everything, some ten minutes, 4 GB of disk
    SMALL=1 python -m tests.bench.queued            a twentieth of it
    python -m tests.bench.queued --only dead,fair --rounds 5

Every figure is a ratio, a growth or a bound on what people notice; it ends with 1 if one does not
hold. Load and hosts are on loopback, in processes of their own; the DNS is a real one.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.queued import dead, fair, million, syncs
from tests.bench.queued.figures import Figure
from tests.bench.queued.names import names
from tests.bench.queued.setting import Setting
from tests.bench.queued.spools import SPOOLS, fill_all
from tests.bench.queued.traffic import Sinks

SCENARIOS: dict[str, Callable[[Setting], Iterator[Figure]]] = {
    "million": million.measure,
    "dead": dead.measure,
    "fair": fair.measure,
    "syncs": syncs.measure,
}


def main() -> int:
    given = arguments()
    with tempfile.TemporaryDirectory(dir=given.directory, prefix="q") as name:
        folder = Path(name)
        with Sinks() as sinks, names() as dns:
            wanted = [spool for one in given.only for spool in SPOOLS.get(one, ())]
            setting = Setting(
                folder=folder, command=given.relay, sinks=sinks, dns=dns, scale=given.scale,
                rounds=given.rounds, filled=fill_all(given.filled or folder / "filled", wanted, given.scale),
            )  # fmt: skip
            found = []
            for scenario in given.only:
                for figure in SCENARIOS[scenario](setting):
                    found.append(figure)
                    print(f"{scenario:<8} {figure}", flush=True)
    over = [one for one in found if not one.holds]
    print(f"{len(found) - len(over)} of {len(found)} figures hold" if over else "all figures hold")
    return 1 if over else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = str(Path(sys.executable).parent / "relay")
    parser.add_argument("--relay", default=os.environ.get("RELAY", default), type=str.split)
    parser.add_argument("--only", default=list(SCENARIOS), type=lambda text: text.split(","))
    parser.add_argument("--rounds", type=int, default=3)
    small = 0.05 if os.environ.get("SMALL") else 1.0
    parser.add_argument("--scale", type=float, default=small, help="of the queues' lengths")
    parser.add_argument("--directory", default=None, help="on the disk to measure")
    parser.add_argument("--filled", type=Path, help="where filled spools are kept for the next run")
    given = parser.parse_args()
    if unknown := set(given.only) - set(SCENARIOS):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    return given


if __name__ == "__main__":
    sys.exit(main())
