"""Does this version take more processor time for a message than an older one? Both on one machine.

    make bench ARGS="versions --old HEAD~20"                        seven workloads, ten pairs each
    make bench ARGS="versions --old v1 --workloads small,sendmail --pairs 20 --scale 1"
    python -m tests.bench versions --old HEAD --workloads sendmail  needs neither root nor the kit

The commit is checked out into a temporary directory. It runs with the packages of this environment, or in
an environment of its own if its pyproject.toml asks for other ones. For each pair both versions start
with empty spools, are warmed up, and get slices of the messages in turn (old new, new old, ...; the
next pair begins with new), so that one works at a time and other load of the machine meets both. The
processor time of a slice is that of the whole process tree. Two processes of one version differ by up
to 7 %, and a tick is 10 ms, so a few pairs decide nothing below that: compare HEAD with itself first,
and `python -m tests.bench calls` of both. Each version has its own `policies`; the configuration is
that of this tree.

Exit codes: 0, 1 if a workload's median is over 1.03 and its lower quartile over 1.00, 64 for wrong
arguments, 69 if something could not be measured.
"""

import argparse
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

from tests.bench import sendmail
from tests.bench.side_by_side import write_template

TOP = Path(__file__).resolve().parents[2]
SMTP_WORKLOADS = ("small", "fresh", "large", "fanout", "burst")  # those of the kit
GRAPH_WORKLOADS = ("sendmail", "keyed")  # keyed: each request with an Idempotency-Key
WORKLOADS = (*SMTP_WORKLOADS, *GRAPH_WORKLOADS)
SENDMAIL = SimpleNamespace(messages=2000, clients=8)
MEDIAN_MOST = 1.03
QUARTILE_MOST = 1.00
WARM_SHARE = 0.1
SLICES = 4
ROUND_S = 300.0
REST_S = 0.4  # without work for so long, a relay has finished what it was sent
REST_CPU_S = 0.02
Send = Callable[[int], float]  # sends so many messages, and returns the seconds of processor time


@dataclass(frozen=True)
class Version:
    """`command` is an executable that runs the `relay` command of `tree`."""

    name: str
    tree: Path
    command: Path


@dataclass(frozen=True)
class Pair:
    """The processor time per message of both versions, in milliseconds."""

    old_ms: float
    new_ms: float

    @property
    def ratio(self) -> float:
        return self.new_ms / self.old_ms


@dataclass(frozen=True)
class Compared:
    """All pairs of a workload."""

    workload: str
    pairs: Sequence[Pair]

    def quartiles(self) -> tuple[float, float, float]:
        """Return the lower quartile, the median and the upper quartile of the ratios."""
        ratios = [pair.ratio for pair in self.pairs]
        if len(ratios) == 1:
            return ratios[0], ratios[0], ratios[0]
        lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        return lower, median, upper

    @property
    def is_slower(self) -> bool:
        lower, median, _ = self.quartiles()
        return median > MEDIAN_MOST and lower > QUARTILE_MOST

    def __str__(self) -> str:
        lower, median, upper = self.quartiles()
        old_ms = statistics.median(pair.old_ms for pair in self.pairs)
        new_ms = statistics.median(pair.new_ms for pair in self.pairs)
        verdict = "SLOWER" if self.is_slower else "holds"
        return (
            f"{self.workload:<9} {len(self.pairs):>5} {old_ms:>9.3f} {new_ms:>9.3f}"
            f" {median:>7.3f} ({lower:.3f} .. {upper:.3f})  {verdict}"
        )


def main() -> int:
    """Measure, and print."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is removed on the way out
    with tempfile.TemporaryDirectory(prefix="versions-") as name:
        folder = Path(name)
        with checked_out(given.old, folder / "old") as tree:
            old = Version("old", tree, launcher(tree, folder, python_for(tree, folder / "python")))
            new = Version("new", TOP, launcher(TOP, folder, Path(sys.executable)))
            found = []
            for workload in given.workloads:
                if workload in GRAPH_WORKLOADS:
                    running = partial(sendmail_relay, is_keyed=workload == "keyed")
                else:
                    running = partial(smtp_relay, compare=kit(given), workload=workload)
                measured = pairs(workload, running, (old, new), given=given)
                found.append(Compared(workload, list(measured)))
    print(f"\n{'workload':<9} pairs    old ms    new ms new/old (quartiles)")
    for compared in found:
        print(compared)
    return int(any(compared.is_slower for compared in found))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", required=True, metavar="COMMIT")
    parser.add_argument("--workloads", type=lambda names: names.split(","), default=list(WORKLOADS))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--scale", type=float, default=0.5, help="of the full numbers of messages")
    parser.add_argument("--peers", help="folder of the benchmark kit, for those that come by SMTP")
    try:
        given = parser.parse_args()
    except SystemExit as error:
        sys.exit(os.EX_USAGE if error.code else 0)
    if unknown := set(given.workloads) - set(WORKLOADS):
        refuse(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    if given.pairs < 1 or not 0 < given.scale <= 1:
        refuse("--pairs must be at least 1, and --scale over 0 and at most 1")
    if not given.peers and set(given.workloads) & set(SMTP_WORKLOADS):
        refuse("these workloads need the benchmark kit: use make bench, or give --peers")
    return given


def refuse(text: str, code: int = os.EX_USAGE) -> None:
    """Say what is wrong, and end."""
    print(f"bench: {text}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def checked_out(commit: str, target: Path) -> Iterator[Path]:
    """Have a commit in a work tree of its own."""
    git = ["git", "-C", str(TOP)]
    done = subprocess.run(
        [*git, "worktree", "add", "--detach", "--quiet", str(target), f"{commit}^{{commit}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        refuse(f"{commit} cannot be checked out: {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(target)], check=True)


def python_for(tree: Path, folder: Path) -> Path:
    """Return this Python if a tree needs the same packages, or else make an environment for it."""
    if packages(tree) == packages(TOP):
        return Path(sys.executable)
    print("the old version needs other packages: installing them", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, *packages(tree)], check=False).returncode:
        refuse("its packages cannot be installed", os.EX_UNAVAILABLE)
    return python


def packages(tree: Path) -> list[str]:
    """Return the packages that a tree needs to run."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    return list(project["dependencies"])


