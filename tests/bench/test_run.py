"""The benches of `make bench` run, and judge as they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.calls import WORKLOADS, measured
from tests.bench.side_by_side import LATENCIES, PARTS, Found, lines, over_bounds
from tests.bench.versions import Compared, Pair
from tests.support.long_tests import long
from tests.support.tables import each_row

RUN = Path(__file__).with_name("run.sh")
TOP = RUN.parents[2]
KIT = Path(os.environ.get("PEERS", TOP / "../shared/peers"))


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        cwd=TOP,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_without_the_kit_or_the_bench_it_says_so(tmp_path):
    assert run(sys.executable, "-m", "tests.bench", "post").returncode == 64
    done = run("sh", RUN, PEERS=str(tmp_path / "none"))
    assert done.returncode == 69
    assert done.stderr == f"bench: no benchmark kit in {tmp_path}/none; set PEERS to its folder\n"


@each_row(
    "cpu, duplicates, faults",
    [
        (1.1, 0, []),
        (1.101, 0, ["small: CPU for each message is 1.101 of Postfix's, over 1.10"]),
        (0.4, 2, ["small: 2 recipients got a message twice"]),
    ],
)
def test_a_workload_over_its_bound_is_named(cpu: float, duplicates: int, faults: list[str]) -> None:
    ours = {"through_per_s": [1, 2, 3], "cpu_ms_per_msg": [1, 2, 3], "commits_per_msg": [0, 0, 0]}
    ratio = {"through_per_s": [1, 1, 1], "cpu_ms_per_msg": [0.1, cpu, 1.9]}
    found: Found = {"small": {"relay": ours, "ratio": ratio, "duplicates": duplicates}}
    assert list(over_bounds(found)) == faults
    assert ("MISSED" in "\n".join(lines(found))) is ("CPU" in str(faults))


@each_row(
    "ratios, is_slower",
    [
        ([1.02, 1.03, 1.03, 1.04], False),
        ([1.02, 1.05, 1.05, 1.06], True),
        ([0.9, 0.95, 1.2, 1.3], False),  # the median alone would be over its bound
    ],
)
def test_a_version_is_slower_if_the_median_and_the_lower_quartile_say_so(
    ratios: list[float], is_slower: bool
) -> None:
    compared = Compared("small", [Pair(2.0, 2.0 * ratio) for ratio in ratios])
    assert compared.is_slower is is_slower


@pytest.mark.skipif(
    sys.platform != "linux", reason="the SMTP sessions have no process of their own"
)
@each_row("name", list(WORKLOADS))
def test_no_work_by_message_or_recipient_has_crept_in(name: str) -> None:
    calls = measured(WORKLOADS[name], messages=40)
    assert "relay/transport/ingress/acceptance.py: Acceptance.accept" in calls.loop
    assert calls.in_loop <= WORKLOADS[name].bound, f"{calls}\n{calls.table(40)}"


HAS_KIT = (KIT / "compare.py").exists() and Path("/usr/sbin/smtp-source").exists()


@long
@pytest.mark.skipif(not HAS_KIT, reason="the benchmark kit or smtp-source is missing")
@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix needs root")
def test_relay_and_postfix_are_measured(tmp_path) -> None:
    kept = tmp_path / "figures.json"
    bench = (sys.executable, "-m", "tests.bench.side_by_side", "--peers", KIT, "--keep", kept)
    done = run(*bench, "--rounds", "1", "--scale", "0.01", TMPDIR="/tmp")  # of short paths
    assert done.returncode in (0, 1), done.stdout + done.stderr  # so few messages say nothing
    found = json.loads(kept.read_text())
    assert set(found) == {"machine", *PARTS}
    assert set(found["latency"]["postfix"]) == set(found["latency"]["relay"]) == set(LATENCIES)


@long
def test_this_tree_and_a_commit_are_measured() -> None:
    few = ("--pairs", "1", "--scale", "0.01", "--workloads", "sendmail")
    done = run(sys.executable, "-m", "tests.bench", "versions", "--old", "HEAD", *few)
    assert done.returncode in (0, 1), done.stderr  # so few messages say nothing
    lines = done.stdout.splitlines()
    assert lines[0].startswith("sendmail  pair  1: old ")
    assert lines[-1].split()[:2] == ["sendmail", "1"]
    assert "/versions-" not in run("git", "worktree", "list").stdout


@long
@pytest.mark.skipif(not HAS_KIT, reason="the benchmark kit or smtp-source is missing")
def test_one_relay_and_nodes_are_measured(postgres_server) -> None:
    few = ("--peers", KIT, "--rounds", "1", "--scale", "0.01")
    done = run(sys.executable, "-m", "tests.bench.nodes", *few, TMPDIR="/tmp")
    assert done.stdout.count(" of PostgreSQL ") == 6, done.stderr
