"""The house numbers and habits (CONTRIBUTING.md), checked like everything else."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.raised_names import raised_names

TOP = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(TOP) for path in (TOP / "relay").rglob("*.py"))
TESTS = sorted(path.relative_to(TOP) for path in (TOP / "tests").rglob("*.py"))

MODULE_LINES_MAX = 500  # of code
FUNCTION_LINES_MAX = 60
LINE_LENGTH_MAX = 100
POSITIONAL_PARAMETERS_MAX = 3
FIELDS_MIN = 8  # of a dataclass: with as many, each has its comment
# send(sender, recipients, subject, text, html, attachments), as docs/names.md has it
MORE_POSITIONAL = {("relay/testing/relay.py", "send"), ("relay/testing/async_relay.py", "send")}

# calls that only these modules may make: the rest gets time, chance and environment passed in
BANNED = {
    r"time\.(time|time_ns|monotonic|monotonic_ns|perf_counter)\(": {"relay/base/clock.py"},
    r"datetime\.(now|utcnow|today)\(": {"relay/base/clock.py"},
    r"time\.sleep\(": set(),
    r"(?<!\.)random\.(random|randint|choice|shuffle|uniform|sample|randrange|seed)\(": set(),
    r"uuid\.uuid\d\(": set(),
    r"os\.(environ|getenv)\b": {"relay/base/settings/environment.py"},
    r"\b(FIXME|TODO|XXX|HACK)\b": set(),
    r"# type: ignore(?!\[)": set(),
    r"# noqa(?!: [A-Z])": set(),
}


def for_each(paths: Iterable[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """One test for all paths, which names those that fail: a test for each costs more than it checks."""

    def decorate(check: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            failures = []
            for path in paths:
                try:
                    check(path)
                except AssertionError as error:
                    failures.append(f"{path}: {error}")
            assert not failures, "\n".join(failures)

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


@cache
def text_of(path: Path) -> str:
    return (TOP / path).read_text()


@cache
def nodes(text: str) -> tuple[ast.AST, ...]:
    """All nodes of a module, itself first; to walk through them costs more than to parse it."""
    return tuple(ast.walk(ast.parse(text)))


@pytest.fixture(scope="module", autouse=True)
def syntax_trees() -> Iterator[None]:
    """Keep the trees no longer than they are needed: the garbage collector looks at each node."""
    yield
    nodes.cache_clear()
    functions.cache_clear()


def syntax(path: Path) -> ast.Module:
    return nodes(text_of(path))[0]


@cache
def functions(path: Path) -> tuple[ast.FunctionDef | ast.AsyncFunctionDef, ...]:
    defined = ast.FunctionDef | ast.AsyncFunctionDef
    return tuple(node for node in nodes(text_of(path)) if isinstance(node, defined))


def code_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines without those that are only a comment."""
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        if not re.match(r"\s*#(?!\s*(noqa|type:))", line):
            yield number, line


@cache
def lines_of_code(path: Path) -> int:
    """How many lines of a module are neither blank, nor a comment, nor part of a docstring."""
    documented: set[int] = set()
    for node in nodes(text_of(path)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())) as docstring, *_]:
                    documented.update(range(docstring.lineno, docstring.end_lineno + 1))
    return sum(
        1
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if number not in documented and line.strip() and not line.lstrip().startswith("#")
    )


@for_each(MODULES)
def test_modules_and_functions_are_short(path):
    assert lines_of_code(path) <= MODULE_LINES_MAX
    long = [f.name for f in functions(path) if f.end_lineno - f.lineno >= FUNCTION_LINES_MAX]
    assert long == []


def test_relay_has_no_more_lines_of_code_than_its_ceiling():
    """A change that needs lines finds them elsewhere: nobody raises the number."""
    ceiling = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["relay"]["code_lines"]
    assert sum(map(lines_of_code, MODULES)) <= ceiling


@for_each([*MODULES, *TESTS])
def test_lines_are_short(path):
    lines = text_of(path).splitlines()
    limit = LINE_LENGTH_MAX if path in MODULES else 200  # tests hold wire data
    assert [n for n, line in enumerate(lines, start=1) if len(line) > limit] == []


