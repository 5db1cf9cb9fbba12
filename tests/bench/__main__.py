"""One of the benches, with its own arguments: `python -m tests.bench NAME ...`, or `make bench ARGS="NAME ..."`.

Without a name: Relay and Postfix side by side, all parts, and then the long queue.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.bench.side_by_side import python_build

RUN = str(Path(__file__).with_name("run.sh"))
BENCHES = {
    "peers": [RUN],
    "versions": [RUN, "versions"],
    "nodes": [RUN, "nodes"],
    "mail": [sys.executable, "-m", "tests.bench.sendmail"],
    "queue": [sys.executable, "-m", "tests.bench.queued"],
    "calls": [sys.executable, "-m", "tests.bench.calls"],
}


def main(arguments: list[str]) -> int:
    """Return the exit code of the first bench that fails, or 0."""
    if not arguments:
        return main(["peers"]) or main(["queue"])
    if arguments[0].startswith("-"):
        return main(["peers", *arguments])
    name, *rest = arguments
    if name not in BENCHES:
        print(f"bench: no bench {name}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 64
    environment = os.environ | {"VENV": sys.prefix}
    return subprocess.run([*BENCHES[name], *rest], env=environment, check=False).returncode


if __name__ == "__main__":
    if python_build().endswith("without PGO"):
        build = f"bench: Python {python_build()}: it takes up to a sixth more than one with PGO"
        print(f"{build}, such as Debian's python3 with python3-venv", file=sys.stderr)
    sys.exit(main(sys.argv[1:]))
