"""A table of cases in one test: as @pytest.mark.parametrize, but one test for all rows.

    @each_row("text, expected", [("1h", 3600), ("2m", 120)])
    def test_durations(text: str, expected: int) -> None: ...

Each row that fails is named. The rows share what the fixtures made: take it for decisions that leave
nothing behind. Rows with the mark `long` are a test of their own with this mark.
"""

import contextlib
import functools
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.support.long_tests import long


def each_row(names: str, table: Iterable[Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function, or a coroutine, that takes the values of a row under `names`."""
    keys = [one.strip() for one in names.split(",")]
    short: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for row in table:
        has_marks = hasattr(row, "marks")  # of pytest.param
        values = row.values if has_marks else row if len(keys) > 1 else (row,)
        is_long = has_marks and long in row.marks
        (rest if is_long else short).append(dict(zip(keys, values, strict=True)))
    cases = [pytest.param(short, id="rows")] if short else []
    cases += [pytest.param(rest, id="long", marks=long)] if rest else []
    assert cases, "a table has rows"
    return lambda check: pytest.mark.parametrize("rows", cases)(_of_all(check, keys))


def rows_of(table: str) -> list[tuple[str, ...]]:
    """The rows of a table of texts: a line each, its values between " | "."""
    lines = table.strip().splitlines()
    return [tuple(value.strip() for value in line.split(" | ")) for line in lines]


def _of_all(check: Callable[..., Any], keys: list[str]) -> Callable[..., Any]:
    def test(rows: list[dict[str, Any]], **fixtures: Any) -> None:
        with _failures() as failures:
            for row in rows:
                with failures(row):
                    check(**row, **fixtures)

    async def coroutine(rows: list[dict[str, Any]], **fixtures: Any) -> None:
        with _failures() as failures:
            for row in rows:
                with failures(row):
                    await check(**row, **fixtures)

    made = coroutine if inspect.iscoroutinefunction(check) else test
    functools.update_wrapper(made, check)
    taken = [one for one in inspect.signature(check).parameters if one not in keys]
    made.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ["rows", *taken]
    )
    return made


@contextlib.contextmanager
def _failures() -> Iterator[Callable[[Any], contextlib.AbstractContextManager[None]]]:
    found: list[str] = []

    @contextlib.contextmanager
    def of(row: dict[str, Any]) -> Iterator[None]:
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001
            lines = traceback.format_exception(error, limit=-1)
            found.append(f"{row!r:.1000}\n{''.join(lines[1:])}")

    try:
        yield of
    finally:  # also if a row skips the test
        if found:
            pytest.fail(f"{len(found)} rows fail:\n" + "\n".join(found), pytrace=False)