@for_each(MODULES)
def test_signatures_have_few_positional_parameters(path):
    wide = []
    for function in functions(path):
        names = [argument.arg for argument in function.args.posonlyargs + function.args.args]
        names = [name for name in names if name not in ("self", "cls")]
        is_known = (str(path), function.name) in MORE_POSITIONAL
        if len(names) > POSITIONAL_PARAMETERS_MAX and not is_known:
            wide.append(f"{function.name}({', '.join(names)})")
    assert wide == []


@for_each(MODULES)
def test_each_field_of_a_long_dataclass_has_a_comment(path):
    assert fields_without_comment(text_of(path)) == []


def test_fields_without_comment_are_found():
    fields = "".join(f"    f{number}: int  # why\n" for number in range(FIELDS_MIN - 1))
    module = f"@dataclass(frozen=True)\nclass Long:\n{fields}"
    assert fields_without_comment(f"{module}    # above\n    last: int\n") == []
    assert fields_without_comment(f"{module}    last: int\n") == ["Long.last"]
    assert fields_without_comment(module.replace("# why", "")) == []
    struct = module.replace(
        "@dataclass(frozen=True)\nclass Long", "class Long(Struct, frozen=True)"
    )
    assert fields_without_comment(f"{struct}    last: int\n") == ["Long.last"]


def fields_without_comment(text: str) -> list[str]:
    """Fields of long dataclasses, except private ones, that have a comment neither beside nor above."""
    lines, missing = text.splitlines(), []
    for node in nodes(text):
        if isinstance(node, ast.ClassDef) and {"dataclass", "Struct"} & {
            name_of(one) for one in (*node.decorator_list, *node.bases)
        }:
            fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
            if len(fields) >= FIELDS_MIN:
                missing += [
                    f"{node.name}.{one.target.id}"
                    for one in fields
                    if not one.target.id.startswith("_")
                    if "#" not in "".join(lines[one.lineno - 1 : one.end_lineno])
                    if not lines[one.lineno - 2].lstrip().startswith("#")
                ]
    return missing


def name_of(decorator: ast.expr) -> str:
    return ast.unparse(decorator).partition("(")[0]


@for_each([p for p in MODULES if p.name != "__init__.py"])
def test_a_module_docstring_begins_with_a_sentence(path):
    if path == Path("relay/__main__.py"):
        return
    summary, _, _ = (ast.get_docstring(syntax(path)) or "").partition("\n\n")
    assert summary.endswith(".")


@for_each([p for p in MODULES if p.name == "__init__.py"])
def test_a_package_has_a_docstring(path):
    assert len((ast.get_docstring(syntax(path)) or "").splitlines()) >= 1


@for_each([p for p in MODULES if p.name == "__init__.py" and p.parent != Path("relay")])
def test_the_docstring_of_a_package_is_the_map_of_its_modules(path):
    folder = TOP / path.parent
    modules = {one.stem for one in folder.glob("*.py")} - {"__init__"}
    packages = {one.parent.name for one in folder.glob("*/__init__.py")}
    assert map_faults(ast.get_docstring(syntax(path)) or "", modules | packages) == []


def test_faults_of_a_map_are_found():
    docstring = """Step 8: tidy up.

- `broom`: what is swept, for example in `relay/store/spool/types.py`
- `bin`: what is kept: two
  lines are possible

Elsewhere: why there is dust: `relay/base/message/outcome.py`; its `colour`: `relay/store/spool`.
"""
    assert map_faults(docstring, {"broom", "bin"}) == []
    assert map_faults(docstring, {"broom", "bin", "mop"}) == ["no line for `mop`"]
    assert map_faults(docstring, {"broom"}) == ["a line for `bin`, which does not exist"]
    twice = f"{docstring}- `bin`: what is thrown away\n"
    assert map_faults(twice, {"broom", "bin"}) == ["two lines for `bin`"]
    empty = docstring.replace(": what is swept, for example in `relay/store/spool/types.py`", ":")
    assert map_faults(empty, {"broom", "bin"}) == ["no line for `broom`"]
    moved = docstring.replace("outcome.py", "outcomes.py").replace(
        "`relay/store/spool`", "`relay/soap`"
    )
    assert map_faults(moved, {"broom", "bin"}) == [
        "`relay/base/message/outcomes.py` does not exist",
        "`relay/soap` does not exist",
    ]


