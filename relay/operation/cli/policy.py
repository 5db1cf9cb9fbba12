"""`relay policy check | test | try | diff`: check the mail-flow rules, run their tests, try a
message, compare two sets.

Exits 78 for faults and failed tests, 65 for a file that is not a message or to which the rules
cannot be applied, and 66 for one that does not exist. `diff` prints each file as soon as it is
compared, and the sums at the end, with --json as a line each. At most SHOWN_MAX files are printed,
the others counted.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from msgspec import to_builtins
from msgspec.structs import replace

from relay.base.clock import SystemClock
from relay.base.message.address import AddressError, parse_mailbox
from relay.base.message.envelope import Source, main_address
from relay.base.message.verdict import ExaminedMessage
from relay.base.phrases import counted, shown
from relay.base.settings.document import Fault, SettingsError
from relay.base.settings.tree import Settings
from relay.base.settings.validation import is_trusted
from relay.base.settings.values import parse_ip
from relay.operation.app.tenant_sets import book_of, load_strictly, rules_of_a_start, trouble_of
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.options import (
    CommandContext,
    InputPath,
    Parsed,
    common_options,
    read_input,
)
from relay.operation.cli.output import print_json_line, print_lines, printable, verdict_lines
from relay.operation.commands.rule_diff import Difference, RuleComparison
from relay.operation.commands.saved_mail import (
    NotMailError,
    SavedMailReader,
    find_saved,
    reason_of,
)
from relay.transport.policy.archives import UnexaminedArchiveError
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.explanation import explain, verdict_document
from relay.transport.policy.message_parts import TooManyPartsError
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_files import load_rules, read_rules, unread_directories
from relay.transport.policy.rule_test_reader import crlf
from relay.transport.policy.rule_tests import (
    PolicyReport,
    examined_message,
    format_check,
    format_test_results,
    run_tests,
)


def _address(text: str) -> str:
    try:
        return parse_mailbox(text, smtputf8=True)
    except AddressError as error:
        raise ValueError(f"an address: {error}") from None


_DIRECTORY = click.argument("directory", required=False, type=InputPath(file_okay=False))


@click.group()
@common_options
def policy(_given: CommandContext) -> None:
    """Check and try the mail-flow rules."""


@policy.command()
@_DIRECTORY
@common_options
def check(context: CommandContext, directory: Path | None) -> None:
    """Check the rules and their tests, as a start would.

    Those of all tenants too, or those of DIRECTORY alone. Exits 78 with file:line of each fault.
    """
    sets = _sets(context, directory, runs_tests=True)
    unread = unread_directories(directory) if directory else ""
    warnings = [unread] if unread else []
    warnings += [text for rules, _ in sets for text in rules.warnings]
    report = format_check([rules for rules, _ in sets], warnings, time_us=SystemClock().time_us())
    _print(context, report)


@policy.command()
@_DIRECTORY
@common_options
def test(context: CommandContext, directory: Path | None) -> None:
    """Run the rules' own tests; exits 78 when one fails."""
    sets = _sets(context, directory, runs_tests=False)
    results = [result for rules, local in sets for result in run_tests(rules, local_domains=local)]
    _print(context, format_test_results([rules for rules, _ in sets], results))


