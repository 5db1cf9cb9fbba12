"""`relay sendmail`: the sendmail command, for programs that cannot send by SMTP. `relay mailq`: the
queue in the form of mailq(1) of Postfix and sendmail, which monitors read.

They are also used if the program has the name sendmail or mailq. `relay sendmail` exits 64 without
a recipient, 65 if the relay rejects the message, 67 if it knows none of the recipients, 75 for a
temporary error. Only the needed part of the configuration is read. If that part has a fault,
[sendmail] or its defaults are used, because a user may be editing the file.
"""

import os
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from datetime import datetime
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

import click
from msgspec import Struct

from relay.base import running_relay
from relay.base.clock import Ids, SystemClock, id_time_us
from relay.base.files import check_readable
from relay.base.message.envelope import encode_xtext, parse_envid
from relay.base.phrases import counted, shown
from relay.base.settings.document import SettingsError, read_document
from relay.base.settings.environment import read_environment
from relay.base.settings.reader import DocumentReader
from relay.base.settings.tree import SendmailSettings, Settings
from relay.base.settings.values import parse_address
from relay.base.socket_address import Address
from relay.operation.cli.errors import CommandError, ExitCode, say
from relay.operation.cli.options import (
    INPUT_BYTES_MAX,
    CommandContext,
    common_options,
    login_name,
    user_name,
)
from relay.operation.cli.relay_client import operator_client
from relay.operation.commands.sendmail import (
    NoRecipientsError,
    SendmailOptions,
    check_dropped,
    prepare,
    talk,
)
from relay.store.spool.types import Selector
from relay.transport.ingress.dropped_mail import (
    FILE_BYTES_MAX,
    LINE_BYTES_MAX,
    PART,
    DroppedEnvelope,
    drop_mail,
)
from relay.transport.ingress.local_users import LocalUsers

_DEFAULT = Address("127.0.0.1", 1025)
_NOTIFY = re.compile(
    r"never|(?:success|failure|delay)(?:,(?:success|failure|delay))*", re.IGNORECASE
)
_NEEDED = ("hostname", "state_dir", "smtp", "mailboxes", "domain", "sendmail")
_RET = {"full": "FULL", "hdrs": "HDRS"}
_DROPPED_BYTES_MAX = FILE_BYTES_MAX - LINE_BYTES_MAX  # a larger one is never given a key
_UNKNOWN_RECIPIENT = re.compile(r"5\d\d 5\.1\.").match  # RFC 3463 3.2


@click.command()
@click.argument("recipients", nargs=-1, metavar="[ADDRESS]...")
@click.option("-t", "from_header", is_flag=True, help="Send to those in (Resent-)To, Cc and Bcc.")
@click.option("-i", "ignores_dots", is_flag=True, help="A line with a dot does not end the input.")
@click.option("-f", "-r", "sender", metavar="ADDRESS", help="The sender. [default: your user name]")
@click.option("-F", "name", default="", metavar="NAME", help="The name in From, if it is missing.")
@click.option("-N", "notify", metavar="WHEN", help="never, or some of success,failure,delay.")
@click.option("-R", "ret", metavar="WHAT", help="full or hdrs: what a report contains.")
@click.option("-V", "envid", default="", metavar="ENVID", help="The id in reports, as xtext.")
@click.option("-b", "mode", default="m", help="-bm, the default; -bs speaks SMTP, -bp is mailq.")
@click.option("-q", "flushes", is_flag=True, help="Try deferred mail now: relay queue retry --all.")
@click.option("-o", "more", multiple=True, help="-oi is -i; others are ignored.")
@click.option("-A", "-B", "-L", "-O", "-X", "-e", "-h", "-p", "_values", multiple=True, hidden=True)
@click.option("-G", "-U", "-c", "-m", "-n", "-v", "-x", "_flags", is_flag=True, hidden=True)
@common_options
def sendmail(
    context: CommandContext,
    *,
    recipients: tuple[str, ...],
    more: tuple[str, ...],
    mode: str,
    **flags: Any,
) -> None:
    """Send the message on standard input.

    It goes by SMTP to RELAY_SENDMAIL (HOST:PORT), else to the socket that [sendmail] configures,
    else to the first listener of role relay in the configuration, else to 127.0.0.1:1025. If no
    relay listens on the socket, it cannot take the message now, or no answer comes, this is left
    in the drop directory, and accepted once. -f '<>' is the null reverse-path; a recipient without
    a domain is in the first local domain. Bcc and Resent-Bcc are removed, From, Date and Message-ID
    added. Exit codes: docs/names.md.
    """
    if mode == "p":
        list_queue(context)
        return
    if flags["flushes"]:
        client = operator_client(context)
        client.change("retry", Selector(all=True))
        return
    if mode not in ("m", "s"):
        raise click.UsageError(f"found {shown(f'-b{mode}')}, expected -bm, -bs or -bp")
    notify, ret, envid = _notify(flags["notify"]), _ret(flags["ret"]), _envid(flags["envid"])
    place = _place(context)
    address = place.address
    os.set_blocking(0, True)  # a pause of the writer would be taken for the end
    try:
        if mode == "s":
            talk(address, FileIO(0, closefd=False), FileIO(1, "w", closefd=False))
            return
        sender = flags["sender"]
        if sender is None:
            sender = user_name() if place.domain else login_name()
        options = SendmailOptions(
            recipients, flags["from_header"], sender or "<>", flags["name"], place.domain
        )
        text = _message(ends_with_dot=not (flags["ignores_dots"] or "i" in more))
        message = prepare(text, options, clock=SystemClock())
        envelope = DroppedEnvelope(message.sender, message.recipients, notify, ret, envid)
        key = secrets.token_hex(16)
        may_drop = place.drop is not None and len(message.content) <= _DROPPED_BYTES_MAX
        refused: list[str] = []
        try:
            running_relay.send_content(
                address,
                message.content,
                sender=message.sender,
                recipients=message.recipients,
                notify=notify,
                dsn={"ret": ret, "envid": envid},
                key=key if may_drop else "",
                refused=refused,
            )
        except (OSError, running_relay.AwayError):
            if place.drop is None:
                raise
            check_dropped(envelope, message.content, place.users)
            if not _drop(place.drop, envelope, message.content, key=key):
                raise
        for reply in refused:
            say(f"sendmail: {reply}")
    except NoRecipientsError:
        expected = "an address, or one in To, Cc or Bcc" if flags["from_header"] else "one, or -t"
        raise CommandError(ExitCode.USAGE, f"sendmail: no recipient: expected {expected}") from None
    except running_relay.TryLaterError as error:
        raise CommandError(ExitCode.TRY_LATER, f"sendmail: {address}: {error}") from None
    except running_relay.RejectedError as error:
        code = ExitCode.NO_USER if _UNKNOWN_RECIPIENT(str(error)) else ExitCode.DATA
        raise CommandError(code, f"sendmail: {error}") from None
    except OSError as error:
        why = f"no relay answers at {address}: {error.strerror or error}"
        raise CommandError(ExitCode.TRY_LATER, f"sendmail: {why}") from None