def map_faults(docstring: str, names: set[str]) -> list[str]:
    """What a package's docstring leaves out of its modules, or says of those that do not exist."""
    listed = re.findall(r"^- `(\w+)`: \S", docstring, re.MULTILINE)
    return [
        *(f"no line for `{name}`" for name in sorted(names - set(listed))),
        *(f"a line for `{name}`, which does not exist" for name in sorted(set(listed) - names)),
        *(f"two lines for `{name}`" for name in sorted(names) if listed.count(name) > 1),
        *(
            f"`{path}` does not exist"
            for path in re.findall(r"`(relay/[\w/]+(?:\.py)?)`", docstring)
            if not (TOP / path).exists()
        ),
    ]


@for_each(MODULES)
def test_time_randomness_and_environment_are_passed_in(path):
    found = [
        f"{number}: {line.strip()}"
        for pattern, allowed in BANNED.items()
        if str(path) not in allowed and re.search(pattern, text_of(path))
        for number, line in code_lines(path)
        if re.search(pattern, line)
    ]
    assert found == []


@for_each(MODULES)
def test_sleeps_say_why_they_do_not_poll(path):
    bare = [
        f"{number}: {line.strip()}"
        for number, line in code_lines(path)
        if re.search(r"clock\.sleep\(", line) and "# sleeps: " not in line
    ]
    assert bare == []


@for_each([p for p in MODULES if p != Path("relay/base/clock.py")])
def test_waits_for_a_time_go_through_the_clock(path):
    assert waits_outside_the_clock(text_of(path)) == []


def test_waits_outside_the_clock_are_found():
    module = """
async def right(self):
    await asyncio.sleep(0)
    await asyncio.wait(tasks)
    await self._clock.sleep(pause_s)
    self.timer = self.clock.call_later(pause_s, self.wake)
    async with asyncio.timeout(1):  # real time: a peer
        await self.reply
    self.timer = loop.call_later(  # real time: a peer
        1, self.end
    )

async def wrong(self):
    await asyncio.sleep(pause_s)
    async with asyncio.timeout(1):  # real time:
        async with asyncio.timeout_at(1):
            await asyncio.wait_for(self.reply, 1)
    await asyncio.wait(tasks, timeout=1)
    self.timer = loop.call_later(1, self.end)
    asyncio.get_running_loop().call_at(1, self.end)
    self.now_s = self._loop.time
    from asyncio import sleep
"""
    assert waits_outside_the_clock(module) == [14, 15, 16, 17, 18, 19, 20, 21, 22]


def waits_outside_the_clock(text: str) -> list[int]:
    """Lines that wait for a time, or read the loop's, by asyncio itself and say no `# real time: `."""
    own = {"sleep", "timeout", "timeout_at", "wait_for"}
    of_loops = {"time", "call_later", "call_at"}
    found, allowed = set(), set()
    for node in nodes(text):
        if isinstance(node, ast.ImportFrom) and node.module == "asyncio":
            found |= {node.lineno for one in node.names if one.name in own}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("sleep", "wait"):
            if ast.unparse(node) == "asyncio.sleep(0)":
                allowed.add(node.lineno)
            elif ast.unparse(node.func) == "asyncio.wait":
                found |= {node.lineno for one in node.keywords if one.arg == "timeout"}
        elif isinstance(node, ast.Attribute) and node.attr in own | of_loops:
            of = ast.unparse(node.value)
            is_loop = re.search(r"loop(\(\))?$", of)
            if (
                (of == "asyncio" and node.attr in own)
                or (is_loop and node.attr == "time")
                or (node.attr in of_loops - {"time"} and not of.endswith("clock"))
            ):
                found.add(node.end_lineno)
    lines = text.splitlines()
    marked = {n for n, line in enumerate(lines, start=1) if re.search(r"# real time: \S", line)}
    return sorted(found - allowed - marked)


def test_raised_names_that_keep_their_exception_are_found():
    module = """
def right(task, kind: type[OSError]):
    try:
        task()
    except OSError as error:
        note = error.errno
        raise error
    if note:
        raise kind
    failure = task.exception()
    try:
        raise failure
    finally:
        del failure

def wrong(given):
    kept = None
    try:
        given()
    except OSError as error:
        kept = error
    except ValueError as error:
        raise kept from error

    def later():
        raise kept
    if kept:
        raise kept.with_traceback(None)
    for one in given:
        raise one
    match given:
        case OSError() as matched:
            raise matched
    raise given

BROKEN = OSError()

def shared():
    raise BROKEN
"""
    names = ["kept", "kept", "kept", "one", "matched", "given", "BROKEN"]
    assert [name for _, name in raised_names(module)] == names


