"""Which worlds the tests play, as `python -m tests.simulation --choose` last noted them.

`in_all_situations()` are few worlds in which all of `coverage` occurs, most of it in two of them or
more. For a broken relay it is the world that shows what is broken: tests play that one first, and if
it is out of date the others follow.
"""

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.simulation.broken import BROKEN, Broken
from tests.simulation.coverage import WANTED
from tests.simulation.run import run
from tests.simulation.scenario import make

_NOTED = Path(__file__).with_suffix(".json")
_SITUATIONS, _BROKEN = "all situations", "broken"
_SEEDS = 350  # from which the worlds are chosen
_TIMES = 3  # a change of the code gives most worlds another course


def in_all_situations() -> list[int]:
    """Return the seeds of these worlds, in order."""
    return sorted(_noted()[_SITUATIONS])


def first_world(broken: Broken) -> int | None:
    """Return the seed of the first of its worlds that shows what is broken."""
    for seed in _worlds(broken):
        violations = run(seed, variant=broken.broken).violations
        if any(broken.caught_by in line for line in violations):
            return seed
    return None


def _worlds(broken: Broken) -> Iterator[int]:
    noted = _noted()[_BROKEN].get(broken.name)
    if noted is not None and broken.where(make(noted)):
        yield noted
    yield from broken.worlds


def _noted() -> dict[str, Any]:
    return dict(json.loads(_NOTED.read_text()))


def choose() -> list[str]:
    """Choose the worlds anew, on all cores. Return what no world shows."""
    with multiprocessing.get_context("spawn").Pool() as pool:
        reached = dict(enumerate(pool.imap(_reached, range(_SEEDS))))
        seeds = pool.map(_first_world, range(len(BROKEN)), chunksize=1)
    found = {broken.name: seed for broken, seed in zip(BROKEN, seeds, strict=True)}
    chosen = {_SITUATIONS: _few(reached, WANTED), _BROKEN: found}
    _NOTED.write_text(json.dumps(chosen, indent=1) + "\n")
    never = [word for word in WANTED if not any(word in words for words in reached.values())]
    return [*never, *(name for name, seed in found.items() if seed is None)]


def _few(reached: Mapping[int, frozenset[str]], wanted: Sequence[str]) -> list[int]:
    """Return the keys of few sets that have each word _TIMES, or as often as it occurs.

    It takes the set with the most words that are still missing, until none is.
    """
    occurring = Counter(word for words in reached.values() for word in words)
    missing = Counter({word: min(_TIMES, occurring[word]) for word in wanted})
    left = dict(reached)
    chosen = []
    while missing := +missing:
        best = max(left, key=lambda seed: sum(word in missing for word in left[seed]))
        missing.subtract(missing.keys() & left.pop(best))
        chosen.append(best)
    return sorted(chosen)


def _reached(seed: int) -> frozenset[str]:
    return frozenset(word for word, count in run(seed).reached.items() if count)


def _first_world(number: int) -> int | None:
    return first_world(BROKEN[number])  # which cannot be passed between processes
