"""Find `raise NAME` of an exception that the frame keeps: a cycle with its own traceback.

The traceback of an exception refers to the frames that it passed, and a frame to its local names.
If one of these is the exception, then everything that the frame refers to stays in memory until a
full garbage collection. The name of `except … as NAME` is deleted at the end of its block; the same
can be done in `finally`. `make lint` runs this on relay/.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_SCOPES = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef


def raised_names(source: str) -> list[tuple[int, str]]:
    """The line and the name of each such raise."""
    if not re.search(r"\braise\s+\w+(\.with_traceback|\s*(from|#|$))", source, re.MULTILINE):
        return []  # most modules: nothing is to be parsed
    return sorted(_found(ast.parse(source), frozenset()))


def _found(node: ast.AST, kept: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Yield the raises in `node`; `kept` are the names that hold their values there."""
    if isinstance(node, _SCOPES):
        kept |= {name for child in ast.iter_child_nodes(node) for name in _bound(child)}
    elif isinstance(node, ast.Raise) and (name := _name(node.exc)) in kept:
        yield node.lineno, name
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _found(child, kept - _deleted(node, field))


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the names to which a statement or a parameter of a scope assigns objects."""
    if isinstance(node, ast.ClassDef | ast.Lambda | _SCOPES):
        return  # a scope of its own
    if isinstance(node, ast.arg) and not _is_class(node.annotation):
        yield node.arg
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name
    for child in ast.iter_child_nodes(node):
        yield from _bound(child)


def _is_class(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation).strip("'\"").startswith("type[")


def _name(raised: ast.expr | None) -> str:
    """The name in `raise NAME` and `raise NAME.with_traceback(…)`."""
    if isinstance(raised, ast.Call) and isinstance(raised.func, ast.Attribute):
        raised = raised.func.value if raised.func.attr == "with_traceback" else None
    return raised.id if isinstance(raised, ast.Name) else ""


def _deleted(node: ast.AST, field: str) -> set[str]:
    """The names that do not outlive an exception in this part of a statement."""
    if isinstance(node, ast.ExceptHandler) and field == "body" and node.name:
        return {node.name}
    if isinstance(node, ast.Try | ast.TryStar) and field != "finalbody":
        targets = [
            target
            for one in node.finalbody
            if isinstance(one, ast.Delete)
            for target in one.targets
        ]
        return {target.id for target in targets if isinstance(target, ast.Name)}
    return set()


def main(directories: list[str]) -> int:
    """Print what is found; return the exit code."""
    found = [
        f"{path}:{line}: raise {name}: the frame keeps the exception; raise an expression, or"
        f" delete the name in finally"
        for directory in directories
        for path in sorted(Path(directory).rglob("*.py"))
        for line, name in raised_names(path.read_text())
    ]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
