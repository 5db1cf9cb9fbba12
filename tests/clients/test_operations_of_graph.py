"""Each operation of Graph v1.0, by the request builders of msgraph-sdk: Relay has it, or it is a 501."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.front_door.graph.mailbox_paths import with_keys
from relay.front_door.graph.routes import find_route, find_route_outside
from relay.front_door.http.errors import ApiError

msgraph = pytest.importorskip("msgraph.generated", reason="make clients installs msgraph-sdk")

_TEMPLATE = re.compile(r'super\(\).__init__\(request_adapter, "\{\+baseurl\}/([^"]+)"')
_METHOD = re.compile(r"async def (get|post|put|patch|delete)\(")


def operations() -> Iterator[tuple[str, str]]:
    """The methods and paths of all request builders, with `x` for each parameter."""
    [folder] = msgraph.__path__
    for builder in Path(folder).rglob("*_request_builder.py"):
        text = builder.read_text()
        if found := _TEMPLATE.search(text):
            path = re.sub(r"\{[^}]*\}", "x", re.sub(r"\{[?&][^}]*\}|\?.*", "", found[1]))
            for method in _METHOD.findall(text):
                yield method.upper(), path


def status(method: str, path: str) -> int:
    """200 if Relay has the operation, else the status of its error."""
    segments = with_keys(tuple(path.split("/")))
    try:
        if find_route_outside(method, segments) is None:
            find_route(method, segments[1 if segments[0] == "me" else 2 :])
    except ApiError as error:
        return error.status
    return 200


def test_what_graph_has_is_there_or_501() -> None:
    found = {(method, path): status(method, path) for method, path in operations()}
    assert len(found) > 10_000
    assert {one: code for one, code in found.items() if code not in (200, 501)} == {}
    assert sum(code == 200 for code in found.values()) > 80
