"""The table of endpoints in docs/graph.md has the same rows as the application has operations."""

import re

import pytest

from relay.graph import routes
from tests.support.endpoint_rows import rows
from tests.support.graph_fakes import GraphInMemory, OnDisk

WITHIN_A_FOLDER = "mailfolders/{}/messages"  # the page says once that these exist as well


def in_mailbox(supported: str) -> set[tuple[str, str]]:
    """The rows below /me, with their paths in the form of `plain()`."""
    found = [(method, path) for method, path in rows(supported) if path.startswith("/me")]
    return {(method, plain(path.removeprefix("/me").strip("/"))) for method, path in found}


def plain(path: str) -> str:
    """A path in lower case, without the names of parameters and the parentheses of functions."""
    return re.sub(r"\{\w*\}", "{}", path.lower()).replace("()", "")


def operations() -> tuple[set[tuple[str, str]], set[str]]:
    """The methods and paths that have an operation, and the paths that are a 501."""
    table = [(plain("/".join(pattern)), what) for pattern, what in routes._ROUTES]
    paths = {path for path, _ in table}
    once = [
        (path, what)
        for path, what in table
        if not path.startswith(WITHIN_A_FOLDER)
        or f"messages{path.removeprefix(WITHIN_A_FOLDER)}" not in paths
    ]
    supported = {
        (method, path) for path, what in once if not isinstance(what, str) for method in what
    }
    return supported, {path for path, what in once if isinstance(what, str)}


def test_every_operation_has_a_row_and_every_supported_row_an_operation() -> None:
    supported, _ = operations()
    assert supported - in_mailbox("yes") == set(), "operations without a row with `yes`"
    assert in_mailbox("yes") - supported == set(), "rows with `yes` without an operation"


def test_every_path_that_is_not_implemented_has_a_row_and_every_such_row_is_501() -> None:
    _, missing = operations()
    documented = {path for _, path in in_mailbox("no")}
    assert missing - documented == set(), "paths that are 501 without a row with `no`"
    assert documented - missing == set(), "rows with `no` that are not 501"


def test_no_endpoint_has_two_rows() -> None:
    every = [(method, plain(path)) for method, path in rows("yes") + rows("no")]
    assert len(every) == len(set(every)) > 40


@pytest.mark.parametrize(("method", "path"), rows("no"))
async def test_a_row_with_no_is_501(graph: GraphInMemory, method: str, path: str) -> None:
    method = "GET" if method == "*" else method
    answer = await graph.http.request(method, "/v1.0" + re.sub(r"\*$|\{\w*\}", "x", path))
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "NotImplemented")


async def test_rows_outside_of_mailboxes_with_yes_have_an_operation(on_disk: OnDisk) -> None:
    for method, path in rows("yes"):
        if path.startswith("/me"):
            continue
        known = path.replace("/users/{id}", "/users/alice@example.test")
        answer = await on_disk.http.request(
            method, "http://h/v1.0" + re.sub(r"\{\w*\}", "x", known)
        )
        assert answer.status_code not in (405, 500, 501), (method, path)
        assert "ResourceNotFound" not in answer.text, (method, path)