@for_each(MODULES)
def test_timeouts_are_not_handled_as_disk_errors(path):
    """asyncio.TimeoutError is an OSError since Python 3.11: who catches that has to look first."""
    if re.search(r"asyncio\.(timeout|wait_for)", text_of(path)):
        assert errors_for_time_outs(syntax(path)) == []


def test_timeouts_handled_as_disk_errors_are_found():
    module = """
async def ask(self):
    try:
        async with asyncio.timeout(1):
            await self.answer
    except TimeoutError:
        self.late += 1
        raise

async def wrong(self):
    try:
        await self.ask()
    except (ValueError, OSError):
        pass

async def right(self):
    try:
        await self.ask()
    except TimeoutError:
        pass
    except OSError:
        pass
"""
    assert errors_for_time_outs(ast.parse(module)) == [13]


def errors_for_time_outs(tree: ast.Module) -> list[int]:
    """Lines that catch an OSError which may be a time-out of asyncio's, as far as one module tells."""
    named: set[str] = set()

    def caught(handler: ast.ExceptHandler) -> set[str]:
        return (
            {name.id for name in ast.walk(handler.type) if isinstance(name, ast.Name)}
            if handler.type
            else {"OSError"}
        )

    def ends(handler: ast.ExceptHandler) -> bool:
        raises = any(isinstance(one, ast.Raise) and one.exc is None for one in ast.walk(handler))
        return bool(caught(handler) & {"TimeoutError", "OSError", "Exception"}) and not raises

    def may_time_out(node: ast.AST) -> bool:
        if isinstance(node, ast.Try) and any(map(ends, node.handlers)):
            return any(map(may_time_out, [*node.handlers, *node.orelse, *node.finalbody]))
        if isinstance(node, ast.With) and "suppress(TimeoutError" in ast.unparse(node.items[0]):
            return False
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            own = name.removeprefix("self.")
            if (
                name in ("asyncio.timeout", "asyncio.timeout_at", "asyncio.wait_for")
                or own in named
            ):
                return True
        return any(map(may_time_out, ast.iter_child_nodes(node)))

    for _ in range(3):  # functions that call those that call those that have a time-out
        for node in ast.walk(tree):
            if isinstance(node, ast.AsyncFunctionDef) and any(map(may_time_out, node.body)):
                named.add(node.name)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(map(may_time_out, node.body)):
            first = next(
                (one for one in node.handlers if caught(one) & {"TimeoutError", "OSError"}), None
            )
            if first is not None and "TimeoutError" not in caught(first):
                found.append(first.lineno)
        if isinstance(node, ast.With) and "suppress(OSError" in ast.unparse(node.items[0]):
            found += [node.lineno] * any(map(may_time_out, node.body))
    return found


@for_each(TESTS)
def test_no_test_waits_for_a_fixed_time(path):
    if ".sleep(" not in text_of(path):
        return
    tree = syntax(path)
    polls = {
        id(node)
        for loop in ast.walk(tree)
        if isinstance(loop, ast.While | ast.For)
        for node in ast.walk(loop)
    }
    waits = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and id(node) not in polls
        if ast.unparse(node.func) in ("time.sleep", "asyncio.sleep")
        if isinstance(node.args[0], ast.Constant) and node.args[0].value
    ]
    assert waits == [], "wait for the event itself, with a time-out"


@for_each(MODULES)
def test_log_lines_name_their_room_and_are_plain_text(path):
    if path == Path("relay/base/observe/logs.py"):
        return
    text = text_of(path)
    assert "import logging" not in text
    assert set(re.findall(r'get_logger\("([^"]*)"\)', text)) <= set(path.parts)
    events = re.findall(r'_log\.(?:info|warning|error|exception)\(\s*"([^"]*)"', text)
    assert [event for event in events if re.fullmatch(r"\S+[._]\S+", event)] == []


def test_module_names_are_specific():
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [str(p) for p in MODULES if p.stem in vague or p.stem.endswith("_utils")] == []


