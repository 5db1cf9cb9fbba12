"""What README, docs/ and docstrings name exists: files, headings, functions, links, commands, numbers."""

import re
import tomllib
from functools import cache
from pathlib import Path

import click

from relay.base.crashpoints import CrashPoint
from relay.base.observe.metrics import Metrics
from relay.base.pressure import PressureReason
from relay.operation.cli.root import cli
from tests.support.docs_tables import without_tables
from tests.support.tables import each_row

TOP = Path(__file__).parents[2]
PACKAGED = TOP / "packaging/debian/relay.toml"
FLOW = TOP / "docs/flow.md"
PAGES = sorted([TOP / "README.md", TOP / "CONTRIBUTING.md", *(TOP / "docs").glob("*.md")])
WINGS = "|".join(one.parent.name for one in (TOP / "relay").glob("*/__init__.py"))
METRIC = re.compile(r"relay_\w+")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def code_of(path: Path) -> list[str]:
    """Everything in single backticks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", path.read_text()))


def test_relay_is_installed_from_a_checkout_since_no_index_has_it():
    name = re.compile(
        r"graph-relay\[|\b(?:pipx? install|pipx run|uvx?|uv add|uv tool)\b[^\n`]*(?<!pytest-)graph-relay"
    )
    files = [*PAGES, *(TOP / "docs/examples").rglob("*"), *(TOP / "relay").rglob("*.py")]
    assert [each for each in files if each.is_file() and name.search(each.read_text())] == []


@cache
def defined() -> frozenset[str]:
    """The names of all functions, classes and constants of relay/ and tests/."""
    named = re.compile(r"^ *(?:(?:async )?def|class) (\w+)|^(\w+)\b.* = ", re.MULTILINE)
    paths = [path for top in ("relay", "tests") for path in (TOP / top).rglob("*.py")]
    return frozenset(
        one for path in paths for found in named.findall(path.read_text()) for one in found
    )


def test_flow_names_functions_that_exist():
    called = [one.removesuffix("()") for one in code_of(FLOW) if re.fullmatch(r"[\w.]+\(\)", one)]
    assert len(called) > 40
    assert [one for one in called if not {*one.split(".")} <= defined()] == []


def missing_in(text: str) -> list[str]:
    """The paths and modules that are not there, and the headings and sections that no page has.

    Pages are cited as "docs/a.md", "docs/a.md (Heading)", "docs/design.md 4, 7.2 and 7.3".
    """
    missing = [
        path
        for path in re.findall(r"(?<![\w./])(?:relay|tests|docs|conf)/[\w./-]*\w", text)
        if not (TOP / path).exists()
    ]
    for module in re.findall(rf"(?<![\w/.])relay\.(?:{WINGS})(?:\.[a-z_]+)*\b(?!/)", text):
        path = TOP / module.replace(".", "/")
        places = (path, path.with_suffix(".py"), path.parent.with_suffix(".py"))
        is_member = (path.parent / "__init__.py").exists() and path.name in defined()
        if not is_member and not any(one.exists() for one in places):
            missing.append(module)
    numbers = r"(?: (\d[\d.]*(?:(?:, and |, | and )\d[\d.]*)*))?"
    for name, cited, heading in re.findall(rf"docs/([\w-]+\.md){numbers}(?: \(([^)]+)\))?", text):
        page = (TOP / "docs" / name).read_text() if (TOP / "docs" / name).exists() else ""
        bold = re.findall(r"^#+ (.+)$|\*\*([^*]+?)\.?\*\*", page, re.MULTILINE)
        if heading and heading.lower() not in {"".join(one).lower() for one in bold}:
            missing.append(f"{name} ({heading})")
        sections = re.findall(r"^## (\d+)\.", page, re.MULTILINE)
        missing += [
            f"{name} {one}"
            for one in re.findall(r"\d+", re.sub(r"\.\d+", "", cited))
            if one not in sections
        ]
    return missing


def test_modules_cite_paths_pages_and_headings_that_exist():
    for path in (TOP / "relay").rglob("*.py"):
        prose = re.findall(r'(?m)(?:^ *|  )#.*|"""[\s\S]*?"""', path.read_text())
        found = [missing for one in prose for missing in missing_in(" ".join(one.split()))]
        assert found == [], path
    assert missing_in(
        "docs/design.md 4 and 12, docs/flow.md (No heading) relay/gone.py relay.base.absent.x"
    ) == ["relay/gone.py", "relay.base.absent.x", "design.md 12", "flow.md (No heading)"]


@each_row("page", PAGES)
def test_what_a_page_names_exists(page):
    """Files and modules; in the pages for developers also functions, classes and constants."""
    code, names = code_of(page), r"_\w+|[A-Z]\w*[a-z]\w*|[A-Z]{3,}(_[A-Z]+)*"
    paths = [one for one in code if re.fullmatch(r"(relay|tests|conf|systemd)/[\w./-]+", one)]
    missing = [one for one in paths if not (TOP / one).exists()]
    if page.name in ("CONTRIBUTING.md", "recipes.md"):
        targets = re.findall(r"^([\w-]+):", (TOP / "Makefile").read_text(), re.MULTILINE)
        missing += [one for one in code if re.fullmatch(names, one) and one not in defined()]
        missing += [one for one in code if one[:5] == "make " and one.split()[1] not in targets]
        missing += [one for word in code for one in missing_in(word)]
    assert {*missing} - {"Containerfile", "Struct"} == set()


def test_the_readme_names_the_command_that_starts_and_the_one_that_tests():
    text = (TOP / "README.md").read_text()
    assert "\nmake run  " in text
    assert "`make test`" in text


def test_flow_names_every_crash_point_and_no_other():
    named = {one for one in code_of(FLOW) if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", one)}
    assert named - {"RELAY_CRASH_AT"} == {point.name for point in CrashPoint}


def test_the_pages_are_short() -> None:
    most = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["relay"]["doc_words"]
    words = {one: len(without_tables(one.read_text()).split()) for one in PAGES}
    assert max(words[TOP / "README.md"], words[TOP / "docs/glossary.md"]) <= 850
    assert sum(words[one] for one in PAGES if one.parent == TOP / "docs") <= most


@each_row("page", [*PAGES, TOP / "CHANGELOG.md"])
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


@each_row("page", [TOP / "docs/coming-from.md", TOP / "docs/development.md"])
def test_nothing_for_the_development_relay_needs_root(page):
    texts = [page.read_text()]
    for file, anchor in re.findall(r"\]\(([\w-]*\.md)#([\w-]+)\)", texts[0]):
        sections = re.split(r"^#+ ", (page.parent / file).read_text(), flags=re.MULTILINE)
        texts += [one for one in sections if anchor == anchor_of(one.partition("\n")[0])]
    """But packages of other programs do."""
    asks = re.compile(r"\b(As root|apt-get|systemctl) (?!.*dovecot)")
    assert [one for one in texts if asks.search(one)] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made of them when it is shown."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return set(map(anchor_of, headings))


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


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


def test_alerts_name_metrics_that_exist():
    exposed = {
        one.name + {"counter": "_total", "info": "_info"}.get(one.type, "")
        for one in Metrics().registry.collect()
    }
    rules = (TOP / "docs/examples/alerts.yaml").read_text()
    listens = re.findall(r"^\[http\]\nlisten = (.*)$", PACKAGED.read_text(), re.MULTILINE)
    assert re.findall(r"- targets: (\[.*?\])", rules) == listens
    alerts = METRIC.findall("".join(re.findall(r"expr: .*\n(?: {10}.*\n)*", rules)))
    assert 10 < len({*alerts} & exposed) == len({*alerts})


def test_every_reason_of_pressure_is_explained():
    assert {str(one) for one in PressureReason} - {*code_of(TOP / "docs/operation-run.md")} == set()


def test_each_row_about_next_hops_names_tests_that_exist():
    """Or says that it is not built."""
    rows = re.findall(r"^\| (.+) \|$", (TOP / "docs/next-hops.md").read_text(), re.MULTILINE)
    rows = [one.split(" | ") for one in rows if not one.startswith(("event |", "feature |"))]
    assert len(rows) > 60
    wrong = []
    for event, *_, what, tests in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        if not named and (tests != "not built" or "not built" not in what):
            wrong.append(event)
        for file, name in named:
            path = TOP / "tests" / file
            text = path.read_text() if path.is_file() else ""
            if not re.search(rf"^(async )?def {name}\(", text, re.MULTILINE):
                wrong.append(f"{event}: {file}::{name}")
    assert wrong == []


def test_contributing_has_a_row_for_each_room():
    _, _, table = (TOP / "CONTRIBUTING.md").read_text().partition("## Find your room")
    rows = re.findall(r"^\|[^|]*\|([^|]*)", table.partition("\n## ")[0], re.MULTILINE)[1:]
    rooms = {one.parent for depth in ("*", "*/*") for one in TOP.glob(f"relay/{depth}/__init__.py")}
    named = set(re.findall(r"\w+", " ".join(rows)))
    assert {room.name for room in rooms} - named - {"verbs"} == set()
