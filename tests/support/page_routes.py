"""The routes of the pages, read from the module that matches them.

Raises AssertionError for a comparison or a pattern that it does not understand.
"""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

from relay.front_door.pages import app


def routes() -> set[str]:
    """The paths that the module of the application compares and matches, with names in braces."""
    tree = ast.parse(Path(app.__file__).read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Match) and "segments" in ast.unparse(node.subject):
            for case in node.cases:
                found.update(_templates(case.pattern))
        if isinstance(node, ast.Compare) and "segments" in ast.unparse(node.left):
            for compared in node.comparators:
                if isinstance(compared, ast.Constant):
                    continue  # the number of segments
                if isinstance(compared, ast.Name):
                    found.update("/".join(one) for one in getattr(app, compared.id))
                    continue
                assert isinstance(compared, ast.Tuple), ast.unparse(node)
                found.add("/".join(str(ast.literal_eval(one)) for one in compared.elts))
    return found


def _templates(pattern: ast.pattern) -> Iterator[str]:
    if isinstance(pattern, ast.MatchSequence):
        for parts in itertools.product(*map(_names, pattern.patterns)):
            yield "/".join(parts)
    else:
        assert ast.unparse(pattern) == "_", f"a route is a sequence: {ast.unparse(pattern)}"


def _names(pattern: ast.pattern) -> list[str]:
    match pattern:
        case ast.MatchValue(value=ast.Constant(value=str(text))):
            return [text]
        case ast.MatchOr(patterns=several):
            return [name for one in several for name in _names(one)]
        case ast.MatchAs(name=str(name)):
            return [f"{{{name}}}"]
        case ast.MatchStar():
            return ["..."]
    raise AssertionError(ast.unparse(pattern))
