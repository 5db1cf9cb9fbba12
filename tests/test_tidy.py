"""The house numbers and habits (CONTRIBUTING.md), checked like everything else: each file is read once."""

import ast
import re
import subprocess
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.support.raised_names import raised_names

TOP = Path(__file__).parents[1]
MODULES = sorted(path.relative_to(TOP) for path in (TOP / "relay").rglob("*.py"))
TESTS = sorted(path.relative_to(TOP) for path in (TOP / "tests").rglob("*.py"))

MODULE_LINES_MAX = 700  # of code
FUNCTION_LINES_MAX = 80
UNFORMATTED_MAX = 20  # tables whose columns carry meaning, each with its reason: # fmt: skip # why
TEST_LINE_LENGTH_MAX = 200  # tests hold wire data
POSITIONAL_PARAMETERS_MAX = 3
FIELDS_MIN = 8  # of a dataclass: with as many, each has its comment
# send(sender, recipients, subject, text, html, attachments), as docs/names.md has it
MORE_POSITIONAL = {("relay/testing/relay.py", "send"), ("relay/testing/async_relay.py", "send")}
# Of variables and parameters, how often: the noun of what they have is better.
PLACEHOLDERS = ("one", "each", "given", "found", "wanted", "shown", "some", "its")
PLACEHOLDERS_MAX = 150
VAGUE_VARIABLES_MAX = {
    "item": 202,
    "value": 1538,
    "entry": 402,
    "x": 54,
    "it": 6,
    "obj": 0,
    "thing": 0,
}
VAGUE_NAMES = re.compile(r"(.+_)?(utils|util|helpers|helper|common|misc)")

# calls that only these modules may make: the rest gets time, chance and environment passed in
BANNED = {
    r"time\.(time|time_ns|monotonic|monotonic_ns|perf_counter)\(": "relay/base/clock.py",
    r"datetime\.(now|utcnow|today)\(": "relay/base/clock.py",
    r"time\.sleep\(": "",
    r"asyncio\.(run|new_event_loop)\(": "",  # uvloop runs Relay
    r"(?<!\.)random\.(random|randint|choice|shuffle|uniform|sample|randrange|seed)\(": "",
    r"uuid\.uuid\d\(": "",
    r"os\.(environ|getenv)\b": "relay/base/settings/environment.py",
    r"clock\.sleep\((?!.*# sleeps: )": "",  # says why it does not poll
}
# What runs on a spool must not depend on its engine: relay.store.spool.open() and storage() choose it.
NAME_SQLITE = (
    "relay/store/spool/",
    "relay/store/mailbox/index/",
    "relay/base/settings/",
    "relay/store/mailbox/state_file.py",
    "relay/submission/outbox/unfinished.py",
    "relay/operation/app/probes.py",
    "relay/operation/commands/backup.py",  # a table of its own, of the files that it has seen
    "relay/development/search_index.py",
    "relay/front_door/notifications/subscription_file.py",
)
SQLITE = re.compile(r"sqlite|apsw|[\"']-wal\b|\bspool_file\b", re.IGNORECASE)
# Python's own codec is IDNA 2003: for straße.test it gives strasse.test, another owner's.
IDNA_2003 = re.compile(r"""encodings(?:\.| import )idna|code\(\s*(?:encoding=)?["']idna""")


@dataclass(frozen=True)
class Code:
    """A module of relay/."""

    path: Path
    text: str

    @cached_property
    def nodes(self) -> dict[type[ast.AST], list[Any]]:
        found = defaultdict(list)
        for node in ast.walk(ast.parse(self.text)):
            found[type(node)].append(node)
        return found

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def of(self, *kinds: type[ast.AST]) -> Iterator:
        return (node for kind in kinds for node in self.nodes.get(kind, ()))

    def functions(self) -> Iterator:
        return self.of(ast.FunctionDef, ast.AsyncFunctionDef)


