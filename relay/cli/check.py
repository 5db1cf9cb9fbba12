"""`relay check`: print what relay/commands/check.py finds.

Passed checks go to stdout; faults and warnings go to stderr as `file:line: key: text`. With
--json everything is one document on stdout. Exits 78 for faults, 69 if a needed service does not
answer.
"""

import click

from relay.base.clock import SystemClock
from relay.base.phrases import counted
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import CommandContext, common_options, role_option
from relay.cli.output import print_json, printable
from relay.commands.check import check_file
from relay.commands.check_findings import CheckFinding, CheckResult
from relay.settings.environment import read_environment
from relay.settings.tree import NodeRole


@click.command()
@role_option
@common_options
def check(context: CommandContext, role: NodeRole) -> None:
    """Check configuration, accounts, policies with their tests, ports, certificates and DNS.

    Starts nothing and changes nothing. Exits 78 when `relay serve` would refuse to start or clients
    would reject its certificate, 69 when something it needs does not answer, 0 with warnings only.
    Run it as the user of the service, or as root, who checks as the owner of state_dir.
    """
    environ = read_environment().variables
    file = context.found_config_file()
    findings = check_file(file, environ, SystemClock(), role=role)
    if context.json:
        print_json(
            [{"check": one.what, "verdict": one.verdict, "text": one.text} for one in findings]
        )
    else:
        for one in findings:
            show_finding(one)
    verdicts = {one.verdict for one in findings}
    if CheckResult.FAULT in verdicts:
        count = sum(1 for one in findings if one.verdict is CheckResult.FAULT)
        raise CommandError(ExitCode.CONFIGURATION, f"relay check: {counted(count, 'fault')}")
    if CheckResult.FAILED in verdicts:
        raise CommandError(
            ExitCode.UNAVAILABLE, "relay check: a service that it needs does not answer"
        )


def show_finding(one: CheckFinding) -> None:
    """Print a passed check on stdout, any other on stderr."""
    if one.verdict is CheckResult.OK:
        click.echo(printable(f"{one.what:<15} {one.verdict:<8} {one.text}"))
        return
    begin = {CheckResult.FAILED: f"{one.what}: ", CheckResult.WARNING: "warning: "}
    click.echo(printable(begin.get(one.verdict, "") + one.text), err=True)
