"""`relay policy check | test | try`: check the mail-flow rules, run their tests, try a message.

Exits 78 for faults and failed tests, 65 for a file that is not a message or to which the rules
cannot be applied, and 66 for one that does not exist.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from relay.base.clock import SystemClock
from relay.base.message.address import AddressError, parse_mailbox
from relay.base.message.envelope import Source, main_address
from relay.base.phrases import shown
from relay.base.settings.validation import is_trusted
from relay.base.settings.values import parse_ip
from relay.operation.app.tenant_sets import load_strictly, rules_of_a_start, trouble_of
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.option_types import Parsed
from relay.operation.cli.options import CommandContext, InputPath, common_options, read_input
from relay.operation.cli.output import printable, verdict_lines
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.explanation import explain, verdict_document
from relay.transport.policy.message_parts import TooManyPartsError
from relay.transport.policy.message_view import UndecidedError
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
    except UndecidedError as error:
        text = f"the rules cannot be applied to {shown(str(file))}, which is deferred: {error}"
        raise CommandError(ExitCode.DATA, f"relay policy try: {text}") from None
    document = verdict_document(explained)
    context.show(document, lambda: verdict_lines(document))


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
