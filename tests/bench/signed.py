"""What signatures cost: the same relay without keys, with an RSA key and with an Ed25519 key, in turn.

    make bench ARGS=signed                                    the rounds of make bench
    make bench ARGS="signed --rounds 3 --scale 0.5"

The load is that of the kit's workloads. A ratio is signed / unsigned of two neighbouring rounds.

Exit codes: 0; 1 if a bound is missed; 64 for wrong arguments; 69 if something could not be measured.
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from relay.signing.private_keys import new_key, write_pem
from tests.bench.side_by_side import ROUND_S, WARM_SHARE, write_template
from tests.bench.versions import kit

DOMAIN = "example.org"  # of the author of the kit's messages
KEYS = {"unsigned": None, "rsa": "rsa", "ed25519": "ed25519"}
Rows = dict[str, list[dict[str, float]]]


def main() -> int:
    """Measure, print, and judge."""
    given = arguments()
    print(f"{'workload':<9} {'key':<9} {'CPU, ratio':<22} {'messages/s, ratio':<22} CPU ms")
    small = measured("small", ("unsigned", "rsa", "ed25519"), given)
    large = measured("large", ("unsigned", "rsa"), given)
    more_ms = statistics.median(
        signed["cpu_ms_per_msg"] - plain["cpu_ms_per_msg"]
        for signed, plain in zip(large["rsa"], large["unsigned"], strict=True)
    )
    print(f"large, RSA: {more_ms:.1f} ms more CPU a message")
    checks = {
        "small, RSA: CPU at most 1.8": ratio(small, "rsa", "cpu_ms_per_msg") <= 1.8,
        "small, RSA: messages/s at least 0.8": ratio(small, "rsa", "through_per_s") >= 0.8,
        "small, Ed25519: CPU at most 1.25": ratio(small, "ed25519", "cpu_ms_per_msg") <= 1.25,
        "large, RSA: at most 15 ms more": more_ms <= 15.0,
    }
    for text, holds in checks.items():
        print(f"{'holds ' if holds else 'MISSED'} {text}")
    return int(not all(checks.values()))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--relay", required=True, help="the command to measure")
    parser.add_argument("--peers", required=True, help="folder of the benchmark kit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the full numbers of messages")
    return parser.parse_args()


def ratios(rows: Rows, key: str, figure: str) -> list[float]:
    """Return signed / unsigned of each round."""
    pairs = zip(rows[key], rows["unsigned"], strict=True)
    return [signed[figure] / plain[figure] for signed, plain in pairs]


def ratio(rows: Rows, key: str, figure: str) -> float:
    """Return the median of signed / unsigned."""
    return statistics.median(ratios(rows, key, figure))


def measured(workload: str, keys: tuple[str, ...], given: argparse.Namespace) -> Rows:
    """Load the relays in turn, and print a line for each key."""
    compare: Any = kit(given)
    load = compare.WORKLOADS[workload]
    messages = max(load.sessions, int(load.messages * given.scale))
    rows: Rows = {key: [] for key in keys}
    with ExitStack() as stack:
        running = {}
        for key in keys:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="signed-")))
            start = f"{given.relay} serve --config {{config}}"
            running[key] = compare.System(key, start, str(template(folder, key)), {})
            stack.callback(running[key].stop)
            running[key].round(load, max(load.sessions, int(messages * WARM_SHARE)), ROUND_S)
        for number in range(given.rounds):
            for key in keys[:: -1 if number % 2 else 1]:
                rows[key].append(running[key].round(load, messages, ROUND_S))
    for key in keys:
        cpu, speed = (ratios(rows, key, one) for one in ("cpu_ms_per_msg", "through_per_s"))
        cpu_ms = statistics.median(one["cpu_ms_per_msg"] for one in rows[key])
        print(
            f"{workload:<9} {key:<9} {spread(cpu):<22} {spread(speed):<22} {cpu_ms:.2f}", flush=True
        )
    return rows


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def template(folder: Path, key: str) -> Path:
    """Write the configuration of the relay with a new key, or without one."""
    made = write_template(folder)
    kind = KEYS[key]
    if kind is not None:
        file = folder / "key.pem"
        file.touch(0o600)
        file.write_bytes(write_pem(new_key(kind)))
        entry = f'\n[[dkim]]\ndomain = "{DOMAIN}"\nselector = "s1"\nkey = "{file}"\n'
        made.write_text(made.read_text() + entry)
    return made


if __name__ == "__main__":
    sys.exit(main())