# What begins a module or a block with three quotes: parsing all tests takes ten times as long.
DOCSTRING = re.compile(r'(?:\A|:(?:  #.*)?\n)(?:\s*#.*\n)*\s*r?"""[\s\S]*?"""')


def lines_of_code(text: str) -> int:
    """How many lines of a module are neither blank, nor a comment, nor part of a docstring."""
    code = DOCSTRING.sub(lambda found: ":" if found[0].startswith(":") else "", text)
    return sum(
        line.strip() != "" and not line.lstrip().startswith("#") for line in code.split("\n")
    )


def long_functions(code: Code) -> Iterator[str]:
    for one in code.functions():
        if one.end_lineno - one.lineno >= FUNCTION_LINES_MAX:
            yield f"{one.name}() is too long"


def wide_signatures(code: Code) -> Iterator[str]:
    for one in code.functions():
        names = {each.arg for each in one.args.posonlyargs + one.args.args} - {"self", "cls"}
        is_known = (str(code.path), one.name) in MORE_POSITIONAL
        if len(names) > POSITIONAL_PARAMETERS_MAX and not is_known:
            yield f"{one.name}() has {len(names)} positional parameters"


def fields_without_comment(code: Code) -> Iterator[str]:
    """Public fields of long dataclasses that have neither a comment nor the text of an option."""
    for node in code.of(ast.ClassDef):
        kinds = {ast.unparse(one).partition("(")[0] for one in (*node.decorator_list, *node.bases)}
        fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
        if not kinds & {"dataclass", "Struct"} or len(fields) < FIELDS_MIN:
            continue
        for one in fields:
            is_told = "#" in "".join(code.lines[one.lineno - 1 : one.end_lineno])
            is_told |= code.lines[one.lineno - 2].lstrip().startswith("#")
            is_told |= isinstance(one.value, ast.Call) and len(one.value.args) > 0
            if not is_told and not one.target.id.startswith("_"):
                yield f"{node.name}.{one.target.id} has no comment"


def incomplete_docstrings(code: Code) -> Iterator[str]:
    """The first paragraph of a module's is a sentence; a package's is the map of its modules."""
    docstring = ast.get_docstring(*code.of(ast.Module)) or ""
    path = code.path
    if path.name != "__init__.py":
        if path.name != "__main__.py" and not docstring.partition("\n\n")[0].endswith("."):
            yield "the docstring does not begin with a sentence"
        return
    folder = TOP / path.parent
    names = {one.stem for one in folder.glob("*.py")} - {"__init__"}
    names |= {one.parent.name for one in folder.glob("*/__init__.py")}
    listed = Counter(re.findall(r"^- `(\w+)`: \S", docstring, re.MULTILINE))
    if path.parent != Path("relay") and (wrong := listed - Counter(names) or names - set(listed)):
        yield f"the map of modules: {sorted(wrong)}"
    for named in re.findall(r"`(relay/[\w/]+(?:\.py)?)`", docstring):
        if not (TOP / named).exists():
            yield f"{named} does not exist"


def banned_text(code: Code) -> Iterator[str]:
    path = str(code.path)
    patterns = [one for one, allowed in BANNED.items() if path != allowed]
    patterns = [re.compile(one) for one in patterns if re.search(one, code.text)]
    if not path.startswith(NAME_SQLITE) and SQLITE.search(code.text):
        yield "names SQLite"
    for number, line in enumerate(code.lines if patterns else (), start=1):
        if not line.lstrip().startswith("#"):
            yield from (f"{number}: {line.strip()}" for one in patterns if one.search(line))


