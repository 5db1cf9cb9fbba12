"""Relay and Postfix side by side in one run, and sendMail: measured, judged, and kept for the docs.

    make bench ARGS="--only small,large --rounds 3"     some of the parts
    make bench ARGS="--keep figures.json"               the figures for docs/performance.md; all parts

The parts are the benchmark kit's workloads, in which both systems are warmed up and then loaded in turn
(A B, B A, ...); `latency`, an open loop with half of the rate that the slower system reaches in `small`,
where a latency begins at the time at which its message is due; and `sendmail`, Relay alone. A ratio
is Relay / Postfix of two neighbouring rounds.

Exit codes: 0; 1 if a workload takes more processor time for each message, as a ratio, than BOUNDS
allows, or if a recipient gets a message twice; 64 for wrong arguments; 69 if something could not be
measured.
"""

import argparse
import datetime as dt
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.bench import sendmail

TOP = Path(__file__).resolve().parents[2]
RELAY_TOML = TOP / "tests" / "bench" / "relay.toml"
BOUNDS = {"small": 1.1, "fresh": 1.1, "large": 0.8, "fanout": 0.8, "burst": 1.1}  # of any machine
PARTS = (*BOUNDS, "latency", "sendmail")
FIGURES = ("accept_per_s", "through_per_s", "cpu_ms_per_msg", "pss_mb")
WARM_SHARE = 0.1
ROUND_S = 300.0
LATENCIES = {
    f"{what}_{point}_ms": (f"{what}_ms", point)
    for what in ("accept", "deliver")
    for point in ("p50", "p99")
}
LATENCY_ROUNDS = 3
LATENCY_CONNECTIONS = 40
SENDMAIL_CLIENTS = (1, 16)
Found = dict[str, Any]


