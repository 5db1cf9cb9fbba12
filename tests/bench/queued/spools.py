"""The spools that the scenarios need, filled before anything is measured.

Two are filled at a time, each in a process of its own. Raises SpoolError.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from relay.store.spool.sqlite.migrate import SCHEMA_VERSION
from tests.bench.queued import dead, fair, million
from tests.bench.queued.filling import Queued, fill
from tests.bench.queued.names import DEAD
from tests.bench.queued.setting import Filled

ENTRIES, BULK = 200_000, 100_000
# scenario -> the spools that it needs
SPOOLS = {"million": ("million",), "dead": ("tried", "untried"), "fair": ("slow", "many", "local")}


def fill_all(folder: Path, wanted: list[str], scale: float) -> dict[str, Filled]:
    """Fill the spools that are wanted and not in `folder` yet, two at a time."""
    folder.mkdir(exist_ok=True)
    began_s = time.monotonic()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        places = {name: folder / f"{name}-{SCHEMA_VERSION}-{scale:g}" for name in wanted}
        made = {name: pool.submit(fill_one, place, name, scale) for name, place in places.items()}
        filled = {name: Filled(places[name], one.result()) for name, one in made.items()}
    size = sum(one.path.stat().st_size for one in filled.values())
    took_s = time.monotonic() - began_s
    print(f"filled: {', '.join(wanted) or 'nothing'}; {size / 1e6:.0f} MB in {took_s:.0f} s")
    return filled


def fill_one(path: Path, name: str, scale: float) -> float:
    """Fill one spool, if it is not there; return the time its times are from."""
    note = path.with_name(path.name + ".made")  # written when it is whole
    if not note.exists():
        path.unlink(missing_ok=True)
        note.write_text(repr(fill(path, queue(name, scale))))
    return float(note.read_text())


def queue(name: str, scale: float) -> Iterator[Queued]:
    """What is in the spool of this name."""
    match name:
        case "million":
            return million.queue(int(ENTRIES * scale))
        case "tried":
            return dead.tried(int(DEAD * scale))
        case "untried":
            return dead.untried(int(DEAD * scale))
        case _:
            return fair.bulk(name, int(BULK * scale))
