"""`relay dev`: run the development relay and print what it does.

With --json, prints JSON lines. Exits 69 for a port in use or a failed demonstration, 130 if
interrupted before the end.
"""

import dataclasses
import errno
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import uvloop
from msgspec.structs import asdict, replace

from relay import __version__
from relay.base.clock import SystemClock
from relay.base.observe import logs
from relay.base.settings.environment import Environment, read_environment
from relay.base.socket_address import Address
from relay.base.sockets import open_early
from relay.development.cloud import senders_domains
from relay.development.demonstration import DemonstratedMessage, DemonstrationError
from relay.development.foreground import DevelopmentView, RunOptions, develop
from relay.development.mail_access.dovecot import find_dovecot
from relay.development.option_fields import IN_CLEAR, MAIL, OPTIONAL, PORTS, made_of
from relay.development.options import ANY, DevelopmentAddresses, DevelopmentOptions
from relay.development.removal import KeepLimits
from relay.development.verbs.dev_options import (
    TOKEN_CHARACTERS,
    check_together,
    dev_options,
    unknown_variables,
    visible_secrets,
)
from relay.operation.app.development_folder import DevelopmentFolder, OwnEntry, open_folder
from relay.operation.cli.errors import INTERRUPTED, CommandError, ExitCode
from relay.operation.cli.options import CommandContext, common_options
from relay.operation.cli.output import print_json_line, printable, step_lines
from relay.operation.cli.trace import log_lines
from relay.store.journeys.document import Journey, JourneyStep
from relay.store.journeys.events import Step
from relay.store.journeys.message_list import MessageSummary
from relay.transport.refusals.refusal import Refusal, RefusalReason, line_of

_TRUST = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE")
_SUBJECT_MAX, _LINE_MAX, _STATE_WIDTH = 60, 500, len("delivered")  # characters
_WHY = (Step.POLICY_AND_ROUTING, Step.REPORT)  # the steps that show why a message bounced


@click.command()
@dev_options
@common_options
def dev(context: CommandContext, **values: Any) -> None:
    """Run the development relay: no file, loopback only, no mail leaves this machine.

    It shows one message in all seven steps and one that bounces, then a line for each of yours.
    It writes its own configuration and reads none. The other commands find it, unless
    the user can read /etc/relay/relay.toml. If several run, they ask for --config.
    """
    if context.config is not None:
        _warn("--config is ignored, a configuration is not read")
    environment = read_environment()
    for name in unknown_variables(environment.variables, dev):
        _warn(f"the environment variable {name} is ignored: no option has this name")
    logs.configure(
        "auto", clock=SystemClock(), color=not environment.no_color, level="warning"
    )  # events are printed to stdout
    for warning in visible_secrets(click.get_current_context()):
        _warn(warning)
    check_together(values)
    if 0 < len(values["token"] or "") < TOKEN_CHARACTERS:
        _warn(f"the token is easily guessed: it has fewer than {TOKEN_CHARACTERS} characters")
    run = made_of(RunOptions, values)
    place = open_folder(run.folder)
    try:
        plan = _plan(place, environment, run, values=values)
        view = _JsonView() if context.json else _TextView(place, plan)
        done = uvloop.run(develop(place, plan, view, run=run))
    except DemonstrationError as error:
        raise CommandError(ExitCode.UNAVAILABLE, f"relay dev: {error}") from None
    except OSError as error:
        raise _port_in_use(error, values) from None
    finally:
        _remove(place)
        logs.drain()
    if run.once and not done:
        raise CommandError(INTERRUPTED)


def _remove(place: DevelopmentFolder) -> None:
    try:
        place.remove()
    except KeyboardInterrupt:
        _warn(f"interrupted; {place.path} is removed in part")
        raise