def main() -> int:
    """Measure, print, and judge."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped on the way out
    try:
        found = measured(given)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"bench: not measured: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    print("\n".join(["", *lines(found)]), flush=True)
    if given.keep:
        given.keep.write_text(json.dumps(found, indent=1) + "\n")
    faults = list(over_bounds(found))
    for fault in faults:
        print(f"bench: {fault}", file=sys.stderr)
    return int(bool(faults))


def measured(given: Namespace) -> Found:
    """Return the figures of all parts that are wanted."""
    found: Found = {"machine": machine(given)}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        template = write_template(Path(folder))
        systems = {"postfix": ("postfix", None)} if given.peer == "postfix" else {}
        systems["relay"] = (f"{given.relay} serve --config {{config}}", str(template))
        workloads = [one for one in BOUNDS if one in given.only]
        if "latency" in given.only and "small" not in workloads:
            workloads = ["small", *workloads]
        for name in workloads:
            found[name] = workload(name, systems, given)
        if "latency" in given.only:
            found["latency"] = latency(systems, given, rate=half_rate(found["small"]))
        if "sendmail" in given.only:
            found["sendmail"] = sendmail_rates(given)
    return found


def arguments() -> Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", required=True, help="folder of the benchmark kit")
    parser.add_argument("--relay", default=str(Path(sys.executable).parent / "relay"))
    parser.add_argument("--peer", default="postfix", choices=("postfix", "none"))
    parser.add_argument("--only", default=list(PARTS), type=lambda text: text.split(","))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of messages")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the figures as JSON")
    try:
        given = parser.parse_args()
        if unknown := set(given.only) - set(PARTS):
            parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
        if given.rounds < 1 or not 0 < given.scale <= 1:
            parser.error("--rounds must be at least 1, and --scale over 0 and at most 1")
        if given.keep and (set(given.only) != set(PARTS) or given.peer == "none"):
            parser.error("--keep needs all parts, and Postfix")
    except SystemExit as error:
        sys.exit(os.EX_USAGE if error.code else 0)
    sys.path.insert(0, given.peers)
    return given


def kit(name: str) -> ModuleType:
    """Return a module of the benchmark kit."""
    return import_module(name)


def machine(given: Namespace) -> Found:
    """Return what the figures depend on, apart from the code."""
    git = ["git", "-C", str(TOP), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    postfix = ""
    if given.peer == "postfix":
        command = ["/usr/sbin/postconf", "-d", "-h", "mail_version"]
        postfix = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    facts = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": commit,
        "python": python_build() if own_python(given.relay) else f"that of {given.relay}",
        "postfix": postfix,
        "log": tomllib.loads(RELAY_TOML.read_text())["observe"]["log"],
        "processors": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "rounds": given.rounds,
    }
    print("  ".join(f"{name}={value}" for name, value in facts.items()), flush=True)
    return facts


def own_python(relay: str) -> bool:
    """Return whether a relay command runs with this Python."""
    return Path(relay).resolve().parent == Path(sys.prefix, "bin").resolve()


def python_build() -> str:
    """Return the version of this Python, and how it was optimized, which is worth up to a sixth."""
    options, flags = (sysconfig.get_config_var(name) or "" for name in ("CONFIG_ARGS", "PY_CFLAGS"))
    if sys.base_prefix == "/usr":  # Debian uses PGO without leaving a trace of it
        how = "of the distribution"
    else:
        has_pgo = "--enable-optimizations" in options or "-fprofile-use" in flags
        how = f"built {'with' if has_pgo else 'without'} PGO"
    return f"{platform.python_version()}, {how}"


def write_template(folder: Path, tree: Path = TOP) -> Path:
    """Write the configuration of the relay, in which the kit fills in ports and the folder of a run."""
    accounts = folder / "accounts.toml"
    accounts.touch(0o600)
    text = RELAY_TOML.read_text()
    text = text.replace("{accounts}", str(accounts)).replace("{policies}", str(tree / "policies"))
    template = folder / "relay.toml"
    template.write_text(text)
    return template


def workload(name: str, systems: dict[str, tuple[str, str | None]], given: Namespace) -> Found:
    """Load all systems in turn; return the lowest, median and highest of each figure and ratio."""
    compare = kit("compare")
    load = compare.WORKLOADS[name]
    messages = max(1 if load.domains > 1 else load.sessions, int(load.messages * given.scale))
    rows: dict[str, list[dict[str, float]]] = {one: [] for one in systems}
    with ExitStack() as stack:
        running = {}
        for one, (start, template) in systems.items():
            running[one] = compare.System(one, start, template, {})
            stack.callback(running[one].stop)
            running[one].round(load, max(1, int(messages * WARM_SHARE)), ROUND_S)
        for number in range(given.rounds):
            for one in list(running)[:: -1 if number % 2 else 1]:
                before = commits(running[one])
                row = running[one].round(load, messages, ROUND_S)
                row["commits_per_msg"] = (commits(running[one]) - before) / messages
                rows[one].append(row)
                text = "  ".join(f"{figure}={value:.4g}" for figure, value in row.items())
                print(f"{name:<7} round {number + 1} {one:<8} {text}", flush=True)
    found: Found = {
        one: {figure: spread(row[figure] for row in some) for figure in FIGURES}
        for one, some in rows.items()
    }
    found["relay"]["commits_per_msg"] = spread(row["commits_per_msg"] for row in rows["relay"])
    found["duplicates"] = sum(row["duplicates"] for row in rows["relay"])
    if "postfix" in rows:
        pairs = list(zip(rows["relay"], rows["postfix"], strict=True))
        found["ratio"] = {
            figure: spread(
                ours[figure] / theirs[figure] for ours, theirs in pairs if theirs[figure]
            )
            for figure in FIGURES
        }
    return found


def commits(system: Any) -> float:
    """Return how often a relay's spool has committed; 0 for Postfix."""
    path = system.dir / "data" / "http.sock"
    if not path.exists():
        return 0.0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ROUND_S)
        connection.connect(str(path))
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    counted = re.search(r"^relay_commit_seconds_count (\S+)$", text, re.MULTILINE)
    assert counted is not None, text
    return float(counted[1])


