"""`relay send`: a message from the shell.

On the path: a client in front of step 1, by app.sending.
Holds: facts on stdout, everything else on stderr.
Fails: 65 when the relay refuses, 69 when none answers.
Standards: CONTRACT, "Commands".
"""

import getpass
import sys
from pathlib import Path
from typing import Any

import click

from relay.app.sending import Draft, RefusedError, read_attachments, send_by_graph, send_by_smtp
from relay.cli.context import Given, common_options, print_json
from relay.cli.exits import Ended, Exit
from relay.settings.tree import Settings


@click.command()
@click.option("--to", "recipients", multiple=True, required=True, metavar="ADDRESS")
@click.option(
    "--from",
    "sender",
    default="",
    metavar="ADDRESS",
    help="[default: the token's account; without a token you at the relay's host]",
)
@click.option("--subject", default="", metavar="TEXT")
@click.option(
    "--body",
    default=None,
    metavar="TEXT",
    help="[default: standard input, if it is not a terminal]",
)
@click.option(
    "--attach", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option(
    "--token",
    default="",
    metavar="TOKEN",
    help="Send by Graph's sendMail as this account; without it by SMTP.",
)
@common_options
def send(
    given: Given, *, recipients: tuple[str, ...], attach: tuple[Path, ...], **told: Any
) -> None:
    """Send one message through the running relay and print its id."""
    settings = given.settings()
    token, sender, body = told["token"], told["sender"], told["body"]
    if not sender and not token:
        sender = f"{getpass.getuser()}@{settings.hostname}"
    if body is None:
        body = "" if sys.stdin.isatty() else sys.stdin.read()
    draft = Draft(sender, recipients, told["subject"], body, read_attachments(attach))
    try:
        identity = _submit(settings, token, draft)
    except RefusedError as error:
        raise Ended(Exit.DATA, f"relay send: {error}") from None
    except OSError as error:
        raise Ended(Exit.UNAVAILABLE, f"relay send: no relay answers: {error}") from None
    if given.json:
        print_json({"id": identity})
    else:
        click.echo(identity)


def _submit(settings: Settings, token: str, draft: Draft) -> str:
    if token:
        address = next((one for one in settings.http.listen if one.port), None)
        if address is None:
            raise Ended(Exit.CONFIGURATION, "relay send: http.listen has no TCP address")
        return send_by_graph(address, token, draft)
    listener = next((one for one in settings.smtp if one.role == "relay" and one.listen.port), None)
    if listener is None:
        text = "relay send: no [[smtp]] listener with role relay on TCP; use --token"
        raise Ended(Exit.CONFIGURATION, text)
    return send_by_smtp(listener.listen, draft)
