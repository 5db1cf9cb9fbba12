"""`relay dev`: run the development relay and print what it does.

With --json, prints JSON lines. Exits 69 for a port in use or a failed demonstration, 130 if
interrupted before the end.
"""

import errno
import ipaddress
import os
import re
import shlex
from pathlib import Path
from typing import Any

import click
import uvloop

from relay import __version__
from relay.app.demonstration import DemonstratedMessage, DemonstrationError
from relay.app.development import DevelopmentAddresses, DevelopmentOptions
from relay.app.development_folder import DevelopmentFolder, open_folder
from relay.app.development_run import DevelopmentView, RunOptions, develop
from relay.cli.errors import INTERRUPTED, CommandError, ExitCode
from relay.cli.options import CommandContext, common_options
from relay.cli.output import flush, print_json_line, printable, step_lines
from relay.clock import SystemClock
from relay.journeys.events import Step
from relay.observe import logs
from relay.settings.environment import read_environment
from relay.settings.tree import Address
from relay.settings.values import is_ip, parse_address

_HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\]").fullmatch
_PORTS = {"http": 8025, "https": 8443, "smtp": 1025}
_TRUST = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_WHY = (Step.POLICY_AND_ROUTING, Step.REPORT)  # the steps that show why a message bounced


class _AddressType(click.ParamType[Address]):
    name = "HOST:PORT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        if isinstance(value, Address):
            return value
        try:
            address = parse_address(value, Path.cwd())
        except ValueError:
            self.fail(f'expected HOST:PORT or [IPV6]:PORT, found "{value}"', param, ctx)
        host = address.host
        if host != "localhost" and not (is_ip(host) and ipaddress.ip_address(host).is_loopback):
            self.fail("the development relay listens on loopback only", param, ctx)
        return address


class _HostType(click.ParamType[str]):
    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not _HOST_NAME(value):
            self.fail(f'expected a host name without a port, found "{value}"', param, ctx)
        return str(value).lower().removesuffix(".")


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep mail and state here. [default: a temporary directory, removed at the end]",
)
@click.option(
    "--http",
    type=_AddressType(),
    show_default=f"127.0.0.1:{_PORTS['http']}, with --once a free port",
    help="Where the Graph API listens; port 0 takes a free one.",
)
@click.option(
    "--https",
    type=_AddressType(),
    show_default=f"127.0.0.1:{_PORTS['https']}, with --once a free port",
    help="The same with TLS, by a certificate of Relay's own development CA.",
)
@click.option(
    "--smtp",
    type=_AddressType(),
    show_default=f"127.0.0.1:{_PORTS['smtp']}, with --once a free port",
    help="Where SMTP listens; port 0 takes a free one.",
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    type=_HostType(),
    help="Answer HTTP requests for this host too, besides localhost, and have it in the "
    "certificate; repeatable.",
)
@click.option("--once", is_flag=True, help="Show the two messages and exit; 0 on success.")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write pid and addresses to this file as JSON after the demonstration, when the first "
    "message of yours would be shown and counted. With --once nothing is written.",
)
@click.option(
    "--exit-after",
    type=click.IntRange(min=1),
    metavar="N",
    help="Exit after N of your messages have ended.",
)
@common_options
def dev(context: CommandContext, folder: Path | None, **options: Any) -> None:
    """Run the development relay: no file, loopback only, no mail leaves this machine.

    It shows one message in all seven steps and one that bounces, then every step of your messages.
    It writes its own configuration and reads none. The other commands find it, unless --dir is
    given or /etc/relay/relay.toml exists.
    """
    if context.config is not None:
        click.echo("relay dev: --config is ignored, a configuration is not read", err=True)
    environment = read_environment()
    logs.configure(
        "auto", clock=SystemClock(), color=not environment.no_color, level="warning"
    )  # events are printed to stdout
    for name, port in _PORTS.items():
        options[name] = options[name] or Address("127.0.0.1", 0 if options["once"] else port)
    data_home = environment.data_home
    run = RunOptions(**{name: options.pop(name) for name in ("once", "exit_after", "ready_file")})
    plan = DevelopmentOptions(
        **options,
        ca_dir=data_home / "relay/ca" if data_home else None,
        crash_at=environment.crash_at,
    )
    place = open_folder(folder)
    view = _JsonView() if context.json else _TextView(place)
    try:
        done = uvloop.run(develop(place, plan, view, run=run))
    except DemonstrationError as error:
        raise CommandError(ExitCode.UNAVAILABLE, f"relay dev: {error}") from None
    except OSError as error:
        raise _port_in_use(error) from None
    finally:
        place.remove()
        logs.drain()
    if run.once and not done:
        raise CommandError(INTERRUPTED)