def spread(values: Iterable[float]) -> list[float]:
    """Return the lowest, the median and the highest, with four digits."""
    some = sorted(values)
    return [float(f"{one:.4g}") for one in (some[0], statistics.median(some), some[-1])]


def half_rate(small: Found) -> int:
    """Return half of the messages per second that the slower system gets through."""
    rates = [small[one]["through_per_s"][1] for one in ("postfix", "relay") if one in small]
    return max(1, int(min(rates) / 2))


def latency(systems: dict[str, tuple[str, str | None]], given: Namespace, *, rate: int) -> Found:
    """Offer messages at a fixed rate, whatever the replies do; return percentiles in milliseconds."""
    measure = kit("latency").measure
    rows: dict[str, list[Found]] = {one: [] for one in systems}
    for number in range(min(given.rounds, LATENCY_ROUNDS)):
        for one in list(systems)[:: -1 if number % 2 else 1]:
            start, template = systems[one]
            how = Namespace(
                template=template, seconds=20 * given.scale, size=4096, width=LATENCY_CONNECTIONS
            )
            row = measure(one, start, rate, how)
            if row["failed"] or row["missing"]:
                raise RuntimeError(f"latency: {one} did not take or deliver all: {row}")
            print(f"latency round {number + 1} {json.dumps(row)}", flush=True)
            rows[one].append(row)
    found: Found = {
        one: {
            name: spread(row[what][point] for row in some)
            for name, (what, point) in LATENCIES.items()
        }
        for one, some in rows.items()
    }
    return {"per_s": rate, **found}


def sendmail_rates(given: Namespace) -> Found:
    """Measure Graph's sendMail with one client, and with some."""
    words = ["--relay", given.relay, "--clients", ",".join(map(str, SENDMAIL_CLIENTS))]
    words += ["--rounds", str(min(given.rounds, 3))]
    words += ["--messages", str(max(20, int(2000 * given.scale)))]
    found = sendmail.measured(sendmail.arguments(words))
    sendmail.show(found)
    return {
        str(clients): {
            figure: spread(vars(one)[figure] for one in some) for figure in vars(some[0])
        }
        for clients, some in found.items()
    }


def lines(found: Found) -> Iterator[str]:
    """The figures of the workloads: medians, and in parentheses the lowest and the highest."""
    for name in (one for one in BOUNDS if one in found):
        ours = found[name]["relay"]
        yield (
            f"{name:<8} {ours['through_per_s'][1]:>6.0f}/s through, {ours['cpu_ms_per_msg'][1]:.3f} ms"
            f" of CPU and {ours['commits_per_msg'][1]:.3f} commits for each message"
        )
        if "ratio" in found[name]:
            through, cpu = (
                found[name]["ratio"][one] for one in ("through_per_s", "cpu_ms_per_msg")
            )
            verdict = "MISSED" if cpu[1] > BOUNDS[name] else "holds"
            yield f"   Relay / Postfix: through {ratio_text(through)}, CPU {ratio_text(cpu)}"
            yield f"   bound of CPU: {BOUNDS[name]:.2f} {verdict}"


def ratio_text(values: Sequence[float]) -> str:
    """The median, with the lowest and the highest."""
    lowest, median, highest = values
    return f"{median:.2f} ({lowest:.2f} .. {highest:.2f})"


def over_bounds(found: Found) -> Iterator[str]:
    """Name each workload that takes too much processor time, or delivers twice."""
    for name, bound in BOUNDS.items():
        if name not in found:
            continue
        if duplicates := found[name]["duplicates"]:
            yield f"{name}: {duplicates:g} recipients got a message twice"
        if "ratio" in found[name]:
            median = found[name]["ratio"]["cpu_ms_per_msg"][1]
            if median > bound:
                yield f"{name}: CPU for each message is {median:.3f} of Postfix's, over {bound:.2f}"


if __name__ == "__main__":
    sys.exit(main())
