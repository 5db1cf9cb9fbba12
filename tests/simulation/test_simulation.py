"""Two hundred worlds, and worlds for relays that are broken: those must be found out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import coverage
from tests.simulation.broken import BROKEN, Broken
from tests.simulation.run import play, run

TOP = Path(__file__).parents[2]
SEEDS = 200


def test_the_invariants_hold_in_every_world_and_all_comes_to_pass_that_may() -> None:
    played = play(range(SEEDS))
    assert [f"seed {one.seed}: {line}" for one in played.wrong for line in one.violations] == []
    assert coverage.never(played.reached) == []


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_relay_is_found_out(broken: Broken) -> None:
    for seed in broken.worlds:
        found = run(seed, variant=broken.broken).violations
        if any(broken.caught_by in line for line in found):
            return
    raise AssertionError(f"{broken.seeds} worlds, and nobody noticed: {broken.name}")


def test_the_same_seed_gives_the_same_run_in_every_process() -> None:
    mine = [run(seed).trace_hash for seed in range(3)]
    program = "from tests.simulation.run import run; print([run(s).trace_hash for s in range(3)])"
    command = [sys.executable, "-W", "ignore", "-c", program]
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TOP)}
        told = subprocess.run(
            command, cwd=TOP, env=environment, capture_output=True, text=True, check=True
        )
        assert str(mine) in told.stdout
    assert len(set(mine)) == len(mine)
