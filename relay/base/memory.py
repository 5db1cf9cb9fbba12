"""The memory of this process: how malloc and the garbage collector keep what is free."""

import gc
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_OWN_PAGES_FROM_BYTES = 1 << 20
_KEPT_FREE_BYTES = 8 << 20  # keeps receive buffers in the heap
_COLLECT_AFTER = 50_000  # objects: with Python's 700, collection takes a tenth of the CPU


def limit_malloc_retention() -> None:
    """Make malloc return the memory of large messages to the system as soon as it is freed.

    glibc keeps blocks of up to 32 MiB for the next one, in each thread: several times the largest
    body. What is not glibc has no such call.
    """
    with suppress(Exception):  # not glibc, or forbidden by a sandbox: costs memory only
        import ctypes  # noqa: PLC0415 - a sandbox may forbid the import

        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_FROM_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES)


def tune_garbage_collector() -> None:
    """Exclude start-up objects from garbage collection, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def trim_memory(*, collect: bool = True) -> None:
    """Return freed memory to the system (malloc_trim(3)); `collect` looks for more.

    malloc gives back the end of its heap only: what a burst of mail took stays below one object
    that lives longer. Where nothing was freed, it costs a tenth of a millisecond.
    """
    if collect:
        gc.collect()
    with suppress(Exception):  # only glibc has this call
        import ctypes  # noqa: PLC0415 - a sandbox may forbid the import

        ctypes.CDLL(None).malloc_trim(0)