def _plan(
    place: DevelopmentFolder, environment: Environment, run: RunOptions, *, values: dict[str, Any]
) -> DevelopmentOptions:
    """Return the options of the relay, with defaults for options that were not given."""
    host = ANY if values["listen_all"] else "127.0.0.1"
    usual = {name: Address(host, 0 if run.once else port) for name, port in PORTS.items()}
    mail = _mail_access(values, once=run.once)
    given = values | {name: values[name] or address for name, address in usual.items()} | mail
    if run.no_rules:
        given["rules"] = place.path / OwnEntry.NO_RULES
        given["rules"].mkdir(exist_ok=True)
    data_home = environment.data_home
    plan = made_of(
        DevelopmentOptions,
        given,
        keep=made_of(KeepLimits, values),
        ca_dir=data_home / "relay/ca" if data_home else None,
        crash_at=environment.crash_at,
        **{name: mail.get(name) for name in ("imaps", "pop3s")},
    )
    for name in OPTIONAL if not run.once else ():
        option = {"imaps": "imap", "pop3s": "pop3"}.get(name, name)
        if values[option] is not None or name not in plan.listeners:
            continue
        try:
            _open(plan, name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            another = f"--{option} PORT takes another one"
            _warn(f"{error.strerror}; no {OPTIONAL[name]}; {another}")
            left_out: dict[str, Any] = {name: None}
            plan = dataclasses.replace(plan, **left_out)
    return plan


def _mail_access(values: Mapping[str, Any], *, once: bool) -> dict[str, Address]:
    """Return where to listen for mail programs, by the names of MAIL.

    Raises CommandError for an option whose program of Dovecot cannot be used.
    """
    reachable, dovecot = ANY if values["listen_all"] else "", find_dovecot()
    if dovecot.fault and not (once or values["imap"] or values["pop3"]):
        _warn(f"no IMAP and POP3: {dovecot.fault}")
    places: dict[str, Address] = {}
    for name in IN_CLEAR:
        named, why = values[name], dovecot.why_not(name)
        if named and why:
            raise CommandError(ExitCode.UNAVAILABLE, f"relay dev: --{name} {named}: {why}")
        if named or not (why or once):
            place = named or Address("127.0.0.1", MAIL[name])
            port = 0 if named else MAIL[f"{name}s"]
            places |= {name: place, f"{name}s": Address(reachable or place.host, port)}
    return places


def _open(plan: DevelopmentOptions, name: str) -> None:
    """Listen where an option says, before the relay exists. Raises OSError."""
    port = plan.listeners[name].port
    if [at.port for at in plan.listeners.values()].count(port) > 1:
        raise OSError(errno.EADDRINUSE, f"port {port} is that of another option")
    open_early(*plan.everywhere(plan.listeners[name]))


def _warn(text: str) -> None:
    click.echo(f"relay dev: {text}", err=True)


def _port_in_use(error: OSError, values: Mapping[str, Any]) -> Exception:
    """Add a hint to the error of a port in use."""
    if error.errno != errno.EADDRINUSE:
        return error
    names = (*PORTS, *(name for name in IN_CLEAR if values[name]))
    others = " ".join(f"--{name} 0" for name in names)
    if "MAKELEVEL" in read_environment().variables:  # of make(1)
        others = f'make run ARGS="{others}"'
    return CommandError(ExitCode.UNAVAILABLE, f"relay dev: {error.strerror}; try {others}")


class _WarningView(DevelopmentView):
    """What both kinds of output write to stderr."""

    def rules_changed(self, text: str) -> None:
        _warn(text)

    def not_found(self, folder: DevelopmentFolder, fault: str) -> None:
        _warn(f"{fault}: only --config {shlex.quote(str(folder.config))} finds this relay")

    def stopping(self, folder: DevelopmentFolder) -> None:
        _warn(f"stopping; {folder.path} is {'removed' if folder.temporary else 'kept'}")

    def left(self, folder: DevelopmentFolder) -> None:
        rest = "; without --dir, the next one may remove it" if folder.temporary else ""
        again = f"relay dev --dir {shlex.quote(str(folder.path))}"
        _warn(f"ended at once; {folder.path} stays as it is: {again} continues with it{rest}")


class _JsonView(_WarningView):
    """JSON lines: the listeners, two journeys, then steps; nothing else."""

    has_steps = True

    def listening(self, addresses: DevelopmentAddresses) -> None:
        places = {name: getattr(addresses, name) for name in PORTS | MAIL}
        listeners = {name: [] if at is None else [str(at)] for name, at in places.items()}
        files = {name: str(getattr(addresses, name)) for name in ("ca", "bundle")}
        cloud = {"cloud": addresses.cloud} if addresses.cloud else {}
        facts = {"pages": addresses.pages, **cloud, **files}
        print_json_line({"pid": os.getpid(), **listeners, **facts})

    def demonstrated(self, demonstrated: DemonstratedMessage) -> None:
        print_json_line(demonstrated.journey)

    def step(self, journey: Journey, step: JourneyStep) -> None:
        names = ("id", "graph_id", "submission_id", "message_id")
        print_json_line({**{name: getattr(journey, name) for name in names}, **asdict(step)})


class _TextView(_WarningView):
    """Text for a terminal: each line is a message."""

    def __init__(self, place: DevelopmentFolder, plan: DevelopmentOptions) -> None:
        self._place = place
        self._plan = plan
        self._domain = plan.domains[0]

    def listening(self, addresses: DevelopmentAddresses) -> None:
        ca = shlex.quote(str(addresses.bundle))
        mail = self._place.path / OwnEntry.MAIL / self._domain
        kept = "" if not self._place.temporary else "; removed at the end, --dir keeps it"
        here = addresses.for_this_machine()
        password = "TOKEN" if self._plan.token else "alice"
        urls, opened = here.mailboxes, " with the password TOKEN" if self._plan.token else ""
        https = f" and https://{here.https}/v1.0" if here.https else ""
        _echo(
            f"relay dev {__version__}: {self._what_leaves()}",
            f"  Pages      {addresses.pages}",
            *self._who_reaches(addresses),
            f"  Graph API  http://{here.http}/v1.0{https}    Authorization: Bearer {password}",
            f"  Trust      CA={ca}; export {' '.join(f'{name}=$CA' for name in _TRUST)}",
            f"  SMTP       smtp://{here.smtp}{self._with_tls(here)}    {self._logins()}",
            *([f"  Mailboxes  {', '.join(urls)}    any login{opened}"] if urls else []),
            f"  Mail       {mail}/<name>/    plain Maildir{kept}",
            *self._accounts(),
            *(f"  Scenario   {printable(name)}" for name in self._plan.scenarios),
            *self._cloud(addresses.cloud),
            *(f"  Webhook    {printable(url)}" for url in self._plan.webhooks),
            *(f"  Milter     {printable(address)}" for address in self._plan.milters),
            "",
        )

    def _cloud(self, pages: str) -> Sequence[str]:
        if not pages:
            return ()
        senders = " and ".join(f"*@{domain}" for domain in senders_domains(self._plan))
        return (
            f"  Cloud      {pages}    plays Microsoft 365: mail from {senders} to other",
            f"             domains goes there by Graph; {pages}internet sets its faults",
        )

    def _logins(self) -> str:
        """Return who may send by SMTP."""
        password = ", under TLS with the password TOKEN" if self._plan.token else ""
        if self._plan.strict_senders:
            return f"a login{password or ' (alice:alice)'} sends from its own address"
        return f"any login or none{password}, any sender"

    def _with_tls(self, here: DevelopmentAddresses) -> str:
        """Return the ports with TLS."""
        ways = {"STARTTLS": here.submission, "TLS": here.submissions}
        return "".join(
            f", {address} ({way})" for way, address in ways.items() if address is not None
        )

    def _what_leaves(self) -> str:
        target = self._plan.release_to
        if target is None:
            return "no mail leaves this machine (no connection out)"
        allowed = printable(", ".join(self._plan.release_allow))
        own = f" and to recipients like {allowed}" if allowed else ""
        if self._plan.release_auto:
            return f"mail to recipients like {allowed} leaves this machine, to {target.next_hop}"
        return (
            f"mail leaves this machine only when you release it, to {target.next_hop}, for "
            f"addresses that you type{own}"
        )

    def _who_reaches(self, addresses: DevelopmentAddresses) -> Sequence[str]:
        """Return the lines about other machines."""
        if not self._plan.is_exposed:
            return ()
        places = {name.upper(): getattr(addresses, name) for name in PORTS | MAIL}
        open_to = [
            f"{name} {address}"
            for name, address in places.items()
            if address and not address.is_loopback
        ]
        smtp = "" if addresses.smtp.is_loopback else "; SMTP takes mail from everyone"
        return (
            f"  Reachable  from other machines: {', '.join(open_to)}",
            f"             HTTP needs the token{smtp}",
        )

    def _accounts(self) -> Sequence[str]:
        if self._plan.token:
            return (
                "  Accounts   TOKEN opens every mailbox; it is every password and client secret",
            )
        if self._plan.strict_users:
            return ("  Accounts   alice, bob; logins and local mail of others are rejected",)
        example = f"the token NAME that of NAME@{self._domain}"
        return (
            "  Accounts   alice, bob; any other token, login or client id makes its own mailbox:",
            f"             {example}; every recipient has one, also alice@example.com",
        )

    def demonstrated(self, demonstrated: DemonstratedMessage) -> None:
        """Print all steps of the first message; of the bounced one, the reason and the report."""
        journey = demonstrated.journey
        bounced = bool(demonstrated.report_subject)
        _echo(f'{demonstrated.title}: {journey.sender}, "{printable(journey.subject)}"')
        for number in _WHY if bounced else Step:
            mine = [step for step in journey.steps if step.step == number]
            for step in mine:
                _echo(*map(printable, step_lines(step)))
            if not mine:
                _echo(f" {number:d} {number.title:<18} {'-':<13}  none: no recipient failed")
        if bounced:
            _echo(f'   "{printable(demonstrated.report_subject)}" is in the Inbox of alice', "")
        else:
            _echo("")

    def waiting(self, addresses: DevelopmentAddresses) -> None:
        here = addresses.for_this_machine()
        http, smtp = here.http, here.smtp
        alice, bob = f"alice@{self._domain}", f"bob@{self._domain}"
        user, token = (f"users/{alice}", "TOKEN") if self._plan.token else ("me", "alice")
        try:
            is_found = CommandContext().found_config_file() == self._place.config
        except CommandError:  # another one runs too
            is_found = False
        config = "" if is_found else f" --config {shlex.quote(str(self._place.config))}"
        relay = _own_command()
        _echo(
            "Try next:",
            f"  curl -i http://{http}/v1.0/{user}/sendMail -H 'Authorization: Bearer {token}' \\",
            "    -H 'Content-Type: application/json' -d '"
            '{"message": {"subject": "hi", "toRecipients":',
            f'    [{{"emailAddress": {{"address": "{bob}"}}}}]}}}}\'',
            f"  swaks --server {smtp.host} --port {smtp.port} --from app@{self._domain} --to {bob}",
            f"  {relay} send{config} --to {bob} --subject hi --body hello",
            f"  {relay} trace{config} last        {relay} queue list{config}",
            "  or --to x+550@example.org, which bounces; also +451x2 +grey +slow10 +drop +later550",
            *self._proxy(here),
            f"ready (pid {os.getpid()}); a line for each message follows, Ctrl-C ends it",
        )

    def _proxy(self, here: DevelopmentAddresses) -> Sequence[str]:
        if not self._plan.proxy_names:
            return ()
        variables = f"HTTPS_PROXY=http://{here.http} NO_PROXY=localhost,127.0.0.1"
        return (f"  export {variables}    with Trust: for programs that say graph.microsoft.com",)

    def message(self, row: MessageSummary) -> None:
        subject = row.subject
        if len(subject) > _SUBJECT_MAX:
            subject = f"{subject[:_SUBJECT_MAX]}…"
        (line,) = log_lines([replace(row, subject=subject).as_json()], width=_STATE_WIDTH)
        _echo(printable(line)[:_LINE_MAX])

    def refused(self, refusal: Refusal) -> None:
        is_connection = refusal.command in ("CONNECT", "STARTTLS")
        if not (is_connection and refusal.reason is RefusalReason.TLS):  # the log has more
            _echo(printable(line_of(refusal)))


def _own_command() -> str:
    """Return the name by which a shell finds this command. `make run` installs it outside PATH."""
    called = Path(sys.argv[0])
    if called.name != "relay" or shutil.which("relay") == str(called.absolute()):
        return "relay"
    return shlex.quote(str(called))


def _echo(*lines: str) -> None:
    click.echo("\n".join(lines))
