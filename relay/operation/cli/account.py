"""`relay account`: add, import, list and remove accounts, give them tokens and passwords, unlock
them.

A new secret is printed once. Exits 65 for an unknown account, one that exists already, and a file
that cannot be imported, 78 if the file is or would be faulty. `unlock` exits 69 without a running
relay.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from relay.base.accounts.account import AccountError
from relay.base.clock import SystemClock
from relay.base.phrases import counted
from relay.base.running_relay import ControlClient, ControlError, ControlUnavailableError
from relay.base.settings.environment import read_environment
from relay.base.settings.values import parse_mailbox
from relay.operation.app.state_dir import owner_of
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.option_types import Parsed
from relay.operation.cli.options import (
    CommandContext,
    InputPath,
    accounts_options,
    common_options,
    read_input,
)
from relay.operation.cli.relay_client import accounts_settings, valid_settings
from relay.operation.commands.account import (
    PASSWORD_BYTES_MAX,
    AccountFile,
    hash_of,
    new_client_id,
    new_client_secret,
    new_token,
    read_users,
)

_FAULTS_SHOWN = 20
_MAILBOX = Parsed("ADDRESS", parse_mailbox)
_ADDRESS = click.argument("address", type=_MAILBOX, metavar="ADDRESS")


def _open(context: CommandContext, *, is_removal: bool = False) -> AccountFile:
    """Open the file. A removal reads no more of the configuration than where the file is."""
    is_alone = is_removal or context.accounts is not None
    settings = accounts_settings(context) if is_alone else context.settings()
    file = AccountFile(settings, clock=SystemClock(), environ=read_environment().variables)
    file.is_alone = is_alone
    return file


def _hint(file: AccountFile, accounts: str) -> None:
    """Print how a running relay gets to use the changed file, and have it log the change: the
    command with its options.
    """
    if owner_of(file.settings.run_dir):
        context = click.get_current_context()
        words = [context.info_name or ""]
        for option in context.command.params:
            arg = context.params.get(option.name or "")
            if arg and option.opts[0] not in ("address", "file", "--config", "--json"):
                words.append(option.opts[0])
                words += [] if arg is True else arg if type(arg) is tuple else [str(arg)]
        change = {"change": " ".join(words), "accounts": accounts}
        with suppress(ControlUnavailableError, ControlError):  # the file has changed all the same
            ControlClient(file.settings.control_socket).post("/accounts/changed", change)
        click.echo("the running relay uses it after: relay reload", err=True)


@click.group()
@accounts_options
def account(_context: CommandContext) -> None:
    """Add, list and remove accounts; give them tokens and passwords; unlock them.

    Changes the file that mailboxes.accounts names. A running relay reads it at `relay reload`.
    """


@account.command()
@_ADDRESS
@click.option("--alias", "aliases", multiple=True, type=_MAILBOX, help="A further address.")
@click.option("--send-as", multiple=True, metavar="PATTERN", help="May send from this address too.")
@click.option("--role", type=click.Choice(["user", "read", "operate"]), help="Rights in /relay/v1.")
@click.option("--quota", metavar="SIZE", help='The size of its mailbox, such as "2 GiB".')
@click.option("--password", is_flag=True, help="Read a password from the terminal or stdin.")
@click.option("--no-token", is_flag=True, help="Make no token.")
@click.option("--client", is_flag=True, help="Make a client id and secret (azure-identity, MSAL).")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="Only these, as Mail.Send.")
@click.option(
    "--acts-for",
    multiple=True,
    metavar="PATTERN",
    help='Mailboxes that its tokens may open as an application: an address, or "*@DOMAIN".',
)
@accounts_options
def add(context: CommandContext, address: str, **options: Any) -> None:
    """Add an account and print its new token.

    Secrets are printed once; the file has only their hashes.
    """
    names = ("aliases", "send_as", "role", "quota", "scopes", "acts_for")
    chosen = {name: options[name] for name in names if options[name]}
    values = {name: list(arg) if isinstance(arg, tuple) else arg for name, arg in chosen.items()}
    made: dict[str, str] = {}
    if options["password"]:
        values["password"] = hash_of(_read_password())
    if not options["no_token"]:
        made["token"], values["token"] = new_token()
    if options["client"]:
        made["client_id"] = values["client_id"] = new_client_id()
        made["client_secret"], values["client_secret"] = new_client_secret()
    file = _open(context)
    file.add(address, values)
    _show(context, file, address, **made)


@account.command("import")
@click.argument("file", type=InputPath())
@click.option("--aliases", is_flag=True, help="FILE has aliases: Postfix's, /etc/aliases.")
@click.option("--dry-run", is_flag=True, help="Only check the file.")
@accounts_options
def import_accounts(context: CommandContext, file: Path, *, aliases: bool, dry_run: bool) -> None:
    """Add the users of a CSV or passwd-file, or aliases, all or none.

    A CSV has the columns address, hash, quota and aliases, and a header with these names; a
    passwd-file is one of Dovecot. Passwords stay the hashes that they are. Names of aliases without
    a domain are of the first own domain.
    """
    domain = next(iter(context.settings().own_domains), "localhost") if aliases else ""
    users, faults = read_users(file, read_input("account import", file), alias_domain=domain)
    accounts = _open(context)
    added = accounts.add_all(users, file, is_trial=dry_run or bool(faults))
    faults = sorted((*faults, *added), key=lambda fault: fault.line)
    if faults:
        more = len(faults) - _FAULTS_SHOWN
        lines = [*map(str, faults[:_FAULTS_SHOWN]), f"{file}: {counted(more, 'fault')} more"]
        raise CommandError(ExitCode.DATA, "\n".join(lines[: None if more > 0 else -1]))
    text = f"{counted(len(users), 'alias' if aliases else 'account')} "
    text += "can be imported" if dry_run else "imported"
    text += f"; names without a domain: @{domain}" if aliases else ""
    number = {"aliases" if aliases else "accounts": len(users)}
    context.show(number | {"dry_run": dry_run}, lambda: [text])
    if not dry_run:
        _hint(accounts, f"{len(users)} of {file}")


@account.command("list")
@click.argument("address", type=_MAILBOX, metavar="[ADDRESS]", required=False)
@accounts_options
def list_accounts(context: CommandContext, address: str | None) -> None:
    """List accounts without their secrets, and aliases."""
    accounts = [row for row in _open(context).entries() if address in (None, row["address"])]
    if address and not accounts:
        raise AccountError(f"unknown account {address}")
    context.show(accounts, lambda: [_line(row) for row in accounts])


@account.command()
@_ADDRESS
@accounts_options
def remove(context: CommandContext, address: str) -> None:
    """Remove an account; its mailbox stays on disk. With mailboxes.dovecot_auth, Dovecot's password
    of the address then opens SMTP: disable the account instead.
    """
    file = _open(context, is_removal=True)
    file.remove(address)
    _show(context, file, address)


@account.command()
@_ADDRESS
@click.option("--client", is_flag=True, help="Make a client secret instead, and a client id.")
@click.option("--remove", "is_removal", is_flag=True, help="Remove it.")
@accounts_options
def token(context: CommandContext, address: str, *, client: bool, is_removal: bool) -> None:
    """Make a new token and print it.

    It takes the place of the old one, and is printed once.
    """
    file = _open(context, is_removal=is_removal)
    made: dict[str, str] = {}
    values: dict[str, str | None] = {}
    if is_removal:
        values = dict.fromkeys(("client_id", "client_secret") if client else ("token",))
    elif client:
        made["client_id"] = values["client_id"] = file.client_id_of(address) or new_client_id()
        made["client_secret"], values["client_secret"] = new_client_secret()
    else:
        made["token"], values["token"] = new_token()
    file.set(address, values)
    _show(context, file, address, **made)


@account.command()
@_ADDRESS
@click.option("--remove", "is_removal", is_flag=True, help="Remove the password.")
@accounts_options
def password(context: CommandContext, address: str, *, is_removal: bool) -> None:
    """Set the password of an account.

    It is read from the terminal, or is the first line of stdin.
    """
    file = _open(context, is_removal=is_removal)
    file.set(address, {"password": None if is_removal else hash_of(_read_password())})
    _show(context, file, address)


@account.command()
@_ADDRESS
@common_options
def unlock(context: CommandContext, address: str) -> None:
    """Lift the delay of logins after wrong passwords.

    Also that of the account's client id. Delays are in the memory of the running relay, and end
    with it.
    """
    client = ControlClient(valid_settings(context)[0].control_socket)
    done = client.post("/accounts/unlock", {"address": address})
    number = done["delays"]
    text = f"{counted(number, 'delay')} lifted" if number else "was not delayed"
    context.show(done, lambda: [f"{address}: {text}"])


@account.command()
@click.argument("address", type=_MAILBOX, metavar="[ADDRESS]", required=False)
@click.option("--reset", is_flag=True, help="Let nothing count that ADDRESS has sent so far.")
@common_options
def usage(context: CommandContext, address: str | None, *, reset: bool) -> None:
    """Show who sent how much today, and their limits.

    Of mail to other domains, since midnight UTC: the 20 accounts with most recipients, or one. A
    user of this machine is USER@hostname. The running relay counts.
    """
    if reset and not address:
        raise click.UsageError("--reset needs an ADDRESS")
    query = {"account": address} if address else {}
    client = ControlClient(valid_settings(context)[0].control_socket)
    answer = client.delete("/usage", query) if reset else client.get("/usage", query)
    lines = [line for user in answer["accounts"] for line in _usage_lines(user)]
    # `relay account usage`: as `GET usage`
    context.show(answer, lambda: lines or ["no account has sent mail to other domains today"])


def _usage_lines(user: Mapping[str, Any]) -> Iterator[str]:
    sent = [counted(user[what], what.removesuffix("s")) for what in ("messages", "recipients")]
    yield f"{user['account']}  {', '.join(sent)}"
    for limit in user["limits"]:
        until = f", refused until {limit['until']}" if limit["until"] else ""
        yield f"  {limit['what']} {limit['rate']}: {limit['used']} used{until}"


def _read_password() -> str:
    """Read a password from the terminal or stdin: other users could see an argument."""
    if sys.stdin is not None and sys.stdin.isatty():
        text = str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    else:
        octets = sys.stdin.buffer.readline(PASSWORD_BYTES_MAX + 3) if sys.stdin else b""
        try:
            text = octets.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise CommandError(ExitCode.DATA, "relay account: the password is not UTF-8") from None
    if not 0 < len(text.encode()) <= PASSWORD_BYTES_MAX:
        expected = f"expected a password of 1 to {PASSWORD_BYTES_MAX} bytes on standard input"
        raise CommandError(ExitCode.DATA, f"relay account: {expected}")
    return text


def _show(context: CommandContext, file: AccountFile, address: str, **made: str) -> None:
    """Print the new secrets, and the hint."""
    context.show(
        {"address": address, **made}, lambda: [f"{name}: {value}" for name, value in made.items()]
    )
    _hint(file, address)


def _line(facts: Mapping[str, Any]) -> str:
    has = ", ".join(name for name, is_there in facts["has"].items() if is_there) or "no secret"
    if "scheme" in facts:
        has = has.replace("password", f"password ({facts['scheme']})")
    if "to" in facts:
        writers = facts.get("from", [])
        by = f"; from {writers if isinstance(writers, str) else ', '.join(writers)}"
        return f"{facts['address']}  alias of {', '.join(facts['to'])}{by if writers else ''}"
    more = [str(facts["role"])] if "role" in facts else []
    more += ["disabled"] if facts.get("disabled") else []
    more += [f"client {facts['client_id']}"] if "client_id" in facts else []
    more += [f"forwards to {', '.join(facts['forward_to'])}"] if facts.get("forward_to") else []
    return "  ".join((str(facts["address"]), has, *more))
