"""`relay dns`: what to publish in the DNS for a domain, compared with what is published. `relay
dkim keygen | show`: make a key that signs mail, and show the keys in use.

The output of `relay dns` is a zone file (RFC 1035 5.1), with verdicts as comments; advised records
that are not published are comments too. `relay dkim` exits 65 for a file that exists already, a
selector in use, and a domain without keys. Neither needs a running relay, nor changes relay.toml.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click
import uvloop

from relay.base.clock import SystemClock
from relay.base.phrases import shown
from relay.base.settings.tree import Settings
from relay.base.settings.values import parse_selector
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.option_types import Parsed
from relay.operation.cli.options import DOMAIN, CommandContext, common_options
from relay.operation.cli.output import printable
from relay.operation.commands.dkim import (
    default_files,
    new_key_document,
    new_key_lines,
    shown_keys,
    shown_lines,
    unreadable_for_service,
    write_key,
)
from relay.operation.commands.dns import NoDnsAnswerError, compare_zone
from relay.operation.commands.dns_records import ZoneRecord, ZoneVerdict, mta_sts_policy
from relay.transport.signing.key_files import load_keys
from relay.transport.signing.keys import RSA_BITS_ADVISED, SigningKey
from relay.transport.signing.private_keys import RSA_BITS, new_key, write_pem

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
        compared = uvloop.run(compare_zone(domain, settings, keys, clock=SystemClock()))
    except NoDnsAnswerError as error:
        text = f"relay dns: the DNS does not answer: {error}"
        raise CommandError(ExitCode.TRY_LATER, text) from None
    records, hostname = compared.records, settings.hostname
    # `relay dns ZONE`: `[{name, type, value, found, verdict, note}]`, `verdict` is `ok`,
    # `missing`, `wrong` or `extra`; 65: a record is missing or wrong, 75: no answer
    context.show(
        [record.as_json() for record in records if record.verdict is not None],
        lambda: [line for record in records for line in _lines(record, hostname)],
    )
    for note in compared.notes:
        click.echo(f"relay dns: {note}", err=True)
    bad = [record for record in records if record.verdict in _BAD]
    if bad:
        raise CommandError(
            ExitCode.DATA, f"relay dns: {len(bad)} of {len(records)} are missing or wrong"
        )


def _lines(record: ZoneRecord, hostname: str) -> Iterator[str]:
    if record.verdict is None:
        yield f"; advised{_after(record.note)}"
        yield f"; {record.zone_line()}"
        if record.name.startswith("_mta-sts."):
            domain = record.name.removeprefix("_mta-sts.")
            yield f"; and at https://mta-sts.{domain}/.well-known/mta-sts.txt:"
            yield from (f";   {line}" for line in mta_sts_policy(hostname))
        return
    yield f"; {record.verdict}{_after(record.note)}"
    if record.verdict is not ZoneVerdict.OK:
        yield from (f";   found {line}" for line in record.found.splitlines())
    if record.value:
        yield record.zone_line()


def _after(note: str) -> str:
    return f": {note}" if note else ""


_NO_KEYS = "there is no [[dkim]]: mail is not signed"
_NAME_OCTETS_MAX = 253  # RFC 1035 2.3.4, as text


@click.group()
@common_options
def dkim(_given: CommandContext) -> None:
    """Make keys that sign mail (DKIM), and show those in use."""


@dkim.command()
@click.argument("domain", type=DOMAIN, metavar="DOMAIN")
@click.argument("selector", type=Parsed("SELECTOR", parse_selector), metavar="SELECTOR")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["rsa", "ed25519"]),
    default="rsa",
    help="The kind of key. [default: rsa]",
)
@click.option(
    "--bits", type=click.IntRange(*RSA_BITS), help="The size of an RSA key. [default: 2048]"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The new file. [default: dkim/SELECTOR.pem beside relay.toml]",
)
@common_options
def keygen(
    context: CommandContext,
    domain: str,
    selector: str,
    *,
    kind: Literal["rsa", "ed25519"],
    bits: int | None,
    out: Path | None,
) -> None:
    """Make a key, and print its DNS record and the lines for relay.toml.

    The file is new and for the user of the service alone. relay.toml stays as it is.
    """
    if bits is not None and kind != "rsa":
        raise click.UsageError("--bits is for --type rsa: an ed25519 key has 256 bits")
    name = f"{selector}._domainkey.{domain}"
    if len(name) > _NAME_OCTETS_MAX:
        text = f"found {len(name)} octets, expected at most {_NAME_OCTETS_MAX}"
        raise click.UsageError(f"{shown(name)}: {text}")
    config, settings = context.found_config_file(), context.settings()
    named = _named_file(domain, selector, settings)
    private = new_key(kind, bits=bits or RSA_BITS_ADVISED)
    file = out or named
    files = (file,) if file else default_files(config.parent, domain, selector)
    try:
        file = write_key(write_pem(private), files, settings)
    except FileExistsError:
        text = f"{printable(str(files[-1]))} exists already; --out names another file"
        raise CommandError(ExitCode.DATA, f"relay dkim keygen: {text}") from None
    key = SigningKey(domain, selector, private, file)
    # `relay dkim keygen`: `{domain, selector, algorithm, bits, file, name, record, strings,
    # config}`; 65: the file or the selector exists
    context.show(new_key_document(key, config), lambda: new_key_lines(key, config))
    if kind == "rsa" and private.bits < RSA_BITS_ADVISED:
        text = f"{private.bits} bits: receivers may not accept an RSA key below {RSA_BITS_ADVISED}"
        click.echo(f"warning: {text}", err=True)
    if text := unreadable_for_service(file, settings):
        click.echo(f"warning: {printable(text)}: chown it", err=True)


def _named_file(domain: str, selector: str, settings: Settings) -> Path | None:
    """Return the file that [[dkim]] names for a key, or None. Raises CommandError (65) if the file
    exists: the record of a new key would replace the record of this one.
    """
    for table in settings.dkim:
        if (table.domain, table.selector) == (domain, selector):
            if not table.key.exists():
                return table.key
            text = f"{domain} has the selector {selector} already ({printable(str(table.key))})"
            raise CommandError(ExitCode.DATA, f"relay dkim keygen: {text}; expected a new one")
    return None


@dkim.command("show")
@click.argument("domain", type=DOMAIN, metavar="[DOMAIN]", required=False)
@common_options
def show_keys(context: CommandContext, domain: str | None) -> None:
    """Show the keys of relay.toml, and whether the DNS has their records.

    With DOMAIN, those that sign mail from it. Asks no running relay.
    """
    config, settings = context.found_config_file(), context.settings()
    ring = load_keys(settings.dkim, config)
    keys = ring.keys
    if domain:
        keys = ring.of_domain(ring.domain_for(domain))
        if not keys:
            there = f"expected {', '.join(ring.domains)}" if ring else "there is no [[dkim]]"
            text = f"no key signs mail from {domain}: {there}"
            raise CommandError(ExitCode.DATA, f"relay dkim show: {text}")
    rows = uvloop.run(shown_keys(keys, settings))
    # `relay dkim show`: `[{domain, selector, algorithm, bits, file, name, record, until, published,
    # reasons}]`, `published` is `yes`, `no`, `differs` or `unknown`; 65: no key signs
    context.show(
        [row.document() for row in rows],
        lambda: shown_lines(rows, now_us=SystemClock().time_us()) if rows else [_NO_KEYS],
    )
