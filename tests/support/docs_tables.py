"""The tables of docs/ that are made from the code: `python -m tests.support.docs_tables`, as `make docs` runs it.

A table stands between two comments with its name, and is not counted among the words of docs/.
"""

import importlib
import re
from functools import partial
from pathlib import Path

from click import Option

from relay.development.verbs.dev import dev
from relay.front_door.graph import errors
from relay.front_door.graph.errors import GraphError
from relay.front_door.graph.routes import _OUTSIDE, _ROUTES

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PAGE = DOCS / "graph.md"
PAGES = {
    PAGE,
    *(DOCS / f"{name}.md" for name in ("development", "operation-reference", "policy-conditions")),
}
# A class, or the comment of a limit and the name below it.
LIMIT = re.compile(
    r"^class (\w+)|^( *)# limit(?: of (\w+))?: (.+\n(?: *# .+\n)*) *(\w+)", re.MULTILINE
)
MARKED = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# The names of Graph have capitals, those of patterns have not.
NAMES = """
    childFolders createForward createReply createReplyAll createUploadSession mailFolders mailboxSettings
    masterCategories messageRules permanentDelete replyAll sendMail inferenceClassification
    getMailTips supportedLanguages supportedTimeZones translateExchangeIds
"""
SPELLED = {name.lower(): name for name in NAMES.split()}


def endpoints() -> str:
    """The methods of each path, with the permissions of which a request needs one."""
    rows = ["| path | methods | one of these permissions |", "|---|---|---|"]
    outside = [("/" + "/".join(pattern), methods) for pattern, methods in _OUTSIDE]
    inside = [("/".join(["/me", *pattern]), methods) for pattern, methods in _ROUTES]
    for path, operations in [*inside, *outside]:
        if path.startswith("/me/mailfolders/{folder}/messages"):
            continue
        by_scopes: dict[str, list[str]] = {}
        for method, operation in operations.items():
            names = " ".join(f"`{scope}`" for scope in operation.scopes)
            by_scopes.setdefault(names, []).append(f"`{method}`")
        shown = "/".join(SPELLED.get(one, one) for one in path.split("/"))
        shown = re.sub(r"\{(?!setting\})\w+\}", "{id}", shown).replace("{setting}", "{name}")
        rows += [f"| `{shown}` | {' '.join(some)} | {names} |" for names, some in by_scopes.items()]
    return "\n".join(rows) + "\n"


def refusals() -> str:
    """The errors with Graph's status, code and sentence."""
    found = {one for one in vars(errors).values() if isinstance(one, GraphError)}
    rows = sorted((one.status, one.code, one.sentence.replace("|", "\\|")) for one in found)
    lines = [f"| {status} | `{code}` | {sentence} |" for status, code, sentence in rows]
    return "\n".join(["| status | code | message |", "|---|---|---|", *lines]) + "\n"


def dev_options() -> str:
    """The options of `relay dev` with their variables, and what --help says of them."""
    rows = ["| option | variable | |", "|---|---|---|"]
    for one in (one for one in dev.params if isinstance(one, Option) and one.envvar):
        value = "" if one.is_flag else f" {one.metavar or one.type.name.upper()}"
        names = ", ".join(f"`{name}{value}`" for name in one.opts).replace("|", "\\|")
        default = f" [default: {one.show_default}]" if isinstance(one.show_default, str) else ""
        said = re.sub(r"--[a-z-]+|\*[\w@.]*", r"`\g<0>`", f"{one.help}{default}")
        rows.append(f"| {names} | `{one.envvar}` | {said} |")
    return "\n".join(rows) + "\n"


def limits(kind: str = "") -> str:
    """The limits whose comments begin with `# limit:` or `# limit of KIND:`, with their values."""
    rows = ["| limit | value |", "|---|---|"]
    for path in sorted((TOP / "relay").rglob("*.py")):
        owner = ""
        for class_name, indent, kind_here, comment, name in LIMIT.findall(path.read_text()):
            owner = class_name or owner
            if not name or kind_here != kind:
                continue
            module = importlib.import_module(".".join(path.relative_to(TOP).with_suffix("").parts))
            value = getattr(getattr(module, owner)() if indent else module, name)
            said = " ".join(re.sub("(?m)^ *# ", "", comment).split())
            rows.append(f"| {said} | {_limit_text(name.lower(), value)} |")
    return "\n".join(rows) + "\n"


def _limit_text(name: str, value: float) -> str:
    """A number with its unit, by the name of its constant."""
    if name.endswith("_s"):
        return f"{value:,g} s"
    if not re.search("bytes|octets", name):
        return f"{value:,}"
    units = ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "octets"))
    return next(f"{value // size:,} {unit}" for size, unit in units if not value % size)


LIMITS = {"limits_of_graph": partial(limits, "Graph"), "limits_of_rules": partial(limits, "rules")}
MADE = {one.__name__: one for one in (endpoints, refusals, dev_options, limits)} | LIMITS


def with_tables(text: str) -> str:
    """The page with its tables as the code has them now."""
    return MARKED.sub(lambda found: found[1] + MADE[found[2]]() + found[3], text)


def without_tables(text: str) -> str:
    """The page as it was written by hand."""
    return MARKED.sub("", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))
