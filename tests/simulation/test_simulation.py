"""Worlds in which everything occurs, and worlds for relays that are broken: those must be found out."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation import coverage
from tests.simulation.broken import BROKEN, Broken
from tests.simulation.chosen_worlds import first_world, in_all_situations, in_reserve
from tests.simulation.run import run
from tests.support.long_tests import long, sampled

TOP = Path(__file__).parents[2]
SEEDS = in_all_situations()
FURTHER = sorted({*range(25), *in_reserve()} - {*SEEDS})
SLICE = 4
SLICES = tuple(range(0, len(SEEDS), SLICE))


@pytest.fixture(scope="session")
def reached(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder that all processes of this test run share; each slice writes one file."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if request.config.option.workers else own
    folder = shared / "reached-in-worlds"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("first", SLICES)
def test_the_invariants_hold_in_every_world(first: int, reached: Path) -> None:
    """The slice that ends last also checks that all slices together reach all of `coverage`."""
    played = [run(seed) for seed in SEEDS[first : first + SLICE]]
    part = reached / f"{first}.part"
    part.write_text(json.dumps(sum((one.reached for one in played), Counter())))
    part.rename(reached / f"{first}.json")
    slices = [json.loads(path.read_text()) for path in reached.glob("*.json")]
    if len(slices) == len(SLICES):
        missing = {*coverage.never(sum(map(Counter, slices), Counter()))}
        for seed in in_reserve():
            if missing:
                played.append(run(seed))
                missing -= (+played[-1].reached).keys()
        assert missing == set()
    assert [f"seed {one.seed}: {line}" for one in played for line in one.violations] == []


@long
@pytest.mark.parametrize("seed", FURTHER)
def test_the_invariants_hold_in_further_worlds(seed: int) -> None:
    assert run(seed).violations == []


@pytest.mark.parametrize("broken", sampled(BROKEN, one_of=8), ids=lambda broken: broken.name)
def test_a_broken_relay_is_found_out(broken: Broken) -> None:
    seed = first_world(broken)
    assert seed is not None, f"{broken.seeds} worlds, and nobody noticed: {broken.name}"


def test_the_same_seed_gives_the_same_run_in_every_process() -> None:
    mine = [run(seed).trace_hash for seed in (113, 207)]
    program = "from tests.simulation.run import run; print([run(s).trace_hash for s in (113, 207)])"
    command = [sys.executable, "-W", "ignore", "-c", program]
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(TOP)}
    reported = subprocess.run(
        command, cwd=TOP, env=environment, capture_output=True, text=True, check=True
    )
    assert str(mine) in reported.stdout
    assert len(set(mine)) == len(mine)