def _notify(text: str | None) -> str:
    if text is not None and not _NOTIFY.fullmatch(text):
        expected = "never, or some of success, failure and delay with commas between"
        raise click.UsageError(f"-N: found {shown(text)}, expected {expected}")
    return (text or "").upper()


def _ret(text: str | None) -> str:
    if text is not None and text.lower() not in _RET:
        raise click.UsageError(f"-R: found {shown(text)}, expected full or hdrs")
    return _RET[text.lower()] if text else ""


def _envid(text: str) -> str:
    try:
        return text and encode_xtext(parse_envid(text))
    except ValueError as error:
        raise click.UsageError(f"-V: {error}") from None


def _drop(directory: Path, envelope: DroppedEnvelope, content: bytes, *, key: str) -> bool:
    """Leave the message for the relay; return False, and say why, if the directory takes none."""
    try:
        drop_mail(directory, envelope, content, name=f"{Ids(SystemClock()).new()}-{key}")
    except OSError as error:
        why = f"{directory} does not take mail: {error.strerror or error}"
        say(f"sendmail: {why}")
        return False
    return True


class _Place(Struct, frozen=True):
    """Where mail goes."""

    address: Address
    domain: str = ""  # for addresses without a domain; "": the relay adds it
    drop: Path | None = None  # the drop directory, used if no relay listens on a Unix socket
    users: LocalUsers | None = None  # which senders a user may use; None: not known


def _place(context: CommandContext) -> _Place:
    """Return where mail goes. With RELAY_SENDMAIL, no configuration is read."""
    host = socket.gethostname() or "localhost"
    if variable := read_environment().sendmail:
        try:
            address = parse_address(variable, Path.cwd())
        except ValueError:
            address = Address()
        if not address.port:
            text = f"sendmail: RELAY_SENDMAIL: found {shown(variable)}, expected HOST:PORT"
            raise CommandError(ExitCode.CONFIGURATION, text)
        return _Place(address, host)
    values: dict[str, Any] = {}
    if _may_not_be_read(context):
        values["sendmail"] = SendmailSettings()
    elif context.names_config or context.found_config_file(takes_first=True).exists():
        values = _read(context.found_config_file(takes_first=True))
    hostname = values.get("hostname", "")
    sendmail: SendmailSettings | None = values.get("sendmail")
    if sendmail is not None:
        users = LocalUsers(hostname, "", sendmail.users) if hostname else None
        return _Place(Address(path=str(sendmail.socket)), drop=sendmail.drop, users=users)
    if not values:
        return _Place(_DEFAULT, host)
    settings = Settings(**values)
    listens = (smtp.listen for smtp in settings.smtp if smtp.takes_programs)
    domain = next(iter(settings.own_domains), settings.hostname)
    return _Place(next(listens, _DEFAULT), domain)