@policy.command("try")
@click.argument("file", type=InputPath())
@click.option(
    "--from",
    "sender",
    required=True,
    type=Parsed("ADDRESS", lambda text: "" if text in ("", "<>") else _address(text)),
    metavar="ADDRESS",
    help="The reverse-path; <> is the null reverse-path.",
)
@click.option(
    "--to",
    "recipients",
    required=True,
    multiple=True,
    type=Parsed("ADDRESS", _address),
    metavar="ADDRESS",
    help="A recipient.",
)
@click.option(
    "--source",
    type=click.Choice([str(source) for source in Source]),
    default=str(Source.SMTP),
    show_default=True,
)
@click.option(
    "--client",
    type=Parsed("ADDRESS", lambda text: text and parse_ip(text)),
    default="",
    help="The client's IP address. [default: none, as with the API]",
)
@click.option(
    "--login", metavar="ACCOUNT", default="", help="The account that sends it. [default: none]"
)
@common_options
def try_(context: CommandContext, *, file: Path, **options: Any) -> None:
    """Say what the rules would do with a message, without doing it.

    Shows each rule, and each of its conditions with the value that it compared. A client without a
    login is a stranger, unless a listener trusts its network.
    """
    settings = context.settings()
    clock = SystemClock()
    rules, sets = rules_of_a_start(settings, context.found_config_file(), clock)
    faults = [str(fault) for tenant in sets.values() for fault in tenant.faults]
    for text in (*faults, trouble_of(sets)):
        if text:
            click.echo(printable(f"relay policy try: {text}"), err=True)
    content = crlf(read_input("policy try", file))
    recipients = (main_address(to, settings.alias_domains) for to in options["recipients"])
    subject = examined_message(
        options["sender"],
        list(dict.fromkeys(recipients)),
        content,
        source=Source(options["source"]),
        local_domains=settings.own_domains,
        client=options["client"],
        login=options["login"],
        is_trusted=not options["client"]
        or bool(options["login"])
        or is_trusted(settings.smtp, options["client"]),
    )
    subject = replace(subject, time_us=clock.time_us(), alias_domains=settings.alias_domains)
    if not subject.content.header.fields:
        raise CommandError(ExitCode.DATA, f"relay policy try: {shown(str(file))} has no header")
    try:
        explained = explain(rules, subject)
    except TooManyPartsError as error:
        text = f"the rules cannot be applied to {shown(str(file))}, which is rejected: {error}"
        raise CommandError(ExitCode.DATA, f"relay policy try: {text}") from None
    except UnexaminedArchiveError as error:
        text = f"the rules cannot be applied to {shown(str(file))}, which is deferred: {error}"
        raise CommandError(ExitCode.DATA, f"relay policy try: {text}") from None
    document = verdict_document(explained)
    context.show(document, lambda: verdict_lines(document))


@policy.command()
@click.argument("old", type=InputPath(file_okay=False))
@click.argument("new", type=InputPath(file_okay=False))
@click.option(
    "--mail",
    required=True,
    type=InputPath(file_okay=False),
    metavar="DIR",
    help="The mail: .eml files, and Maildirs.",
)
@common_options
def diff(context: CommandContext, old: Path, new: Path, *, mail: Path) -> None:
    """Say which saved mail two directories of rules treat differently.

    Shows what becomes of each such message with OLD and with NEW, and how many messages each rule
    matches. Nothing is changed or sent. The rules' own tests are not run, and no rate limit counts.
    Local domains, and envelopes of mail that a running relay has delivered, are those of the
    configuration; other envelopes are in the fields Return-Path, Delivered-To, To, Cc and Bcc.
    """
    file = context.found_config_file()
    settings = context.settings() if context.names_config or file.exists() else None
    books, faults = list[RuleBook](), list[Fault]()
    for folder in (old, new):
        try:
            books.append(_book_in(folder, settings, file))
        except SettingsError as error:
            faults += error.faults
    if faults:
        raise SettingsError(faults)
    comparison, reader = RuleComparison(*books), SavedMailReader(settings)
    report = DiffReport(as_json=context.json)
    for path in find_saved(mail, report.skip):
        try:
            saved = reader.read(path)
            report.add(path, saved, comparison.compare(saved[0]))
        except (NotMailError, OSError) as error:
            report.skip(path, reason_of(error))
    report.end(comparison.counts(), reader.without_journeys)


def _book_in(folder: Path, settings: Settings | None, file: Path) -> RuleBook:
    """Read the rules in `folder` instead of the directory in the configuration `file`, and the
    rules of tenants there. Their tests are not run. Raises PolicyError.
    """
    if settings is None:
        return RuleBook(read_rules(folder))
    policy = dataclasses.replace(settings.policy, directory=folder)
    there = dataclasses.replace(settings, policy=policy)
    return book_of(load_strictly(there, file, runs_tests=False), settings)


def _sets(
    context: CommandContext, directory: Path | None, *, runs_tests: bool
) -> list[tuple[RuleSet, Sequence[str]]]:
    """Return each set of rules, with the domains that are local in its tests. With `directory`, no
    configuration is needed. Raises PolicyError.
    """
    if directory is not None:
        return [(load_rules(directory) if runs_tests else read_rules(directory), ())]
    settings = context.settings()
    sets = load_strictly(settings, context.found_config_file(), runs_tests=runs_tests)
    return [(rules, tenant.domains if tenant else settings.own_domains) for tenant, rules in sets]


