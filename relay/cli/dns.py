"""`relay dns`: what to publish in the DNS for a domain, compared with what is published.

The output is a zone file (RFC 1035 5.1), with verdicts as comments; advice that nobody has
followed is a comment too.
"""

import asyncio
from collections.abc import Iterator

import click

from relay.base.clock import SystemClock
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import DOMAIN, CommandContext, common_options
from relay.commands.dns import NoDnsAnswerError, compare_zone
from relay.commands.dns_records import ZoneRecord, ZoneVerdict, mta_sts_policy
from relay.signing.key_files import load_keys

_BAD = (ZoneVerdict.MISSING, ZoneVerdict.WRONG)


@click.command()
@click.argument("domain", type=DOMAIN, metavar="ZONE")
@common_options
def dns(context: CommandContext, domain: str) -> None:
    """Print the DNS records to publish for the domain ZONE, and say which are missing or wrong.

    Asks the name servers of relay.toml; no relay has to run. Exits 0 when everything that is
    needed is published, 65 when something is missing or wrong, 75 when the DNS does not answer.
    """
    settings = context.settings()
    keys = load_keys(settings.dkim, context.found_config_file())
    try:
        compared = asyncio.run(compare_zone(domain, settings, keys, clock=SystemClock()))
    except NoDnsAnswerError as error:
        text = f"relay dns: the DNS does not answer: {error}"
        raise CommandError(ExitCode.TRY_LATER, text) from None
    records, hostname = compared.records, settings.hostname
    context.show(
        [one.as_json() for one in records if one.verdict is not None],
        lambda: [line for one in records for line in _lines(one, hostname)],
    )
    for note in compared.notes:
        click.echo(f"relay dns: {note}", err=True)
    bad = [one for one in records if one.verdict in _BAD]
    if bad:
        raise CommandError(
            ExitCode.DATA, f"relay dns: {len(bad)} of {len(records)} are missing or wrong"
        )


def _lines(one: ZoneRecord, hostname: str) -> Iterator[str]:
    if one.verdict is None:
        yield f"; advised{_after(one.note)}"
        yield f"; {one.zone_line()}"
        if one.name.startswith("_mta-sts."):
            domain = one.name.removeprefix("_mta-sts.")
            yield f"; and at https://mta-sts.{domain}/.well-known/mta-sts.txt:"
            yield from (f";   {line}" for line in mta_sts_policy(hostname))
        return
    yield f"; {one.verdict}{_after(one.note)}"
    if one.verdict is not ZoneVerdict.OK:
        yield from (f";   found {line}" for line in one.found.splitlines())
    if one.value:
        yield one.zone_line()


def _after(note: str) -> str:
    return f": {note}" if note else ""