def _read(file: Path) -> dict[str, Any]:
    """Return the fields of Settings that sendmail needs. Raises SettingsError if the file does not
    exist, and PermissionError.
    """
    check_readable(file)
    values: dict[str, Any] = {}
    try:
        document = read_document(file)
        environ = read_environment().variables
        reader = DocumentReader(document, base=file.absolute().parent, environ=environ)
        table = {key: document.table[key] for key in _NEEDED if key in document.table}
        values = reader.fields(Settings, table, ())
        faults = reader.faults
    except SettingsError as error:
        if not file.exists():
            raise
        faults = list(error.faults)
    if faults:
        used = "the default" if "sendmail" not in values else "this"
        say(f"sendmail: {faults[0]}; {used} [sendmail] is used")
        values.setdefault("sendmail", SendmailSettings())
        values.pop("hostname", None)  # then it is not known which senders a user may use
    return values


def _may_not_be_read(context: CommandContext) -> bool:
    """Return whether this user, as usual, cannot read the configuration; then defaults are used."""
    try:
        if not context.names_config:
            context.config_file().open().close()
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _message(*, ends_with_dot: bool) -> bytes:
    """Return the message on standard input. Raises CommandError (65, 66)."""
    lines, size = [], 0
    with BufferedReader(FileIO(0, closefd=False)) as stdin:
        try:
            while size <= INPUT_BYTES_MAX and (line := stdin.readline(INPUT_BYTES_MAX)):
                if ends_with_dot and line in (b".\n", b".\r\n"):
                    break
                lines.append(line)
                size += len(line)
        except OSError as error:
            text = f"sendmail: the standard input cannot be read: {error.strerror}"
            raise CommandError(ExitCode.NO_INPUT, text) from None
    if size > INPUT_BYTES_MAX:
        limit = f"the message has more than {INPUT_BYTES_MAX >> 20} MiB"
        raise CommandError(ExitCode.DATA, f"sendmail: {limit}")
    return b"".join(lines)


_HEAD = "-Queue ID-        --Size-- ---Arrival Time---- -Sender/Recipient-------"
_MARKS = {"held": "!", "captured": "!"}  # after the id, as Postfix has it; "*": in delivery
_KB = 1024


@click.command()
@common_options
def mailq(context: CommandContext) -> None:
    """List the queue, oldest first, in the form that monitors of Postfix and sendmail read."""
    list_queue(context)


def list_queue(context: CommandContext) -> None:
    """Print the queue, and on stderr the number of files in the drop directory."""
    try:
        client = operator_client(context, "sendmail")
        entries, settings = client.queue_list(Selector()), client.settings
    except (PermissionError, running_relay.ControlForbiddenError):
        text = "mailq: the queue is for root and the user of the service: sudo relay mailq"
        raise CommandError(ExitCode.NO_PERMISSION, text) from None
    # `relay mailq`: as `relay queue list`; without `--json` as Postfix's mailq
    context.show(entries, lambda: queue_lines(entries))
    drop = settings.sendmail.drop if settings.sendmail else None
    if drop is not None and (dropped := _dropped(drop)):
        click.echo(f"relay mailq: {counted(dropped, 'message')} not taken yet in {drop}", err=True)


def _dropped(drop: Path) -> int:
    """Return the number of complete files in the drop directory; 0 if it cannot be read."""
    try:
        with os.scandir(drop) as files:
            return sum(not file.name.startswith(PART) and not file.is_dir() for file in files)
    except OSError:
        return 0


def queue_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of mailq(1) for entries in the JSON of `queue list`."""
    if not entries:
        return ["Mail queue is empty"]
    lines = [_HEAD]
    for entry in entries:
        mark = "*" if entry["claimed"] else _MARKS.get(entry["state"], "")
        arrived = datetime.fromtimestamp((id_time_us(entry["id"]) or 0) / 1e6).astimezone()
        sender = entry["sender"] or "MAILER-DAEMON"
        size = entry["size"]
        lines.append(f"{entry['id'] + mark:<17} {size:>8} {arrived:%a %b %e %H:%M:%S}  {sender}")
        recipients = entry["recipients"]
        replies = dict.fromkeys(row["reply"] for row in recipients if row["reply"])
        lines += [f"({reply})" for reply in replies]
        lines += [f"{'':40}{row['address']}" for row in recipients]
        lines.append("")
    size_kb = -(-sum(entry["size"] for entry in entries) // _KB)
    requests = counted(len({entry["id"] for entry in entries}), "Request")
    lines.append(f"-- {size_kb} Kbytes in {requests}.")
    return lines
