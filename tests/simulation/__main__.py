"""`make simulate`: many worlds, on all cores; one line for each that went wrong.

A line has the seed, the commit, and what is violated: all that it takes to see it again; the last
one says what never came to pass in these worlds. Exit status 1 when anything was violated.
"""

import argparse
import subprocess
import sys

from tests.simulation import chosen_worlds, coverage
from tests.simulation.run import Outcome, play, run


def main() -> int:
    """Play; return the exit status."""
    parser = argparse.ArgumentParser(prog="simulate")
    parser.add_argument("--seeds", type=int, default=200, help="how many worlds")
    parser.add_argument("--seed0", type=int, default=0, help="the first one's seed")
    parser.add_argument("--seed", type=int, help="one world")
    parser.add_argument("--trace", action="store_true", help="show all that happens in it")
    parser.add_argument("--choose", action="store_true", help="note which worlds the tests play")
    options = parser.parse_args()
    if options.choose:
        unseen = chosen_worlds.choose()
        print(*(f"no world shows it: {name}" for name in unseen), sep="\n")
        return int(bool(unseen))
    if options.seed is not None:
        outcome = run(options.seed, keep_trace=options.trace)
        print(*outcome.trace, sep="\n")
        return _tell(outcome, _commit())
    seeds = range(options.seed0, options.seed0 + options.seeds)
    commit = _commit()
    played = play(seeds, tell=lambda outcome: _tell(outcome, commit))
    print(
        f"{len(seeds)} worlds from seed {seeds.start}, {played.submissions} submissions,"
        f" {played.deaths} deaths, {len(played.wrong)} wrong"
    )
    missed = coverage.never(played.reached)
    print(f"reached {len(coverage.WANTED) - len(missed)} of {len(coverage.WANTED)}", end="")
    print(f"; never: {', '.join(missed)}" if missed else "")
    return int(bool(played.wrong))


def _tell(outcome: Outcome, commit: str) -> int:
    if outcome.violations:
        more = f" (and {len(outcome.violations) - 1} more)" if outcome.violations[1:] else ""
        print(f"seed {outcome.seed}, commit {commit}: {outcome.violations[0]}{more}", flush=True)
    return int(bool(outcome.violations))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
