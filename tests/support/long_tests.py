"""Which tests `make test` leaves to `make test-long`: what takes long and rarely finds more.

A test or a parameter with the mark `long` runs only there. A table of many similar cases has a short
version: `make test` runs a part of them, the same each time.
"""

from collections.abc import Iterable
from typing import Any

import pytest

long = pytest.mark.long


def sampled(cases: Iterable[Any], *, one_of: int = 3) -> list[Any]:
    """Parameters of a test: the first of every `one_of` cases always runs, the others are long.

    A tuple is a case of several parameters. Take an `one_of` by which the number of values of no
    parameter of a product can be divided, and each value runs with different values of the others.
    """
    return [
        pytest.param(*(case if isinstance(case, tuple) else [case]), marks=long)
        if number % one_of
        else case
        for number, case in enumerate(cases)
    ]