def _port_in_use(error: OSError) -> Exception:
    """Add a hint to the error of a port in use."""
    if error.errno != errno.EADDRINUSE:
        return error
    text = f"relay dev: {error.strerror}; try " + " ".join(
        f"--{name} 127.0.0.1:0" for name in _PORTS
    )
    return CommandError(ExitCode.UNAVAILABLE, text)


class _JsonView(DevelopmentView):
    """JSON lines: the listeners, two journeys, then steps."""

    def listening(self, addresses: DevelopmentAddresses) -> None:
        listeners = {name: [str(getattr(addresses, name))] for name in _PORTS}
        print_json_line({"pid": os.getpid(), **listeners, "ca": str(addresses.ca)})

    def demonstrated(self, shown: DemonstratedMessage) -> None:
        print_json_line(shown.journey)

    def waiting(self, addresses: DevelopmentAddresses) -> None:
        """Print nothing; the next line is a step."""

    def step(self, journey: dict[str, Any], step: dict[str, Any]) -> None:
        names = ("id", "graph_id", "submission_id", "message_id")
        print_json_line({**{name: journey[name] for name in names}, **step})


class _TextView(DevelopmentView):
    """Text for a terminal."""

    def __init__(self, place: DevelopmentFolder) -> None:
        self._place = place

    def listening(self, addresses: DevelopmentAddresses) -> None:
        ca = shlex.quote(str(addresses.ca))
        mail = self._place.path / "mail" / "example.test"
        kept = "" if not self._place.temporary else "; removed at the end, --dir keeps it"
        _echo(
            f"relay dev {__version__}: no mail leaves this machine (no DNS, no connection out)",
            f"  Graph API  http://{addresses.http}/v1.0 and https://{addresses.https}/v1.0"
            "    Authorization: Bearer alice",
            f"  Trust      CA={ca}; export {' '.join(f'{name}=$CA' for name in _TRUST)}",
            f"  SMTP       smtp://alice:alice@{addresses.smtp}    or without a login",
            f"  Mail       {mail}/<name>/    plain Maildir{kept}",
            "  Accounts   alice, bob; any other token, login or client id makes its own mailbox:",
            "             the token NAME that of NAME@example.test",
            "",
        )

    def demonstrated(self, shown: DemonstratedMessage) -> None:
        """Print all steps of the first message; of the bounced one, the reason and the report."""
        journey = shown.journey
        bounced = bool(shown.report_subject)
        _echo(f'{shown.title}: {journey["sender"]}, "{printable(journey["subject"])}"')
        for number in _WHY if bounced else Step:
            mine = [step for step in journey["steps"] if step["step"] == number]
            for step in mine:
                _echo(*step_lines(step))
            if not mine:
                _echo(f" {number:d} {number.title:<18} {'-':<13}  none: no recipient failed")
        if bounced:
            _echo(f'   "{printable(shown.report_subject)}" is in {shown.mailbox}/new', "")
        else:
            _echo(f"   bob's copy is in {shown.mailbox}/new", "")

    def waiting(self, addresses: DevelopmentAddresses) -> None:
        http, smtp = addresses.http, addresses.smtp
        found = CommandContext().found_config_file() == self._place.config  # without --config
        config = "" if found else f" --config {shlex.quote(str(self._place.config))}"
        _echo(
            "Try next:",
            f"  curl -i http://{http}/v1.0/me/sendMail -H 'Authorization: Bearer alice' \\",
            "    -H 'Content-Type: application/json' -d '"
            '{"message": {"subject": "hi", "toRecipients":',
            '    [{"emailAddress": {"address": "bob@example.test"}}]}}\'',
            f"  swaks --server {smtp.host} --port {smtp.port} --from app@example.test"
            " --to bob@example.test",
            f"  relay send{config} --to bob@example.test --subject hi --body hello",
            f"  relay trace{config} last        relay queue list{config}",
            f"ready (pid {os.getpid()}); every step of every message follows, Ctrl-C ends it",
        )

    def step(self, journey: dict[str, Any], step: dict[str, Any]) -> None:
        name = journey["id"] or journey["submission_id"]
        first, *more = step_lines(step)
        _echo(f"{name}{first}", *(f"{'':<{len(name)}}{line}" for line in more))


def _echo(*lines: str) -> None:
    click.echo("\n".join(lines))
    flush()
