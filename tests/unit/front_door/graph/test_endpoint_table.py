"""The tables of docs/ that the code makes are up to date, and what docs/graph.md calls not supported is a 501."""

import re
from collections.abc import Collection, Iterable
from typing import TypeVar

from relay.front_door.graph.routes import OPERATIONS
from tests.support.docs_tables import MADE, PAGES, with_tables
from tests.support.endpoint_rows import rows
from tests.support.graph_fakes import WatchedGraph
from tests.support.tables import each_row

Methods = TypeVar("Methods", bound=Collection[str])
WITHIN_A_FOLDER = "mailfolders/{}/messages"  # the page says once that these exist as well


def in_mailbox(supported: str) -> set[tuple[str, str]]:
    """The rows below /me, with their paths in the form of `plain()`."""
    found = [(method, path) for method, path in rows(supported) if path.startswith("/me")]
    return {(method, plain(path.removeprefix("/me").strip("/"))) for method, path in found}


def plain(path: str) -> str:
    """A path in lower case, without the names of parameters and the parentheses of functions."""
    return re.sub(r"\{\w*\}", "{}", path.lower()).replace("()", "")


def unsupported_operations() -> set[tuple[str, str]]:
    """The methods, or *, and paths of operations that only Graph has."""
    table = [(plain(one.path), one.methods or {"*"}) for one in OPERATIONS]
    return {(method, path) for path, methods in outside_folders(table) for method in methods}


def outside_folders(table: Iterable[tuple[str, Methods]]) -> list[tuple[str, Methods]]:
    """The rows of a table, without those of a folder's messages that are there for a mailbox's."""
    rows = list(table)
    paths = {path for path, _ in rows}
    return [
        (path, methods)
        for path, methods in rows
        if not path.startswith(WITHIN_A_FOLDER)
        or f"messages{path.removeprefix(WITHIN_A_FOLDER)}" not in paths
    ]


def test_the_tables_are_those_that_the_code_makes() -> None:
    pages = [page.read_text() for page in PAGES]
    assert sum(page.count("<!-- made: ") for page in pages) == len(MADE)
    assert pages == [with_tables(page) for page in pages], "make docs writes them"


def test_every_operation_that_only_graph_has_has_a_row() -> None:
    documented = in_mailbox("no")
    missing = {
        (method, path)
        for method, path in unsupported_operations()
        if not documented & {(method, path), ("*", path)}
    }
    assert missing == set(), "501 without a row with `no`"


@each_row("method, path", rows("no"))
async def test_a_row_with_no_is_501(graph: WatchedGraph, method: str, path: str) -> None:
    method = "GET" if method == "*" else method
    answer = await graph.http.request(method, "/v1.0" + re.sub(r"\*$|\{\w*\}", "x", path))
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "NotImplemented")
    assert answer.json()["error"]["message"].endswith(" is not implemented.")