def waits_outside_the_clock(code: Code) -> Iterator[str]:
    """Lines that wait for a time, or read the loop's, by asyncio itself and say no `# real time: `."""
    own = {"sleep", "timeout", "timeout_at", "wait_for"}
    of_loops = {"call_later", "call_at"}
    found, allowed = set(), set()
    for node in code.of(ast.ImportFrom, ast.Call, ast.Attribute):
        if isinstance(node, ast.ImportFrom):
            names = {one.name for one in node.names} if node.module == "asyncio" else set()
            found |= {node.lineno} if names & own else set()
        elif isinstance(node, ast.Attribute):
            of = ast.unparse(node.value) if node.attr in own | of_loops | {"time"} else ""
            is_loop = re.search(r"loop(\(\))?$", of)
            if (of == "asyncio" and node.attr in own) or (is_loop and node.attr == "time"):
                found.add(node.end_lineno)
            if node.attr in of_loops and not of.endswith("clock"):
                found.add(node.end_lineno)
        elif getattr(node.func, "attr", "") in ("sleep", "wait"):
            allowed |= {node.lineno} if ast.unparse(node) == "asyncio.sleep(0)" else set()
            has_end = "timeout" in {one.arg for one in node.keywords}
            found |= {node.lineno} if has_end and node.func.value.id == "asyncio" else set()
    for number in sorted(found - allowed) if code.path.name != "clock.py" else ():
        if not re.search(r"# real time: \S", code.lines[number - 1]):
            yield f"{number}: waits outside the clock"


def time_outs_as_disk_errors(code: Code) -> Iterator[str]:
    """asyncio.TimeoutError is an OSError since Python 3.11: who catches that has to look first."""
    waits = r"asyncio\.(?:timeout|timeout_at|wait_for)"
    ends = r"except.*\b(?:TimeoutError|OSError|Exception)\b(?![\s\S]*^ *raise$)|suppress\(TimeoutE"
    for _ in range(3):  # functions that call those that call those that have a time-out
        for node in code.of(ast.AsyncFunctionDef) if re.search(waits, code.text) else ():
            parts = [one for one in ast.walk(node) if isinstance(one, ast.ExceptHandler | ast.With)]
            is_over = any(re.search(ends, ast.unparse(one), re.MULTILINE) for one in parts)
            if re.search(rf"(?:{waits})\(", ast.unparse(node)) and not is_over:
                waits += rf"|\bself\.{node.name}|\bawait {node.name}"
    for node in code.of(ast.Try, ast.With):
        body = "\n".join(map(ast.unparse, node.body))
        if isinstance(node, ast.Try):
            caught = (re.findall("TimeoutError|OSError", ast.unparse(one)) for one in node.handlers)
            is_wrong = next(filter(None, caught), None) == ["OSError"]
        else:
            is_wrong = "suppress(OSError" in ast.unparse(node.items[0])
        if is_wrong and re.search(rf"(?:{waits})\(", body):
            yield f"{node.lineno}: a time-out counts as an error of the disk"


def caught_by_a_name_of_msgspec(code: Code) -> Iterator[str]:
    """What is no UTF-8 is another error in each version of msgspec, and a ValueError in all of them. Its
    name may stand where its words are shown: `except ValidationError as error`.
    """
    for node in code.of(ast.ExceptHandler, ast.Call):
        if isinstance(node, ast.ExceptHandler):
            kinds = ast.unparse(node.type) if node.type else ""
            is_shown = node.name is not None and kinds.endswith("ValidationError")
        else:
            is_shown = not ast.unparse(node.func).endswith("suppress")
            kinds = "" if is_shown else ast.unparse(node)
        if not is_shown and re.search(r"\b(Msgspec|Decode|Encode|Validation)Error\b", kinds):
            yield f"{node.lineno}: catches an error of msgspec by its name"


def odd_log_lines(code: Code) -> Iterator[str]:
    """They name their room, and are plain text."""
    if code.path == Path("relay/base/observe/logs.py"):
        return
    if "import logging" in code.text:
        yield "imports logging"
    events = re.findall(r'_log\.(?:info|warning|error|exception)\(\s*"([^"]*)"', code.text)
    yield from (one for one in events if re.fullmatch(r"\S+[._]\S+", one))
    rooms = set(re.findall(r'get_logger\("([^"]*)"\)', code.text))
    yield from rooms - set(code.path.parts)


