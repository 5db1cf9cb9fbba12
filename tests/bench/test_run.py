"""make bench runs, and judges as it says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.side_by_side import BOUNDS, LATENCIES, PARTS, Found, lines, over_bounds
from tests.support.long_tests import long

RUN = Path(__file__).with_name("run.sh")
TOP = RUN.parents[2]
KIT = Path(os.environ.get("PEERS", TOP / "../shared/peers"))


def test_without_the_kit_it_says_so(tmp_path):
    environment = {"PATH": os.environ["PATH"], "PEERS": str(tmp_path / "none")}
    done = subprocess.run(
        ["sh", str(RUN)], env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 69
    assert done.stderr == f"bench: no benchmark kit in {tmp_path}/none; set PEERS to its folder\n"


@pytest.mark.parametrize(
    ("cpu", "duplicates", "faults"),
    [
        (0.52, 0, []),
        (0.521, 0, ["small: CPU for each message is 0.521 of Postfix's, over 0.52"]),
        (0.4, 2, ["small: 2 recipients got a message twice"]),
    ],
)
def test_a_workload_over_its_bound_is_named(cpu: float, duplicates: int, faults: list[str]) -> None:
    ours = {"through_per_s": [1, 2, 3], "cpu_ms_per_msg": [1, 2, 3], "commits_per_msg": [0, 0, 0]}
    ratio = {"through_per_s": [1, 1, 1], "cpu_ms_per_msg": [0.1, cpu, 0.9]}
    found: Found = {"small": {"relay": ours, "ratio": ratio, "duplicates": duplicates}}
    assert list(over_bounds(found)) == faults
    assert ("MISSED" in "\n".join(lines(found))) is (cpu > BOUNDS["small"])


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench.side_by_side", "--peers", str(KIT), *words]
    return subprocess.run(
        command, cwd=TOP, env=os.environ | {"TMPDIR": "/tmp"},  # paths of sockets are short
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


HAS_KIT = (KIT / "compare.py").exists() and Path("/usr/sbin/smtp-source").exists()


@long
def test_relay_alone_is_measured() -> None:
    """Without the benchmark kit, the parts that do not need it."""
    parts = "sendmail,syncs" + ",latency" * HAS_KIT
    done = bench("--rounds", "1", "--scale", "0.01", "--peer", "none", "--only", parts)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 16 | " in done.stdout
    if shutil.which("strace") and "not looked at" not in done.stderr:
        assert "sync before 250: 20 of 20 messages" in done.stdout
    if HAS_KIT:
        assert '"system": "relay"' in done.stdout
        assert "commits for each message" in done.stdout.splitlines()[-1]


@long
@pytest.mark.skipif(not HAS_KIT, reason="the benchmark kit or smtp-source is missing")
@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix needs root")
def test_relay_and_postfix_are_measured(tmp_path) -> None:
    kept = tmp_path / "figures.json"
    done = bench("--rounds", "1", "--scale", "0.01", "--keep", str(kept))
    assert done.returncode in (0, 1), done.stdout + done.stderr  # so few messages say nothing
    found = json.loads(kept.read_text())
    assert set(found) == {"machine", *PARTS} - {"syncs"}
    assert set(found["latency"]["postfix"]) == set(found["latency"]["relay"]) == set(LATENCIES)
