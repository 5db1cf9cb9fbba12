"""The tables of docs/ that are made from the code: `python -m tests.support.docs_tables`, as `make docs` runs it.

A table stands between two comments with its name, and is not counted among the words of docs/.
"""

import dataclasses
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import get_args

import msgspec
from click import Context, Option

from relay.base.accounts.accounts_file import _Entry
from relay.base.message.lifecycle import RecipientState, SubmissionState
from relay.base.message.verdict import Finding, RuleHit
from relay.base.observe.metrics import Metrics
from relay.delivery.reports.wording import RecipientFields
from relay.development.internet.scenario import (
    GraphFault,
    MxHost,
    RateLimit,
    RemoteDomain,
    ScriptedReply,
)
from relay.development.internet.scenario_file import read_scenarios, reply_names
from relay.development.internet.test_recipients import EXAMPLES
from relay.development.verbs.dev import dev
from relay.front_door.graph import errors
from relay.front_door.graph.errors import GraphError
from relay.front_door.graph.routes import _OUTSIDE, _ROUTES
from relay.operation.cli.errors import ExitCode
from relay.operation.cli.root import _GROUPS, cli
from relay.store.journeys import details, document
from relay.store.spool.queue_commands import ListedEntry
from relay.transport.policy.actions import ACTIONS
from relay.transport.policy.conditions import CONDITIONS
from relay.transport.policy.content_actions import DisclaimerFallback
from relay.transport.policy.content_conditions import MessageType
from relay.transport.policy.rules import ExpectedResult, OverallVerdict
from relay.transport.refusals.refusal import Refusal, RefusalReason
from tests.support.relay_config import keys_of

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PAGE = DOCS / "graph.md"
PAGES = {page for page in DOCS.glob("*.md") if "<!-- made: " in page.read_text()}
METRIC = re.compile(r"""((?:^ *# .*\n)+) *self\.\w+ = [\w.]+\(\s*"(\w+)""", re.MULTILINE)
# A class, or the comment of a limit and the name below it.
LIMIT = re.compile(
    r"^class (\w+)|^( *)# limit(?: of (\w+))?: (.+\n(?: *# .+\n)*) *(\w+)", re.MULTILINE
)
# A comment that begins with the name of a request or a verb, and a colon.
ANSWER = re.compile(r"^ *# `((relay|[A-Z]+)\b.*:(?: .+)?\n(?: *# .+\n)*)", re.MULTILINE)
MARKED = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# The names of Graph have capitals, those of patterns have not.
NAMES = """
    childFolders createForward createReply createReplyAll createUploadSession mailFolders mailboxSettings
    masterCategories messageRules permanentDelete replyAll sendMail inferenceClassification
    supportedTimeZones translateExchangeIds
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


def answers(kind: str) -> str:
    """The requests or the verbs, with the comments on their answers."""
    rows = ["| | answer |", "|---|---|"]
    for path in sorted((TOP / "relay").rglob("*.py")):
        for comment, word in ANSWER.findall(path.read_text()):
            name, _, said = " ".join(re.sub("(?m)^ *# ", "", comment).split()).partition(": ")
            said = said.replace("{ListedEntry}", _keys_of(ListedEntry))
            rows += [f"| `{name} | {said} |"] * (word.isupper() == (kind == "request"))
    return "\n".join(rows) + "\n"


def _keys_of(kind: type) -> str:
    """The keys of a Struct in JSON, with those of the Structs in its lists."""
    keys = []
    for field in msgspec.structs.fields(kind):
        inner = [one for one in get_args(field.type) if isinstance(one, type(msgspec.Struct))]
        keys.append(field.name + "".join(f": [{_keys_of(one)}]" for one in inner))
    return "{" + ", ".join(keys) + "}"


def metrics() -> str:
    """The metrics with their labels, their HELP, and the comments above them in the code."""
    rows = ["| metric | labels | |", "|---|---|---|"]
    source = inspect.getsource(sys.modules[Metrics.__module__])
    comments = {
        name: " ".join(text.replace("#", "").split()) for text, name in METRIC.findall(source)
    }
    registry = Metrics().registry
    for name, collector in registry._names_to_collectors.items():
        if (family := next(iter(collector.collect()))).name == name:
            shown = name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
            said = f"{family.documentation} {comments.get(name, '')}"
            rows.append(f"| `{shown}` | {labels} | {said} |")
    return "\n".join(rows) + "\n"


def shipped_rules() -> str:
    """The files of policies/: the beginning of their first sentence, and the mode of their rules."""
    rows = ["| file | rule | mode |", "|---|---|---|"]
    for path in sorted((TOP / "policies").glob("*.toml")):
        first = re.split(r"[.:]\s", re.sub(r"\n#", "", path.read_text()), maxsplit=1)[0]
        mode = tomllib.loads(path.read_text())["rule"][0].get("mode", "enforce")
        rows.append(f"| `{path.name}` | {first.removeprefix('# ')} | {mode} |")
    return "\n".join(rows) + "\n"


def shipped_scenarios() -> str:
    """The scenarios with replies: their domains, and the names of the replies."""
    rows = ["| scenario | domains | replies |", "|---|---|---|"]
    for name, replies in reply_names().items():
        if replies:
            domains = read_scenarios([name]).scenario.domain
            names = ", ".join(one for domain in domains for one in domain.names)
            shown = " ".join(f"`{reply}`" for reply in replies)
            rows.append(f"| `{name}` | {names} | {shown} |")
    return "\n".join(rows) + "\n"


def test_recipients() -> str:
    """The test recipients, those with the same behaviour together."""
    rows = ["| recipient | its host |", "|---|---|"]
    for behaviour, examples in groupby(EXAMPLES, lambda example: example[1]):
        rows.append(f"| {', '.join(f'`{address}`' for address, _ in examples)} | {behaviour} |")
    return "\n".join(rows) + "\n"


def keys_that_need_a_restart() -> str:
    """The keys of relay.toml that a reload does not apply, then the tables of which it applies none."""
    rows = ["| `relay.toml` | needs a restart |", "|---|---|"]
    tables: dict[str, tuple[list[str], list[str]]] = {}
    reloaded = set(keys_of(only_reloaded=True))
    for key in keys_of():
        table, _, name = key.rpartition(".") if key.count(".") < 2 else key.partition(".")
        columns = tables.setdefault(table, ([], []))
        columns[key not in reloaded].append(f"`{name}`")
    whole = []
    for table, (reloadable, restart) in tables.items():
        is_array = table in ("smtp", "domain", "route", "dkim", "tenant", "webhook", "milter")
        brackets = f"`[[{table}]]`" if is_array else f"`[{table}]`"
        if restart and reloadable:
            rows.append(f"| {brackets} | {', '.join(restart)} |")
        elif restart:
            whole.append(brackets if table else "(top)")
    return "\n".join([*rows, f"| {', '.join(whole)} | all keys |"]) + "\n"


def fields(*kinds: type) -> str:
    """The fields of documents, with the docstrings and comments of their classes."""
    rows = ["| field | |", "|---|---|"]
    for kind in kinds:
        title, said = kind.__name__, str(inspect.getdoc(kind))
        if issubclass(kind, details.Detail):
            title = f"step {getattr(kind, 'step', 'N')}"
        if said.startswith(("`", "In `")):
            title, _, said = said.partition(": ")
        rows.append(f"| **{title}** | {said} |")
        rows += [f"| {names} | {comment} |" for names, comment in _commented(kind)]
    return "\n".join(re.sub(r"\s+", " ", row).replace("None", "null") for row in rows) + "\n"


def commands() -> str:
    """The commands, with what --help says of them."""
    rows = ["| command | |", "|---|---|"]
    for title, verbs in _GROUPS.items():
        rows.append(f"| **{title}** | |")
        for verb in verbs:
            found = cli.get_command(Context(cli), verb)
            for name, one in getattr(found, "commands", {"": found}).items():
                said = one.get_short_help_str(limit=200).rstrip(".")
                rows.append(f"| `{f'relay {verb} {name}'.strip()}` | {said} |")
    return "\n".join(rows) + "\n"


def rule_keys(kinds: Mapping[str, type], columns: str) -> str:
    """The keys of rules with the docstrings of their classes: texts, each with its example."""
    rows = ["| key |" + columns, "|---|---|---|"]
    for key, kind in kinds.items():
        shown, paragraphs = f"`{key}`", iter(str(inspect.getdoc(kind)).split("\n\n"))
        for said, example in zip(paragraphs, paragraphs, strict=False):
            rows.append(f"| {shown} | {said.rstrip('.')} | {example} |")
            shown = ""
    return "\n".join(re.sub(r"\s+", " ", row) for row in rows) + "\n"


def _commented(kind: type) -> Iterator[tuple[str, str]]:
    """The names of fields, each with its comment; those without one are together."""
    if issubclass(kind, Enum):
        names = {one.name: one.value for one in kind}
    else:
        listed = dataclasses.fields if dataclasses.is_dataclass(kind) else msgspec.structs.fields
        names = {one.name: getattr(one, "encode_name", one.name) for one in listed(kind)}
    line = r"(?m)((?:^    # .*\n)*)^    (\w+)(?::| =)[^#\n]*(# .+)?$"
    found = re.findall(line, inspect.getsource(kind))
    found = [(name, f"{above}{after}".replace("#", "").strip()) for above, name, after in found]
    known = [(f"`{names[name]}`", comment) for name, comment in found if name in names]
    for (_, comment), group in groupby(
        enumerate(known), lambda row: (row[1][1] and row[0], row[1][1])
    ):
        yield ", ".join(name for _, (name, _) in group), comment


FIELDS = {
    "states": (SubmissionState, RecipientState),
    "fields_of_a_message": (
        *(document.Journey, document.JourneyStep, document.Recipient, document.Attempt),
        *(document.Durations, document.MxRecord, document.SenderReport, details.ReportSource),
    ),
    "fields_of_steps": (
        *(details.Detail, details.CreatedDetail, details.NotifiedDetail, details.ConvertedDetail),
        *(details.AcceptedDetail, details.RoutedDetail, RuleHit, Finding, details.MilterSaid),
        *(details.AttemptDetail, details.AttemptedRecipient, details.CommandDetail),
        *(details.ReportDetail, details.ClaimDetail, details.ComplaintDetail),
    ),
    "fields_of_refusals": (Refusal, RefusalReason),
    "fields_of_accounts": (_Entry,),
    "kinds_of_messages": (MessageType,),
    "fallbacks_of_disclaimers": (DisclaimerFallback,),
    "fields_of_recipients": (RecipientFields,),
    "fields_of_tests": (ExpectedResult, OverallVerdict),
    "exit_codes": (ExitCode,),
    "fields_of_scenarios": (RemoteDomain, MxHost, ScriptedReply, RateLimit, GraphFault),
}
RULE_KEYS = {
    "conditions": partial(rule_keys, CONDITIONS, " matches if | example |"),
    "actions": partial(rule_keys, ACTIONS, " effect | value |"),
}
LIMITS = {"limits_of_graph": partial(limits, "Graph"), "limits_of_rules": partial(limits, "rules")}
MADE = {
    one.__name__: one
    for one in (
        commands,
        endpoints,
        refusals,
        dev_options,
        limits,
        metrics,
        shipped_rules,
        keys_that_need_a_restart,
        shipped_scenarios,
        test_recipients,
    )
} | (LIMITS | RULE_KEYS)
MADE |= {"requests": partial(answers, "request"), "verbs": partial(answers, "verb")}
MADE |= {name: partial(fields, *kinds) for name, kinds in FIELDS.items()}


def with_tables(text: str) -> str:
    """The page with its tables as the code has them now."""
    return MARKED.sub(lambda found: found[1] + MADE[found[2]]() + found[3], text)


def without_tables(text: str) -> str:
    """The page as it was written by hand."""
    return MARKED.sub("", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))