CHECKS: tuple[Callable[[Code], Iterator[str]], ...] = (
    long_functions,
    wide_signatures,
    fields_without_comment,
    incomplete_docstrings,
    banned_text,
    waits_outside_the_clock,
    time_outs_as_disk_errors,
    caught_by_a_name_of_msgspec,
    odd_log_lines,
)


def fixed_waits(text: str) -> list[int]:
    """Lines of a test that sleep outside a loop: it waits for the event itself, with a time-out."""
    if ".sleep(" not in text:
        return []
    nodes = list(ast.walk(ast.parse(text)))
    loops = [one for one in nodes if isinstance(one, ast.While | ast.For)]
    polls = {id(node) for loop in loops for node in ast.walk(loop)}
    return [
        node.lineno
        for node in nodes
        if isinstance(node, ast.Call) and id(node) not in polls
        if ast.unparse(node.func) in ("time.sleep", "asyncio.sleep")
        if isinstance(node.args[0], ast.Constant) and node.args[0].value
    ]


def test_each_module_keeps_the_habits_and_relay_its_size() -> None:
    found, lines = [], 0
    names: Counter[str] = Counter()
    classes: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        code = Code(path, (TOP / path).read_text())
        found += [f"{path}: {fault}" for check in CHECKS for fault in check(code)]
        found += [f"{path}: a vague name"] * bool(VAGUE_NAMES.fullmatch(path.stem))
        found += [f"{path}: IDNA 2003"] * bool(IDNA_2003.search(code.text))
        own = lines_of_code(code.text)
        found += [f"{path}: {own} lines of code"] * (own > MODULE_LINES_MAX)
        lines += own
        names.update(node.id for node in code.of(ast.Name))
        names.update(node.arg for node in code.of(ast.arg))
        for node in code.of(ast.ClassDef):
            classes[node.name].append(str(path))
    # A reader who searches for a class finds one; two for the same concept become one.
    found += [f"{name}: {paths}" for name, paths in classes.items() if len(paths) > 1]
    assert found == []
    assert lines <= ceiling("code_lines")
    assert sum(names[word] for word in PLACEHOLDERS) <= PLACEHOLDERS_MAX
    over = {name: names[name] for name, most in VAGUE_VARIABLES_MAX.items() if names[name] > most}
    assert over == {}


def test_each_test_keeps_the_habits_and_all_their_size() -> None:
    found, lines = [], 0
    for path in TESTS:
        text = (TOP / path).read_text()
        found += [f"{path}:{number} sleeps" for number in fixed_waits(text)]
        found += [f"{path}: IDNA 2003"] * bool(IDNA_2003.search(text))
        found += [f"{path}: a long line"] * (max(map(len, text.split("\n"))) > TEST_LINE_LENGTH_MAX)
        lines += lines_of_code(text)
    assert found == []
    assert lines <= ceiling("test_lines")


def ceiling(key: str) -> int:
    """Set once for a release: what needs more lines finds them elsewhere."""
    return tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["relay"][key]


# Each line with a number is a fault.
WRONG = '''
"""No sentence"""
async def ask(self, a, b, c, d):  # 0
    try:
        async with asyncio.timeout(1):  # real time: a peer
            await self.answer
    except TimeoutError:
        raise

async def wrong(self):
    try:  # 1
        await self.ask()
    except (ValueError, OSError):
        await asyncio.sleep(0)
        await asyncio.sleep(pause_s)  # 2
    await asyncio.wait(tasks, timeout=1)  # 3
    self.timer = loop.call_later(1, self.end)  # 4
    self.timer = self.clock.call_later(1, self.end)
    self.now_s = self._loop.time  # 5
    from asyncio import sleep  # 6
    await self._clock.sleep(1)  # 7
    _log.info("no_text")

async def right(self):
    try:
        await self.ask()
    except TimeoutError:
        pass
    except OSError:
        await self._clock.sleep(1)  # sleeps: why
    except (UnicodeDecodeError, msgspec.DecodeError) as error:  # 8
        with suppress(ValidationError):  # 9
            pass
    except msgspec.ValidationError as error:
        pass
    import apsw
'''
LONG = "class Long(Struct):\n" + "".join(
    f"    f{one}: int  # why\n" for one in range(FIELDS_MIN - 1)
)


