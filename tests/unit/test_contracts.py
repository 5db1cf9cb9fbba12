"""Each import contract of pyproject.toml is kept, and broken by an import that it forbids: one for
each layer or source.
"""

import tomllib
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import grimp
from importlinter import configuration
from importlinter.contracts.acyclic_siblings import AcyclicSiblingsContract
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract

TOP = Path(__file__).parents[2]
LINTER = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["importlinter"]
KINDS = {
    "layers": LayersContract,
    "forbidden": ForbiddenContract,
    "acyclic_siblings": AcyclicSiblingsContract,
}
MAILBOX, SPOOL = "relay.store.mailbox.types", "relay.store.spool.types"


def forbidden_imports(contract: dict[str, Any]) -> Iterator[list[tuple[str, str]]]:
    """Yield imports that the contract forbids: one for each of its layers or sources, or a circle."""
    match contract["type"]:
        case "layers":
            (container,) = contract["containers"]
            layers = [layer.split(" | ")[0] for layer in contract["layers"]]
            for higher, lower in pairwise(layers):
                yield [(f"{container}.{lower}", f"{container}.{higher}")]
        case "forbidden":
            for source in contract["source_modules"]:
                importer = "relay.base.clock" if source == "relay" else source
                yield [(importer, contract["forbidden_modules"][0])]
        case "acyclic_siblings":
            yield [(MAILBOX, SPOOL), (SPOOL, MAILBOX)]


def is_kept(contract: dict[str, Any], graph: grimp.ImportGraph) -> bool:
    options = {
        name: str(value) if isinstance(value, bool) else value
        for name, value in contract.items()
        if name not in ("name", "type")
    }
    session = {"root_packages": [LINTER["root_package"]], "include_external_packages": "true"}
    made = KINDS[contract["type"]](contract["name"], session, options)
    return made.check(deepcopy(graph), verbose=False).kept


def test_each_contract_is_broken_by_what_it_forbids() -> None:
    configuration.configure()
    graph = grimp.build_graph("relay", include_external_packages=True, cache_dir=None)
    not_found = []
    for contract in LINTER["contracts"]:
        assert is_kept(contract, graph), contract["name"]
        for imports in forbidden_imports(contract):
            changed = deepcopy(graph)
            for importer, imported in imports:
                changed.add_import(importer=importer, imported=imported)
            if is_kept(contract, changed):
                not_found.append((contract["name"], imports))
    assert not_found == []
