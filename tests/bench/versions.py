"""Does this version take more processor time for a message than an older one? Both on one machine.

    make bench-versions OLD=HEAD~20                                 six workloads, ten pairs each
    make bench-versions OLD=v1 WORKLOADS="small sendmail" ARGS="--pairs 20 --scale 1"
    python -m tests.bench.versions --old HEAD --workloads sendmail  needs neither root nor the kit

OLD is checked out into a temporary directory. It runs with the packages of this environment, or in
an environment of its own if its pyproject.toml asks for other ones. A round starts one version with
an empty spool, warms it up and measures it; rounds alternate (old new, new old, ...), so that one
relay runs at a time and other load of the machine meets both. Each version has its own `policies`;
the configuration is that of this tree. A ratio is new / old of two neighbouring rounds.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

from tests.bench import sendmail

TOP = Path(__file__).resolve().parents[2]
SMTP_WORKLOADS = ("small", "fresh", "large", "fanout", "burst")  # those of the kit
WORKLOADS = (*SMTP_WORKLOADS, "sendmail")
SENDMAIL = SimpleNamespace(messages=2000, clients=8)
MEDIAN_MOST = 1.03
QUARTILE_MOST = 1.00
WARM_SHARE = 0.1
ROUND_S = 300.0
REST_S = 0.4  # without work for so long, a relay has finished what it was sent
REST_CPU_S = 0.02


@dataclass(frozen=True)
class Version:
    """`command` is an executable that runs the `relay` command of `tree`."""

    name: str
    tree: Path
    command: Path


@dataclass(frozen=True)
class Pair:
    """The processor time per message of two neighbouring rounds, in milliseconds."""

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
                measure = measurement(workload, given, folder)
                found.append(
                    Compared(workload, list(pairs(workload, measure, (old, new), given.pairs)))
                )
    print(f"\n{'workload':<9} pairs    old ms    new ms new/old (quartiles)")
    for compared in found:
        print(compared)
    return int(any(compared.is_slower for compared in found))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", required=True, metavar="COMMIT")
    parser.add_argument("--workloads", type=str.split, default=list(WORKLOADS))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--scale", type=float, default=0.5, help="of the full numbers of messages")
    parser.add_argument("--peers", help="folder of the benchmark kit, for all but sendmail")
    try:
        given = parser.parse_args()
    except SystemExit as error:
        sys.exit(os.EX_USAGE if error.code else 0)
    if unknown := set(given.workloads) - set(WORKLOADS):
        refuse(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    if given.pairs < 1 or not 0 < given.scale <= 1:
        refuse("--pairs must be at least 1, and --scale over 0 and at most 1")
    if not given.peers and set(given.workloads) & set(SMTP_WORKLOADS):
        refuse("these workloads need the benchmark kit: use make bench-versions, or give --peers")
    return given


def refuse(text: str, code: int = os.EX_USAGE) -> None:
    """Say what is wrong, and end."""
    print(f"bench-versions: {text}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def checked_out(commit: str, target: Path) -> Iterator[Path]:
    """Have a commit in a work tree of its own."""
    git = ["git", "-C", str(TOP)]
    done = subprocess.run(
        [*git, "worktree", "add", "--detach", "--quiet", str(target), f"{commit}^{{commit}}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
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
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if Path(imported.stdout.strip()) != tree / "relay" / "__init__.py":
        refuse(f"{tree} is not what runs: {imported.stdout}{imported.stderr}", os.EX_UNAVAILABLE)
    path = folder / f"relay-{tree.name}"
    path.write_text(f'#!/bin/sh\nexec env {command} -m relay "$@"\n')
    path.chmod(0o755)
    return path


def pairs(
    workload: str,
    measure: Callable[[Version], float],
    versions: tuple[Version, Version],
    count: int,
) -> Iterator[Pair]:
    """Measure both versions alternately; tell each pair."""
    for number in range(count):
        order = versions if number % 2 == 0 else versions[::-1]
        try:
            cpu_ms = {version.name: measure(version) for version in order}
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            refuse(f"{workload}: {error}", os.EX_UNAVAILABLE)
        pair = Pair(cpu_ms["old"], cpu_ms["new"])
        print(
            f"{workload:<9} pair {number + 1:>2}: old {pair.old_ms:.3f} ms,"
            f" new {pair.new_ms:.3f} ms, new/old {pair.ratio:.3f}",
            flush=True,
        )
        yield pair


def measurement(
    workload: str, given: argparse.Namespace, folder: Path
) -> Callable[[Version], float]:
    """Return what measures a round of a workload: the processor time per message, in ms."""
    if workload == "sendmail":
        count = max(1, int(SENDMAIL.messages * given.scale))
        return lambda version: sendmail_round(version, count, folder)
    sys.path.insert(0, given.peers)
    import compare  # the benchmark kit's

    load = compare.WORKLOADS[workload]
    fewest = load.sessions if load.domains == 1 else 1
    count = max(fewest, int(load.messages * given.scale))
    return lambda version: smtp_round(version, count, compare, workload=workload)


def smtp_round(version: Version, count: int, compare: ModuleType, *, workload: str) -> float:
    """Relay messages to the kit's sink."""
    load = compare.WORKLOADS[workload]
    with tempfile.TemporaryDirectory(prefix="version-") as name:
        accounts, template = Path(name, "accounts.toml"), Path(name, "relay.toml")
        accounts.touch(0o600)
        names = {"accounts": str(accounts), "policies": str(version.tree / "policies")}
        template.write_text(
            compare.fill((TOP / "tests" / "bench" / "relay.toml").read_text(), names)
        )
        start = f"{version.command} serve --config {{config}}"
        system = compare.System(version.name, start, str(template), {})
        try:
            system.round(load, max(1, int(count * WARM_SHARE)), ROUND_S)
            figures = system.round(load, count, ROUND_S)
        finally:
            system.stop()
    return float(figures["cpu_ms_per_msg"])


def sendmail_round(version: Version, count: int, folder: Path) -> float:
    """Send by Graph's sendMail to a captured recipient."""
    request = sendmail.request_bytes("json", sendmail.RECIPIENTS["capture"], 4096)
    with tempfile.TemporaryDirectory(dir=folder, prefix="sendmail-") as name:
        relay = sendmail.Relay(Path(name), str(version.command))
        try:
            relay.start()
            before_s = used_at_rest_s(relay, request, max(1, int(count * WARM_SHARE)))
            used_s = used_at_rest_s(relay, request, count) - before_s
        finally:
            relay.stop()
    return used_s * 1000 / count


def used_at_rest_s(relay: sendmail.Relay, request: bytes, count: int) -> float:
    """Send, and return the relay's processor time when it has nothing more to do."""
    relay.send(request, SENDMAIL.clients, count)
    relay.wait_until_sent()
    used_s = 0.0
    while (now_s := relay.cpu_s()) - used_s > REST_CPU_S:
        used_s = now_s
        time.sleep(REST_S)
    return now_s


if __name__ == "__main__":
    sys.exit(main())