def test_faults_are_found() -> None:
    code = Code(Path("relay/base/module.py"), WRONG)
    found = [fault.partition(":") for check in CHECKS for fault in check(code)]
    marked = [n for n, line in enumerate(code.lines, start=1) if re.search(r"# [1-9]$", line)]
    assert sorted(int(one[0]) for one in found if one[1]) == marked
    assert sorted(one[0] for one in found if not one[1]) == [
        "ask() has 4 positional parameters",
        "names SQLite",
        "no_text",
        "the docstring does not begin with a sentence",
    ]
    for last, faults in (("    # why\n    last: int", 0), ("    last: int", 1)):
        assert len(list(fields_without_comment(Code(Path("a.py"), LONG + last)))) == faults
    package = '"""Dust.\n\n- `clock`: a clock, as `relay/gone.py`\n- `bin`: a bin\n"""'
    assert list(incomplete_docstrings(Code(Path("relay/base/__init__.py"), package))) == [
        "the map of modules: ['bin']",
        "relay/gone.py does not exist",
    ]
    assert fixed_waits("while True:\n    time.sleep(1)\ntime.sleep(1)") == [3]
    assert IDNA_2003.search("domain.encode(" + "'idna')")


def test_raised_names_that_keep_their_exception_are_found() -> None:
    module = """
def right(task):
    try:
        task()
    except OSError as error:
        raise error
    failure = task.exception()
    try:
        raise failure
    finally:
        del failure

def wrong(given):
    kept = given.exception()
    def later():
        raise kept
    raise kept.with_traceback(None)
"""
    assert [name for _, name in raised_names(module)] == ["kept", "kept"]


# Words of no standard.
OUTDATED = (
    "behind (a|the) cursor|errand|given back|in work|mailroom|mend|noteboard|put aside|taken on"
    "|takes on|trembles|upkeep|whoever"
)


def grep(*words: str) -> list[str]:
    """What `git grep` finds in the tracked files."""
    found = subprocess.run(
        ["git", "grep", *words], cwd=TOP, capture_output=True, text=True, check=False
    )
    if found.returncode > 1:
        pytest.skip("this is no git checkout")
    return found.stdout.splitlines()


def test_code_and_docs_use_the_usual_words() -> None:
    kinds = [
        f"{top}/*.{kind}"
        for top in ("relay", "docs", "conf")
        for kind in ("py", "sql", "md", "toml")
    ]
    assert grep("-oiwE", OUTDATED, "--", *kinds, "README.md", "CONTRIBUTING.md") == []


def test_the_formatter_is_on_nearly_everywhere() -> None:
    switched_off = grep("-nE", r"# fmt: (skip|off)", "--", "*.py", ":!tests/test_tidy.py")
    assert [line for line in switched_off if not line.partition("fmt: ")[2].partition("#")[2]] == []
    assert len(switched_off) <= UNFORMATTED_MAX


def test_no_file_contains_machine_paths_or_kills_by_name() -> None:
    """Paths of somebody's machine, addresses of package indexes, pkill: none in any tracked file."""
    pattern = (
        r"(^|[^A-Za-z0-9_/.])/(work|root|farm|home)/|index-url|registry=http|\b(pkill|killall)\b"
    )
    assert grep("-alE", pattern, "--", ".", ":!tests/test_tidy.py") == []
