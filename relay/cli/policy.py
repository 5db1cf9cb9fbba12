"""`relay policy check | test | try | diff`: check the mail-flow rules, run their tests, try a
message, compare two sets.

Exits 78 for faults and failed tests, 65 for a file that is not a message or to which the rules
cannot be applied, and 66 for one that does not exist.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from relay.app.tenant_sets import book_of, load_strictly, rules_of_a_start, trouble_of
from relay.base.clock import SystemClock
from relay.base.phrases import shown
from relay.cli.diff_report import DiffReport
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import (
    CommandContext,
    InputPath,
    Parsed,
    common_options,
    read_input,
)
from relay.cli.output import printable
from relay.cli.rule_lines import verdict_lines
from relay.commands.rule_diff import RuleComparison
from relay.commands.saved_mail import (
    NotMailError,
    SavedMailReader,
    at_own_domain,
    find_saved,
    reason_of,
)
from relay.message.address import AddressError, parse_mailbox
from relay.message.envelope import Source
from relay.policy.archives import UnexaminedArchiveError
from relay.policy.engine import RuleSet
from relay.policy.explanation import explain, verdict_document
from relay.policy.message_parts import TooManyPartsError
from relay.policy.rule_book import RuleBook
from relay.policy.rule_files import (
    load_rules,
    read_rules,
    slow_patterns,
    unread_directories,
)
from relay.policy.rule_test_reader import crlf
from relay.policy.rule_tests import (
    PolicyReport,
    examined_message,
    format_check,
    format_test_results,
    run_tests,
)
from relay.settings.document import Fault, SettingsError
from relay.settings.tree import Settings
from relay.settings.validation import is_trusted
from relay.settings.values import parse_ip


def _address(text: str) -> str:
    try:
        return parse_mailbox(text, smtputf8=True)
    except AddressError as error:
        raise ValueError(f"an address: {error}") from None


def _reverse_path(text: str) -> str:
    return "" if text in ("", "<>") else _address(text)


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
    sets, clock = _sets(context, directory, runs_tests=True), SystemClock()
    unread = unread_directories(directory) if directory else ""
    warnings = [unread] if unread else []
    warnings += [
        text for rules, _ in sets for text in (*rules.warnings, *slow_patterns(rules, clock.busy_s))
    ]
    found = format_check([rules for rules, _ in sets], warnings, time_us=clock.time_us())
    _print(context, found)


@policy.command()
@_DIRECTORY
@common_options
def test(context: CommandContext, directory: Path | None) -> None:
    """Run the rules' own tests; exits 78 when one fails."""
    sets = _sets(context, directory, runs_tests=False)
    results = [one for rules, local in sets for one in run_tests(rules, local_domains=local)]
    _print(context, format_test_results([rules for rules, _ in sets], results))


@policy.command("try")
@click.argument("file", type=InputPath())
@click.option(
    "--from",
    "sender",
    required=True,
    type=Parsed("ADDRESS", _reverse_path),
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
@click.option("--source", type=click.Choice([str(one) for one in Source]), default=str(Source.SMTP),
              show_default=True)  # fmt: skip
@click.option("--client", type=Parsed("ADDRESS", lambda text: text and parse_ip(text)), default="",
              help="The client's IP address. [default: none, as with the API]")  # fmt: skip
@click.option("--login", metavar="ACCOUNT", default="",
              help="The account that sends it. [default: none]")  # fmt: skip
@common_options
def try_(context: CommandContext, *, file: Path, **given: Any) -> None:
    """Say what the rules would do with a message, without doing it.

    Shows each rule, and each of its conditions with the value that it compared. A client without a
    login is a stranger, unless a listener trusts its network.
    """
    settings = context.settings()
    clock = SystemClock()
    rules, sets = rules_of_a_start(settings, context.found_config_file(), clock)
    for text in (*(str(fault) for one in sets.values() for fault in one.faults), trouble_of(sets)):
        if text:
            click.echo(printable(f"relay policy try: {text}"), err=True)
    content = crlf(read_input("policy try", file))
    recipients = (at_own_domain(one, settings) for one in given["recipients"])
    subject = examined_message(
        given["sender"], list(dict.fromkeys(recipients)), content, source=Source(given["source"]),
        local_domains=settings.own_domains, client=given["client"], login=given["login"],
        is_trusted=not given["client"] or bool(given["login"])
        or is_trusted(settings.smtp, given["client"]),
    )  # fmt: skip
    subject = replace(subject, time_us=clock.time_us())
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
@click.option("--mail", required=True, type=InputPath(file_okay=False), metavar="DIR",
              help="The mail: .eml files, and Maildirs.")  # fmt: skip
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
    for found in find_saved(mail, report.skip):
        try:
            saved = reader.read(found)
            report.add(found, saved, comparison.compare(saved[0]))
        except (NotMailError, OSError) as error:
            report.skip(found, reason_of(error))
    report.end(comparison.counts(), reader.without_journeys)


def _book_in(folder: Path, settings: Settings | None, file: Path) -> RuleBook:
    """Read the rules in another directory than that of the configuration `file`, with those of its
    tenants; their tests are not run. Raises PolicyError.
    """
    if settings is None:
        return RuleBook(read_rules(folder))
    policy = dataclasses.replace(settings.policy, directory=folder)
    there = dataclasses.replace(settings, policy=policy)
    return book_of(load_strictly(there, file, runs_tests=False), settings)


def _sets(
    context: CommandContext, directory: Path | None, *, runs_tests: bool
) -> list[tuple[RuleSet, Sequence[str]]]:
    """Return each set of rules, with the domains that are local in its tests; a directory that is
    given needs no configuration. Raises PolicyError.
    """
    if directory is not None:
        return [(load_rules(directory) if runs_tests else read_rules(directory), ())]
    settings = context.settings()
    sets = load_strictly(settings, context.found_config_file(), runs_tests=runs_tests)
    return [(rules, one.domains if one else settings.own_domains) for one, rules in sets]


def _print(context: CommandContext, report: PolicyReport) -> None:
    context.show(report.document, lambda: list(report.lines))
    if not report.good:
        raise CommandError(ExitCode.CONFIGURATION)