def launcher(tree: Path, folder: Path, python: Path) -> Path:
    """Write an executable that runs the relay of a tree, wherever it is started."""
    command = f"PYTHONPATH={shlex.quote(str(tree))} {shlex.quote(str(python))} -P"
    imported = subprocess.run(
        ["sh", "-c", f"{command} -c 'import relay; print(relay.__file__)'"],
        capture_output=True,
        text=True,
        check=False,
    )
    if Path(imported.stdout.strip()) != tree / "relay" / "__init__.py":
        refuse(f"{tree} is not what runs: {imported.stdout}{imported.stderr}", os.EX_UNAVAILABLE)
    path = folder / f"relay-{tree.name}"
    path.write_text(f'#!/bin/sh\nexec env {command} -m relay "$@"\n')
    path.chmod(0o755)
    return path


def pairs(
    workload: str,
    running: Callable[[Version], AbstractContextManager[Send]],
    versions: tuple[Version, Version],
    *,
    given: argparse.Namespace,
) -> Iterator[Pair]:
    """Measure both versions alternately; tell each pair."""
    count, fewest = messages_of(workload, given)
    for number in range(given.pairs):
        order = versions if number % 2 == 0 else versions[::-1]
        try:
            used_s = both_used_s(running, order, count=count, fewest=fewest)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            refuse(f"{workload}: {error}", os.EX_UNAVAILABLE)
        sent = SLICES * max(fewest, count // SLICES)
        pair = Pair(used_s["old"] * 1000 / sent, used_s["new"] * 1000 / sent)
        print(
            f"{workload:<9} pair {number + 1:>2}: old {pair.old_ms:.3f} ms,"
            f" new {pair.new_ms:.3f} ms, new/old {pair.ratio:.3f}",
            flush=True,
        )
        yield pair


def both_used_s(
    running: Callable[[Version], AbstractContextManager[Send]],
    order: Sequence[Version],
    *,
    count: int,
    fewest: int,
) -> Counter[str]:
    """Start both, warm them up, and send to one after the other; return the processor time of each."""
    used_s: Counter[str] = Counter()
    with ExitStack() as stack:
        relays = {one.name: stack.enter_context(running(one)) for one in order}
        for version in order:
            relays[version.name](max(fewest, int(count * WARM_SHARE)))
        for number in range(SLICES):
            for version in order if number % 2 == 0 else order[::-1]:
                used_s[version.name] += relays[version.name](max(fewest, count // SLICES))
    return used_s


def messages_of(workload: str, given: argparse.Namespace) -> tuple[int, int]:
    """Return how many messages a pair sends to each version, and how many at least at once."""
    if workload in GRAPH_WORKLOADS:
        return int(SENDMAIL.messages * given.scale), SENDMAIL.clients
    load = kit(given).WORKLOADS[workload]
    return int(load.messages * given.scale), load.sessions if load.domains == 1 else 1


def kit(given: argparse.Namespace) -> ModuleType:
    """Return compare.py of the benchmark kit."""
    if given.peers not in sys.path:
        sys.path.insert(0, given.peers)
    import compare

    return compare


@contextmanager
def smtp_relay(version: Version, *, compare: ModuleType, workload: str) -> Iterator[Send]:
    """Run a relay whose messages come by SMTP and go to the kit's sink."""
    load = compare.WORKLOADS[workload]
    with tempfile.TemporaryDirectory(prefix="version-") as name:
        template = write_template(Path(name), version.tree)
        start = f"{version.command} serve --config {{config}}"
        system = compare.System(version.name, start, str(template), {})

        def send(count: int) -> float:
            figures = system.round(load, count, ROUND_S)
            return float(figures["cpu_ms_per_msg"]) * count / 1000

        try:
            yield send
        finally:
            system.stop()


@contextmanager
def sendmail_relay(version: Version, *, is_keyed: bool) -> Iterator[Send]:
    """Run a relay that gets Graph's sendMail; the recipient is captured."""
    request = sendmail.request_bytes(sendmail.RECIPIENTS["capture"], is_keyed=is_keyed)
    with sendmail.Relay(str(version.command)) as relay:

        def send(count: int) -> float:
            before_s = relay.cpu_s()
            relay.load(request, SENDMAIL.clients, count)
            relay.wait_until_sent()
            now_s = 0.0
            while (used_s := relay.cpu_s()) - now_s > REST_CPU_S:
                now_s = used_s
                time.sleep(REST_S)
            return used_s - before_s

        yield send


if __name__ == "__main__":
    sys.exit(main())