def _print(context: CommandContext, report: PolicyReport) -> None:
    context.show(report.document, lambda: list(report.lines))
    if not report.good:
        raise CommandError(ExitCode.CONFIGURATION)


SHOWN_MAX = 10_000
_LINES_MAX = 20  # of a file, of each kind


class DiffReport:
    """Prints the differences as they come, and the sums at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown = self._changed = 0
        self._skipped, self._known_by = Counter[str](), Counter[str]()

    def add(self, file: Path, mail: tuple[ExaminedMessage, str], change: Difference | None) -> None:
        """Count a message of SavedMailReader.read(), and print how its results differ."""
        message, known_by = mail
        self._known_by[known_by] += 1
        if change is not None:
            self._changed += 1
            facts = {"file": str(file), "envelope": known_by, "from": message.reverse_path}
            self._show(facts | to_builtins(change), lambda: _lines(str(file), change))

    def skip(self, place: Path, reason: str) -> None:
        """Count a file or directory that is not compared, and print why."""
        self._skipped[reason] += 1
        self._show({"file": str(place), "skipped": reason}, lambda: [f"{place}: skipped: {reason}"])

    def end(self, rules: list[dict[str, Any]], why_no_journeys: str) -> None:
        """Print the sums."""
        more = self._changed + self._skipped.total() - self._shown
        sums = {"compared": self._known_by.total(), "changed": self._changed}
        sums["unchanged"] = sums["compared"] - self._changed
        if self._as_json:
            others = {"skipped": self._skipped, "not_shown": more, "envelopes": self._known_by}
            print_json_line(sums | others | {"without_journeys": why_no_journeys, "rules": rules})
            return
        lines = [f"and {counted(more, 'more file')}"] if more else []
        lines.append(f"{'old':>8} {'new':>8}  rule")
        for rule in rules:
            if rule["old"] != 0 or rule["new"] != 0:
                old, new = ("-" if rule[name] is None else rule[name] for name in ("old", "new"))
                lines.append(f"{old:>8} {new:>8}  {rule['rule']}")
        skipped = ", ".join(f"{number} {reason}" for reason, number in self._skipped.items())
        lines.append(
            f"{counted(sums['compared'], 'file')} compared: {self._changed} changed, "
            f"{sums['unchanged']} unchanged; skipped: {skipped or 'none'}"
        )
        known = ", ".join(f"{number} of a {name}" for name, number in self._known_by.items())
        reason = f" ({why_no_journeys})" if why_no_journeys else ""
        print_lines([*lines, f"envelopes: {known or 'none'}{reason}"])

    def _show(self, document: Mapping[str, Any], lines: Callable[[], list[str]]) -> None:
        if self._shown < SHOWN_MAX:
            self._shown += 1
            if self._as_json:
                print_json_line(document)
            else:
                print_lines(lines())


def _lines(file: str, change: Difference) -> list[str]:
    old, new = _outcome_lines(change.old), _outcome_lines(change.new)
    lines = _cut(f"- {line}" for line in old if line not in new)
    lines += _cut(f"+ {line}" for line in new if line not in old)
    lines += _cut(f"~ {address}: {', '.join(names)}" for address, names in change.contents.items())
    first = f"{file}: {', '.join(change.rules) or 'no rule'}"
    return [first, *(lines or ["~ what only --json shows"])]


def _outcome_lines(document: Mapping[str, Any]) -> list[str]:
    if error := document.get("error"):
        return [f"the rules cannot be applied: {error}", f"verdict: {document['verdict']}"]
    sender = [f"sender: {document['sender']}"] if document["sender"] else []
    return [*sender, *verdict_lines({**document, "rules": (), "charges": ()})]


def _cut(lines: Iterable[str]) -> list[str]:
    listed = list(lines)
    more = len(listed) - _LINES_MAX
    return [*listed[:_LINES_MAX], f"  and {more} more"] if more > 0 else listed
