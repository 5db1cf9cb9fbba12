"""Which worlds the tests play, as `python -m tests.simulation --choose` last noted them.

`in_all_situations()` are few short worlds in which all of `coverage` occurs. For a broken relay it is
the world that shows what is broken. A change of the code gives most worlds another course: what then
is missing is looked for in `in_reserve()`, and in the other worlds for that broken relay.
"""

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.simulation.broken import BROKEN, Broken
from tests.simulation.coverage import WANTED
from tests.simulation.run import run
from tests.simulation.scenario import make

_NOTED = Path(__file__).with_suffix(".json")
_SITUATIONS, _RESERVE, _BROKEN = "all situations", "in reserve", "broken"
_SEEDS = 350  # from which the worlds are chosen
_TIMES = 3  # that all of it occurs in these worlds and in those in reserve


@dataclass(frozen=True)
class _Played:
    words: frozenset[str]
    duration_s: float


def in_all_situations() -> list[int]:
    """Return the seeds of these worlds, in order."""
    return list(_noted()[_SITUATIONS])


def in_reserve() -> list[int]:
    """Return the seeds of more such worlds, in order."""
    return list(_noted()[_RESERVE])


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
        played = dict(enumerate(pool.imap(_play, range(_SEEDS))))
        seeds = pool.map(_first_world, range(len(BROKEN)), chunksize=1)
    found = {broken.name: seed for broken, seed in zip(BROKEN, seeds, strict=True)}
    few = _few(played, WANTED, times=1)
    reserve = [seed for seed in _few(played, WANTED, times=_TIMES) if seed not in few]
    chosen = {_SITUATIONS: few, _RESERVE: reserve, _BROKEN: found}
    _NOTED.write_text(json.dumps(chosen, indent=1) + "\n")
    never = [word for word in WANTED if not any(word in one.words for one in played.values())]
    return [*never, *(name for name, seed in found.items() if seed is None)]


def _few(played: Mapping[int, _Played], wanted: Sequence[str], *, times: int) -> list[int]:
    """Return the seeds of few short worlds that have each word `times`, or as often as it occurs.

    It takes the world with the most words a second that are still missing, until none is; then the
    longest first, it leaves out those of whose words the others have enough.
    """
    occurring = Counter(word for one in played.values() for word in one.words)
    missing = Counter({word: min(times, occurring[word]) for word in wanted})
    left = dict(played)
    chosen = []
    while missing := +missing:
        best = max(left, key=lambda s: len(missing.keys() & left[s].words) / left[s].duration_s)
        missing.subtract(missing.keys() & left.pop(best).words)
        chosen.append(best)
    spare = Counter(word for seed in chosen for word in played[seed].words & {*wanted})
    spare.subtract({word: min(times, occurring[word]) for word in spare})
    for seed in sorted(chosen, key=lambda s: played[s].duration_s, reverse=True):
        words = played[seed].words & {*wanted}
        if all(spare[word] for word in words):
            spare.subtract(words)
            chosen.remove(seed)
    return sorted(chosen)


def _play(seed: int) -> _Played:
    started = time.process_time()
    reached = run(seed).reached
    return _Played(frozenset(+reached), time.process_time() - started)


def _first_world(number: int) -> int | None:
    return first_world(BROKEN[number])  # which cannot be passed between processes
