"""`relay send`: submit one message from the shell.

Exits 65 if the relay rejects it, 66 for an attachment that does not exist, 69 if none answers, 75
for a temporary error, 77 for a token that is not allowed.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from relay.base.clock import SystemClock, rfc3339
from relay.base.phrases import shown
from relay.base.running_relay import (
    ControlClient,
    ControlUnavailableError,
    DraftToSend,
    send_by_graph,
    send_by_smtp,
)
from relay.base.settings.tree import Settings
from relay.base.settings.values import seconds_ahead
from relay.base.socket_address import Address
from relay.operation.cli import options
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.relay_client import clock_ahead


@click.command()
@click.option(
    "--to",
    "recipients",
    multiple=True,
    required=True,
    metavar="ADDRESS",
    help="A recipient; may be given more than once.",
)
@click.option(
    "--from",
    "sender",
    default="",
    metavar="ADDRESS",
    help="[default: the token's account; without a token, your user name at the relay's host]",
)
@click.option("--subject", default="", metavar="TEXT", help="[default: none]")
@click.option(
    "--body",
    default=None,
    metavar="TEXT",
    help="[default: standard input, if it is not a terminal]",
)
@click.option(
    "--attach", multiple=True, type=options.InputPath(), help="A file; may be given more than once."
)
@click.option(
    "--token",
    default="",
    metavar="TOKEN",
    help="Send as this account by Graph's sendMail. [default: send by SMTP]",
)
@click.option(
    "--at",
    default="",
    metavar="TIME|DURATION",
    help="Send it later, with --token: at 15:00 (the next time that it is, here), at "
    "2027-01-31T09:00:00Z, or in 2h. [default: at once]",
)
@options.common_options
def send(
    context: options.CommandContext,
    *,
    recipients: tuple[str, ...],
    attach: tuple[Path, ...],
    **texts: Any,
) -> None:
    """Send one message through the running relay and print its id.

    `relay wait` and `relay trace` accept the id.
    """
    settings = context.settings()
    token, sender, body = texts["token"], texts["sender"], texts["body"]
    if texts["at"] and not token:
        raise click.UsageError("--at needs --token (in relay dev, alice): SMTP sends at once")
    send_at = _time_of(texts["at"], settings) if texts["at"] else ""
    if not sender and not token:
        name = options.login_name() if settings.sendmail else options.user_name()
        sender = f"{name}@{settings.hostname}"
    if body is None:
        body = _standard_input()
    attachments = tuple((path.name, options.read_input("send", path)) for path in attach)
    draft = DraftToSend(sender, recipients, texts["subject"], body, attachments, send_at=send_at)
    identity = _submit(settings, token, draft)
    context.show({"id": identity}, lambda: [identity])
    if send_at:
        click.echo(f"relay send: waits until {send_at[:10]} {send_at[11:19]}Z", err=True)


def _time_of(text: str, settings: Settings) -> str:
    """Return the time of --at by the clock of the relay, which may be ahead. Raises UsageError."""
    client = ControlClient(settings.control_socket)
    try:
        answer = client.get_response("/pause", kind=dict[str, Any])
        now_us = answer.time_us or 0
    except ControlUnavailableError:  # a service uses the clock of the machine
        now_us = SystemClock().time_us()
    try:
        return rfc3339(now_us + int(seconds_ahead(text, now_us, zone=None) * 1e6))
    except ValueError as error:
        expected = f"expected {error}{clock_ahead(client)}"
        raise click.UsageError(f"--at: found {shown(text)}, {expected}") from None


def _standard_input() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        os.set_blocking(0, True)  # a pause of the writer would be taken for the end
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise CommandError(
            ExitCode.DATA, "relay send: standard input: expected text in UTF-8"
        ) from None


def _submit(settings: Settings, token: str, draft: DraftToSend) -> str:
    address, send_to = _relay(settings, token)
    try:
        return send_to(address, draft)
    except OSError as error:
        text = f"relay send: no relay answers at {address}: {error.strerror or error}"
        raise CommandError(ExitCode.UNAVAILABLE, text) from None


def _relay(settings: Settings, token: str) -> tuple[Address, Callable[[Address, DraftToSend], str]]:
    """Return the address to send to, and the function that sends."""
    if token:
        tls = settings.http.tls
        listens = [address for address in settings.http.listen if address.port]
        listens.sort(key=lambda address: tls is not None and not address.plain)  # without TLS first
        missing = "http.listen has no HOST:PORT"
    elif settings.sendmail:
        return Address(path=str(settings.sendmail.socket)), send_by_smtp
    else:
        listens = [listener.listen for listener in settings.smtp if listener.takes_programs]
        missing = "no [[smtp]] with role relay has HOST:PORT and no proxy_networks; use [sendmail]"
    if not listens:
        raise CommandError(ExitCode.CONFIGURATION, f"relay send: {missing}")
    if not token:
        return listens[0], send_by_smtp
    pairs = tls.pairs if tls and not listens[0].plain else []
    certificates = [pair.certificate for _, pair in pairs]
    return listens[0], functools.partial(send_by_graph, token=token, certificates=certificates)
