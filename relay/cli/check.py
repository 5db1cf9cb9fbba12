"""`relay check`: whether everything is as a start would need it.

On the path: prints what app.checking finds.
Holds: facts on stdout, everything else on stderr.
Fails: 78 for what a start would refuse, 69 for what does not answer.
Standards: CONTRACT, "Commands".
"""

import click

from relay.app.checking import Verdict
from relay.app.checking import check as findings_of
from relay.cli.context import Given, common_options, print_json
from relay.cli.exits import Ended, Exit
from relay.clock import SystemClock
from relay.settings import load, read_environment


@click.command()
@common_options
def check(given: Given) -> None:
    """Check configuration, accounts, policies with their tests, permissions and DNS.

    Exits 78 when `relay serve` would refuse to start, 69 when something it needs does not answer.
    """
    environ = read_environment().variables
    file = given.config_file()
    settings = load(file, environ)
    findings = list(findings_of(settings, environ, SystemClock()))
    if given.json:
        print_json(
            [{"check": one.what, "verdict": one.verdict, "text": one.text} for one in findings]
        )
    else:
        click.echo(f"configuration   ok       {file}")
        for one in findings:
            faulty = one.verdict in (Verdict.FAULT, Verdict.FAILED)
            click.echo(f"{one.what:<15} {one.verdict:<8} {one.text}", err=faulty)
    verdicts = {one.verdict for one in findings}
    if Verdict.FAULT in verdicts:
        raise Ended(Exit.CONFIGURATION)
    if Verdict.FAILED in verdicts:
        raise Ended(Exit.UNAVAILABLE)
