"""Which world shows each broken relay, as `python -m tests.simulation --broken` last noted it.

Tests play that world first. What is out of date costs them time and nothing else: the others follow.
"""

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

from relay.clock import SystemClock
from relay.observe.logs import configure
from tests.simulation.broken import BROKEN, Broken
from tests.simulation.run import run
from tests.simulation.scenario import make

_NOTED = Path(__file__).with_suffix(".json")  # names of broken relays to seeds


def first_world(broken: Broken) -> int | None:
    """Return the seed of the first of its worlds that shows what is broken."""
    for seed in _worlds(broken):
        violations = run(seed, variant=broken.broken).violations
        if any(broken.caught_by in line for line in violations):
            return seed
    return None


def _worlds(broken: Broken) -> Iterator[int]:
    noted = json.loads(_NOTED.read_text()).get(broken.name)
    if noted is not None and broken.where(make(noted)):
        yield noted
    yield from broken.worlds


def note() -> list[str]:
    """Note the worlds anew, on all cores. Return the names of those that no world shows."""
    with multiprocessing.get_context("spawn").Pool(initializer=_without_log) as pool:
        seeds = pool.map(_first_world, range(len(BROKEN)), chunksize=1)
    found = {broken.name: seed for broken, seed in zip(BROKEN, seeds, strict=True)}
    _NOTED.write_text(json.dumps(found, indent=1) + "\n")
    return [name for name, seed in found.items() if seed is None]


def _without_log() -> None:
    configure("logfmt", clock=SystemClock(), descriptor=os.open(os.devnull, os.O_WRONLY))


def _first_world(number: int) -> int | None:
    return first_world(BROKEN[number])  # which cannot be passed between processes
