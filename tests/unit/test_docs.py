"""What README and docs/ name exists: files, functions, crash points, links, commands, numbers."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import click
import pytest

from relay.cli.root import cli
from relay.crashpoints import CrashPoint
from relay.observe.metrics import Metrics
from relay.pressure import PressureReason
from relay.settings.values import parse_duration, parse_size

TOP = Path(__file__).parents[2]
FLOW = TOP / "docs/flow.md"
PAGES = sorted([TOP / "README.md", TOP / "CONTRIBUTING.md", *(TOP / "docs").glob("*.md")])
METRIC = re.compile(r"relay_\w+")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@cache
def definitions() -> tuple[frozenset[str], frozenset[str]]:
    """Names of all functions and classes, and of all methods as "Class.method"."""
    names, methods = set(), set()
    for path in (TOP / "relay").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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


def test_flow_names_each_class_that_it_puts_behind_a_module():
    pairs = re.findall(r"`(relay/[\w/]+\.py)` `(\w+)[`.(]", FLOW.read_text())
    assert len(pairs) > 10
    missing = [
        (path, name)
        for path, name in pairs
        if not re.search(
            rf"^\s*(class|def|async def) {name}\b", (TOP / path).read_text(), re.MULTILINE
        )
    ]
    assert missing == []


def test_flow_names_every_crash_point_and_no_other():
    named = {one for one in code_of(FLOW) if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", one)}
    assert named - {"RELAY_CRASH_AT"} == {point.name for point in CrashPoint}


def test_flow_lists_modules_that_exist():
    listed = re.findall(
        r"`(\w+)`: ([a-z_]+(?:/[a-z_]+)*(?:, [a-z_]+(?:/[a-z_]+)*)*)", FLOW.read_text()
    )
    paths = [f"relay/{room}/{one}.py" for room, names in listed for one in names.split(", ")]
    assert len(paths) > 70
    assert [one for one in paths if not (TOP / one).exists()] == []


def test_flow_can_be_read_in_one_go():
    assert len(FLOW.read_text().splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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


def test_pages_name_commands_at_all():
    assert sum(len(commands_in(page)) for page in PAGES) > 30


@pytest.mark.parametrize("page", ["names.md", "operation-reference.md"])
def test_every_metric_is_named(page):
    exposed = {
        one.name + "_total" * (one.type == "counter") for one in Metrics().registry.collect()
    }
    named = {found[0] for one in code_of(TOP / "docs" / page) if (found := METRIC.match(one))}
    assert exposed - named == set()
    assert {one for one in named - exposed if one.endswith("_total")} == set()


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


@pytest.mark.parametrize(("told", "place"), limits())
def test_limits_are_those_of_the_code(told, place):
    path, _, name = place.partition(":")
    value = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        defaults = getattr(value, "__dataclass_fields__", {})
        value = defaults[part].default if part in defaults else getattr(value, part)
    assert number_of(told) == value
