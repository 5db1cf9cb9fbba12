"""The bench of two versions runs, and judges as it says; its figures are for `make bench-versions`."""

import os
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench.versions import SLICES, Compared, Pair, Send, Version, pairs
from tests.support.long_tests import long

TOP = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("ratios", "is_slower"),
    [
        ([1.0, 1.02, 0.98, 1.01], False),
        ([1.02, 1.03, 1.03, 1.04], False),
        ([1.02, 1.05, 1.05, 1.06], True),
        ([0.9, 0.95, 1.2, 1.3], False),  # the median alone would be over its bound
        ([1.1], True),
    ],
)
def test_a_version_is_slower_if_the_median_and_the_lower_quartile_say_so(
    ratios: list[float], is_slower: bool
) -> None:
    compared = Compared("small", [Pair(2.0, 2.0 * ratio) for ratio in ratios])
    assert compared.is_slower is is_slower
    assert ("SLOWER" in str(compared)) is is_slower


def test_the_versions_alternate() -> None:
    old, new = (Version(name, TOP, TOP) for name in ("old", "new"))
    sent: list[tuple[str, int]] = []

    @contextmanager
    def running(version: Version) -> Iterator[Send]:
        def send(count: int) -> float:
            sent.append((version.name, count))
            return count * {"old": 0.002, "new": 0.003}[version.name]

        yield send

    given = Namespace(pairs=2, scale=0.04)
    found = list(pairs("sendmail", running, (old, new), given=given))
    turns = ["old", "new", "new", "old"] * (SLICES // 2)
    back = ["new", "old", "old", "new"] * (SLICES // 2)
    assert [name for name, _ in sent] == ["old", "new", *turns, "new", "old", *back]
    assert {count for _, count in sent} == {8, 20}  # to warm up; a slice
    assert [(pair.old_ms, pair.new_ms) for pair in found] == [pytest.approx((2, 3))] * 2


def versions(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOP / "tests" / "bench" / "run.sh", *words], env=os.environ | environment,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@long
def test_this_tree_and_a_commit_are_measured() -> None:
    done = versions("--pairs", "1", "--scale", "0.01", OLD="HEAD", WORKLOADS="sendmail")
    assert done.returncode in (0, 1), done.stderr  # so few messages say nothing
    lines = done.stdout.splitlines()
    assert lines[0].startswith("sendmail  pair  1: old ")
    assert lines[-1].split()[:2] == ["sendmail", "1"]
    trees = subprocess.run(["git", "worktree", "list"], cwd=TOP, capture_output=True, check=True)
    assert b"/versions-" not in trees.stdout