def test_a_class_name_occurs_once():
    """A reader who searches for a class finds one; two for the same concept become one."""
    found: dict[str, list[str]] = {}
    for path in MODULES:
        for node in nodes(text_of(path)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_only_the_spool_and_the_index_name_sqlite():
    """What runs on a spool must not depend on its engine: relay.store.spool.open() and storage() choose it."""
    own = (
        "relay/store/spool/",
        "relay/store/mailbox/index/",
        "relay/base/settings/",
        "relay/store/mailbox/state_file.py",
        "relay/submission/outbox/unfinished.py",
        "relay/operation/commands/backup.py",  # a table of its own, of the files that it has seen
        "relay/development/search_index.py",
        "relay/front_door/notifications/subscription_file.py",
    )
    found = [
        f"{path}:{number}"
        for path in MODULES
        if not str(path).startswith(own)
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if re.search(r"sqlite|apsw|[\"']-wal\b|\bspool_file\b", line, re.IGNORECASE)
    ]
    assert found == []


def test_domains_are_converted_by_idna_2008():
    """Python's own codec is IDNA 2003: for straße.test it gives strasse.test, another owner's."""
    codec = re.compile(r"""encodings(?:\.| import )idna|code\(\s*(?:encoding=)?["']idna""")
    assert codec.search("domain.encode(" + "'idna')")
    paths = [*MODULES, *TESTS]
    assert [str(path) for path in paths if codec.search(text_of(path))] == []


# Words of no standard, and the paths that may have them: names on disk, and prose not yet rewritten.
OUTDATED_WORDS = {
    "anew": ("relay/front_door/pages/step_evidence.py", "docs/"),  # "encoded anew: 8 bit"
    "ballast": (
        "relay/store/spool/sqlite/disk_space.py",
        "docs/operation-reference.md",
        "docs/operation-repair.md",
    ),
    "behind (a|the) cursor": (),
    "errand": (),
    "given back": (),
    "in work": (),
    "mailroom": (),
    "mend": (),
    "noteboard": (),
    "put aside": (),
    "salvage": ("relay/store/spool/sqlite/spool_files.py",),
    "steady_us": (
        "relay/submission/outbox/on_disk.py",
        "relay/store/spool/shared/columns.py",
        "relay/store/spool/sqlite/",
        "relay/store/spool/postgres/",
    ),
    "taken on": (),
    "takes on": (),
    "trembles": (),
    "upkeep": (),
    "whoever": (),
}


def test_code_and_docs_use_the_usual_words():
    tops = [TOP / name for name in ("relay", "docs", "conf")]
    paths = [path for top in tops for path in top.rglob("*") if path.is_file()]
    paths += [TOP / "README.md", TOP / "CONTRIBUTING.md"]
    any_of_them = re.compile(rf"\b(?:{'|'.join(OUTDATED_WORDS)})\b", re.IGNORECASE)
    found = [
        (word, name)
        for path in paths
        if path.suffix in (".py", ".sql", ".md", ".toml")
        if any_of_them.search(text := path.read_text())
        for word, allowed in OUTDATED_WORDS.items()
        if not (name := str(path.relative_to(TOP))).startswith(allowed)
        if re.search(rf"\b{word}\b", text, re.IGNORECASE)
    ]
    assert found == []


def test_only_the_command_line_prints():
    prints = [
        f"{path}:{node.lineno}"
        for path in MODULES
        if "cli" not in path.parts and "print(" in text_of(path)
        for node in nodes(text_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id == "print"
    ]
    assert prints == []


def test_no_file_contains_machine_paths_or_kills_by_name():
    """Paths of somebody's machine, addresses of package indexes, pkill: none in any tracked file."""
    names = subprocess.run(
        ["git", "ls-files", "-z"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    if names.returncode:
        pytest.skip("this is no git checkout")
    slash = "/"
    pattern = re.compile(
        rf"(^|[^A-Za-z0-9_/.])/(work|root|farm|home){slash}|index-url|registry=http|\b(pkill|killall)\b"
    )
    found = []
    for name in filter(None, names.stdout.split("\0")):
        path = TOP / name
        if not path.is_file() or path == Path(__file__):
            continue
        text = path.read_text(errors="replace")
        found += [
            f"{name}:{number}"
            for number, line in enumerate(text.splitlines(), start=1)
            if pattern.search(line)
        ]
    assert found == []
