"""What README, docs/ and docstrings name exists: files, headings, functions, links, commands, numbers."""

import ast
import builtins
import importlib
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import msgspec
import pytest

from relay.base.crashpoints import CrashPoint
from relay.base.observe.metrics import Metrics
from relay.base.pressure import PressureReason
from relay.base.settings.values import parse_duration, parse_size
from relay.operation.cli.root import cli
from tests.support.tables import each_row

TOP = Path(__file__).parents[2]
FLOW = TOP / "docs/flow.md"
PAGES = sorted([TOP / "README.md", TOP / "CONTRIBUTING.md", *(TOP / "docs").glob("*.md")])
METRIC = re.compile(r"relay_\w+")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a module."""
    return tuple(ast.walk(ast.parse(path.read_text())))


@pytest.fixture(scope="module", autouse=True)
def syntax_trees() -> Iterator[None]:
    """Keep the trees no longer than they are needed: the garbage collector looks at each node."""
    yield
    nodes.cache_clear()


@cache
def definitions() -> tuple[frozenset[str], frozenset[str]]:
    """Names of all functions and classes, and of all methods as "Class.method"."""
    names, methods = set(), set()
    for path in (TOP / "relay").rglob("*.py"):
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            if isinstance(node, ast.ClassDef):
                inner = (ast.FunctionDef, ast.AsyncFunctionDef)
                methods |= {
                    f"{node.name}.{one.name}" for one in node.body if isinstance(one, inner)
                }
    return frozenset(names), frozenset(methods)


def code_of(path: Path) -> list[str]:
    """Everything in single backticks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", path.read_text()))


def test_relay_is_installed_from_a_checkout_since_no_index_has_it():
    name = re.compile(
        r"graph-relay\[|\b(?:pipx? install|pipx run|uvx?|uv add|uv tool)\b[^\n`]*graph-relay"
    )
    files = [*PAGES, *(TOP / "docs/examples").rglob("*"), *(TOP / "relay").rglob("*.py")]
    assert [each for each in files if each.is_file() and name.search(each.read_text())] == []


@each_row("page", PAGES)
def test_files_that_are_named_exist(page):
    named = {
        one for one in code_of(page) if re.fullmatch(r"(relay|tests|conf|systemd)/[\w./-]+", one)
    }
    assert [one for one in sorted(named) if not (TOP / one).exists()] == []


def test_flow_names_functions_that_exist():
    names, methods = definitions()
    called = [one.removesuffix("()") for one in code_of(FLOW) if re.fullmatch(r"[\w.]+\(\)", one)]
    assert len(called) > 40
    assert [one for one in called if one not in (methods if "." in one else names)] == []


def test_flow_names_every_crash_point_and_no_other():
    named = {one for one in code_of(FLOW) if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", one)}
    assert named - {"RELAY_CRASH_AT"} == {point.name for point in CrashPoint}


def test_what_a_newcomer_reads_is_short():
    words_max = {"README.md": 900, "docs/flow.md": 3000, "docs/design.md": 8000}
    words = {page: len((TOP / page).read_text().split()) for page in words_max}
    assert {page: number for page, number in words.items() if number > words_max[page]} == {}


@each_row("page", PAGES)
def test_links_resolve(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made of them when it is shown."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


def commands_in(page: Path) -> list[list[str]]:
    """The words of every call of relay: in backticks, and at the beginning of a line of code."""
    text = page.read_text()
    fenced = re.findall(r"^```.*?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    # a table writes "queue list\|show"; a line that ends in a backslash goes on
    lines = [*code_of(page), *"".join(fenced).replace("\\\n", " ").splitlines()]
    lines = [one.replace("\\|", "|") for one in lines]
    pattern = r"^\s*(?:\$ )?(?:sudo (?:-u relay )?)?(?:\S*/bin/)?relay ((?:[a-z]|--).*)"
    return [found[1].split() for one in lines if (found := re.match(pattern, one))]


@each_row("page", PAGES)
def test_commands_and_their_options_exist(page):
    assert [(words, one) for words in commands_in(page) for one in unknown_in(words)] == []


def unknown_in(words: list[str]) -> list[str]:
    """The verbs and options that `relay` does not have."""
    command: click.Command = cli
    context = click.Context(cli, info_name="relay")
    rest = [one for one in words if one not in ("...", "…")]
    unknown: list[str] = []
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        verbs = {one: command.get_command(context, one) for one in rest.pop(0).split("|") if one}
        unknown += [name for name, found in verbs.items() if found is None]
        command = next((found for found in verbs.values() if found), cli)
        if unknown:
            return unknown
    options = {name for one in command.params for name in one.opts} | {"--help", "--version"}
    given = [re.sub(r"[^-a-z].*", "", one) for one in rest if one.startswith("--")]
    return [one for one in given if one not in options]


@each_row("page", ["names.md", "operation-monitor.md"])
def test_every_metric_is_named(page):
    exposed = {
        one.name + "_total" * (one.type == "counter") for one in Metrics().registry.collect()
    }
    named = {found[0] for one in code_of(TOP / "docs" / page) if (found := METRIC.match(one))}
    assert exposed - named == set()
    assert {one for one in named - exposed if one.endswith("_total")} == set()


def test_alerts_name_metrics_that_exist():
    exposed = {
        one.name + "_total" * (one.type == "counter") for one in Metrics().registry.collect()
    }
    rules = (TOP / "docs/operation-recipes.md").read_text().partition("\ngroups:\n")[2]
    named = set(METRIC.findall("".join(re.findall(r"expr: .*\n(?: {10}.*\n)*", rules))))
    assert len(named) > 10
    assert named - exposed == set()


def test_every_reason_of_pressure_is_explained():
    assert {str(one) for one in PressureReason} - {*code_of(TOP / "docs/operation-run.md")} == set()


def limits() -> list[tuple[str, str]]:
    """The rows of the tables of limits that name a constant: what they say, and where it is."""
    rows = r"^\|[^|]+\| ([^|]+) \| `(relay/[\w/]+\.py:\w+(?:\.\w+)?)` \|$"
    return [row for page in PAGES for row in re.findall(rows, page.read_text(), re.MULTILINE)]


def number_of(text: str) -> float:
    for read in (float, parse_size, parse_duration):
        try:
            return read(text.replace(",", ""))
        except ValueError:
            continue
    raise AssertionError(f"{text!r} is no number, size or duration")


@each_row("told, place", limits())
def test_limits_are_those_of_the_code(told, place):
    path, _, name = place.partition(":")
    value = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        is_struct = isinstance(value, type) and issubclass(value, msgspec.Struct)
        fields = msgspec.structs.fields(value) if is_struct else ()
        defaults = {one.name: one for one in fields} or getattr(value, "__dataclass_fields__", {})
        value = defaults[part].default if part in defaults else getattr(value, part)
    assert number_of(told) == value


SOURCES = sorted((TOP / "relay").rglob("*.py"))
FILES = {path.name for top in ("relay", "tests", "docs") for path in (TOP / top).rglob("*.*")}
FILES |= {path.name for path in TOP.glob("*.*")}
INVARIANTS = len(
    re.findall(r"^\d+\. ", (TOP / "docs/design.md").read_text().partition("## 7")[2], re.MULTILINE)
)
FOREIGN = {"sync_file_range", "histogram_quantile", "live_region", "csrf_field"}  # not in Python
PROPOSED = {"mta_sts.py", "NNNN_NAME.sql", "take()"}  # what a recipe says to write


@cache
def prose_of_modules() -> list[tuple[str, str]]:
    """The docstrings and comments of relay/, with their modules."""
    return [(str(path.relative_to(TOP)), prose) for path in SOURCES for prose in prose_of(path)]


def prose_of(path: Path) -> Iterator[str]:
    """The docstrings and comments of a module, each in one line."""
    for node in nodes(path):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield " ".join((ast.get_docstring(node) or "").split())
    yield from re.findall(r"(?:^ *|  )(#.*)", path.read_text(), re.MULTILINE)  # as ruff puts them


@cache
def subjects(page: Path) -> frozenset[str]:
    """The headings and bold words of a page, in lower case, and the numbers of its sections."""
    text = page.read_text()
    found = re.findall(r"^#+ (.+)$|\*\*([^*]+?)\.?\*\*", text, re.MULTILINE)
    return frozenset(
        [*("".join(one).lower() for one in found), *re.findall(r"^## (\d+)\.", text, re.MULTILINE)]
    )


def missing_subjects(prose: str) -> list[str]:
    """The citations of headings, sections and invariants that a page in docs/ does not have.

    Forms: "docs/a.md", "docs/a.md (Heading)", "docs/a.md 4 (Heading)", "docs/design.md 4, 7.2 and 7.3".
    """
    numbers = r"(?: (\d[\d.]*(?:(?:, and |, | and )\d[\d.]*)*))?"
    missing = []
    for name, cited, heading in re.findall(rf"docs/([\w-]+\.md){numbers}(?: \(([^)]+)\))?", prose):
        page = TOP / "docs" / name
        if not page.exists():
            missing.append(name)
            continue
        if heading and heading.lower() not in subjects(page):
            missing.append(f"{name} ({heading})")
        for number in re.findall(r"\d+(?:\.\d+)?", cited):
            section, _, item = number.partition(".")
            if section not in subjects(page) or (item and not 0 < int(item) <= INVARIANTS):
                missing.append(f"{name} {number}")
    return missing


def names_in(node: ast.AST) -> set[str]:
    """The names that one node of a syntax tree defines or uses."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Name():
            return {node.id}
        case ast.Attribute():
            return {node.attr}
        case ast.arg():
            return {node.arg}
        case ast.alias():
            return {(node.asname or node.name).rpartition(".")[2]}
    return set()


@cache
def known_names() -> tuple[frozenset[str], dict[str, frozenset[str]], dict[str, list[str]]]:
    """All names that code has; of each class in relay/ its members, and its bases."""
    names, members, bases = set(dir(builtins)), {}, {}
    defined = re.compile(r"^ *(?:(?:async )?def|class) (\w+)|^(\w+)\b.* = ", re.MULTILINE)
    for path in (TOP / "tests").rglob("*.py"):
        names.update(*defined.findall(path.read_text()))
    for path in SOURCES:
        for node in nodes(path):
            names |= names_in(node)
            if isinstance(node, ast.ClassDef):
                members[node.name] = frozenset().union(*map(names_in, ast.walk(node)))
                bases[node.name] = [ast.unparse(one).split("[")[0] for one in node.bases]
    return frozenset(names), members, bases


def has_member(owner: str, name: str) -> bool:
    """Whether a class of relay/ has a member, also by a base; True for classes of others."""
    _, members, bases = known_names()
    if owner not in members:
        return owner not in ("Protocol", "Generic", "StrEnum", "Enum")
    return name in members[owner] or any(has_member(base, name) for base in bases[owner])


def missing_names(prose: str) -> list[str]:
    """The paths, modules, functions and members that code does not have."""
    names, _, _ = known_names()
    missing = [
        path
        for path in re.findall(r"(?<![\w./])(?:relay|tests|docs|conf)/[\w./-]*\w", prose)
        if not (TOP / path).exists()
    ]
    for module in re.findall(r"(?<![\w/])relay(?:\.[a-z_]+)+\b", prose):
        path = TOP / module.replace(".", "/")
        is_module = path.is_dir() or path.with_suffix(".py").exists()
        is_member = path.parent.is_dir() or path.parent.with_suffix(".py").exists()
        if not is_module and not (is_member and path.name in names):
            missing.append(module)
    for owner, name in re.findall(r"(?<![\w./])([A-Z]\w*[a-z]\w*)\.([a-z_]\w*)\b(?!\.)", prose):
        if owner not in names or not has_member(owner, name):
            missing.append(f"{owner}.{name}")
    called = {*re.findall(r"(?<![\w./])([A-Za-z_]\w*)\(\)", prose)}
    missing += [f"{name}()" for name in called - FOREIGN if name not in names]
    files = re.findall(r"(?<![\w./{}@*-])\w[\w-]*\.(?:py|sql|md|html)\b", prose)
    return missing + [name for name in files if name not in FILES]


def test_docstrings_cite_pages_and_headings_that_exist():
    cited = [(path, missing_subjects(prose)) for path, prose in prose_of_modules()]
    assert [one for one in cited if one[1]] == []


def test_docstrings_and_comments_name_what_exists():
    named = [(path, missing_names(prose)) for path, prose in prose_of_modules()]
    assert [one for one in named if one[1]] == []


def test_contributing_names_what_exists():
    names, _, _ = known_names()
    targets = set(re.findall(r"^([\w-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    code = [*code_of(TOP / "CONTRIBUTING.md"), *code_of(TOP / "docs/recipes.md")]
    missing = [
        word
        for word in code
        if (re.fullmatch(r"_\w+|[A-Z]\w*[a-z]\w*|[A-Z]{3,}(_[A-Z]+)*", word) and word not in names)
        or (word.startswith("make ") and word.split()[1] not in targets)
    ]
    missing += [one for word in code if word not in PROPOSED for one in missing_names(word)]
    assert sorted({*missing} - {"Containerfile"}) == []


def test_each_row_about_next_hops_names_tests_that_exist():
    """Or says that it is not built."""
    rows = re.findall(r"^\| (.+) \|$", (TOP / "docs/next-hops.md").read_text(), re.MULTILINE)
    rows = [one.split(" | ") for one in rows if not one.startswith(("event |", "feature |"))]
    assert len(rows) > 60
    assert [one for one in rows if len(one) != 4] == []
    wrong = []
    for event, _, what, tests in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        if not named and (tests != "not built" or "not built" not in what):
            wrong.append(event)
        for file, name in named:
            path = TOP / "tests" / file
            text = path.read_text() if path.is_file() else ""
            if not re.search(rf"^(async )?def {name}\(", text, re.MULTILINE):
                wrong.append(f"{event}: {file}::{name}")
    assert wrong == []


def test_the_layers_of_the_design_are_those_of_the_contract():
    contracts = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(one["layers"] for one in contracts["contracts"] if one["type"] == "layers")
    shown = " ".join((TOP / "docs/design.md").read_text().split())
    assert f"`{' → '.join(layers[1:])}`" in shown


def test_contributing_has_a_row_for_each_wing():
    table = (
        (TOP / "CONTRIBUTING.md")
        .read_text()
        .partition("## Find your room")[2]
        .partition("\n## ")[0]
    )
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")][1:]
    wings = {path.parent for path in (TOP / "relay").glob("*/__init__.py")}
    rooms = {path.parent for path in (TOP / "relay").glob("*/*/__init__.py")}
    named = {one for row in rows for one in re.findall(r"`(?:relay/)?([a-z_/]+)`", row)}
    assert {wing.name for wing in wings} <= {one.partition("/")[0] for one in named}
    assert {room.name for room in rooms} <= {one.rpartition("/")[2] for one in named} | {"verbs"}
    assert len(rows) <= 20


def test_citations_of_what_does_not_exist_are_found():
    prose = (
        "docs/design.md 4 and 12, 7.10, 7.11. docs/design.md 4 (Damage) docs/flow.md (No heading)"
        " docs/gone.md (The rooms)"
    )
    assert missing_subjects(prose) == [
        "design.md 12", "design.md 7.11", "flow.md (No heading)", "gone.md",
    ]  # fmt: skip
    prose = (
        "relay/gone.py and relay/base/clock.py, relay.base.clock.Clock, relay.absent, Clock.gone_us, Clock.real_s,"
        " Desk.carry_out's, compose(), gone_away(), gone.py, clock.py, /relay/v1/messages"
    )
    assert missing_names(prose) == [
        "relay/gone.py", "relay.absent", "Clock.gone_us", "Desk.carry_out", "gone_away()", "gone.py",
    ]  # fmt: skip
