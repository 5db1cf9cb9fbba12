"""`relay import` and `relay export`: mailboxes from and to .eml, mbox and Maildir.

Both work on the mailboxes' directories, whether a relay runs or not, as mail programs do. Exits 65
for a file that is not mail, and for a mailbox or folder that does not exist, 66 for a file that
does not exist, 77 for a file that cannot be read, and for another user than the mailboxes'.
"""

import os
from pathlib import Path

import click

from relay.base.clock import SystemClock
from relay.base.phrases import counted, shown
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import CommandContext, InputPath, common_options
from relay.cli.output import printable
from relay.commands.mail_export import (
    FORMATS,
    MailStates,
    export_eml,
    export_maildir,
    export_mbox,
    folders_of,
    stored_mail,
)
from relay.commands.mail_import import BadMailError, MailImport, find_mail
from relay.mailbox.folders import Folders
from relay.mailbox.message_file import mailbox_directory
from relay.mailbox.types import Folder, NoSuchItemError, StoreUnavailableError
from relay.message.address import own_mailbox


@click.command("import")
@click.argument("paths", nargs=-1, required=True, type=InputPath(), metavar="PATH…")
@click.option("--mailbox", required=True, metavar="ADDRESS", help="Where to put the messages.")
@click.option(
    "--folder",
    default="inbox",
    show_default=True,
    metavar="NAME",
    help="Its folder.",
)
@click.option("--create", is_flag=True, help="Make the mailbox if it does not exist.")
@common_options
def import_mail(
    context: CommandContext, paths: tuple[Path, ...], *, mailbox: str, folder: str, create: bool
) -> None:
    """Put messages into a mailbox: .eml files, mbox files, Maildirs, directories with .eml files.

    A message that was imported before is left out. Imported mail is new, but that of a Maildir and
    of relay export keeps its flags.
    """
    settings = context.settings()
    hint = "; `relay import --create` makes it"
    place = _mailbox(settings.mailboxes.root, mailbox, create=create, hint=hint)
    (target,) = _folders(place, folder)[:1]
    importing = MailImport(place, target.path, hostname=settings.hostname)
    try:
        for path in paths:
            for mail in find_mail(path, _note):
                importing.add(mail)
    except BadMailError as error:
        raise CommandError(
            ExitCode.DATA, f"relay import: {printable(str(error))}\n  {_said(importing)} before"
        ) from None
    except StoreUnavailableError as error:
        text = f"relay import: {error}\n  {_said(importing)} before"
        raise CommandError(ExitCode.UNAVAILABLE, text) from None
    finally:
        importing.finish()
    result = {"imported": importing.imported, "present": importing.present}
    context.show(result, lambda: [_said(importing)])


@click.command("export")
@click.argument("mailbox", metavar="ADDRESS")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    help="What to write. [default: mbox for FILE.mbox, else .eml files in a directory]",
)
@click.option("--folder", default="", metavar="NAME", help="Only this folder, by name or id.")
@common_options
def export_mail(
    context: CommandContext, mailbox: str, target: Path, *, kind: str | None, folder: str
) -> None:
    """Write the messages of a mailbox into a directory, or into FILE.mbox.

    `relay show ID --source` writes a single message.
    """
    place = _mailbox(context.settings().mailboxes.root, mailbox)
    states = MailStates(place, SystemClock())
    mail = stored_mail(_folders(place, folder), states)
    kind = kind or ("mbox" if target.suffix.lower() == ".mbox" else "eml")
    write = {"eml": export_eml, "mbox": export_mbox, "maildir": export_maildir}[kind]
    try:
        number = write(mail, target)
    except FileExistsError as error:
        text = f"relay export: {error.filename} exists already; nothing was written"
        raise CommandError(ExitCode.USAGE, text) from None
    except StoreUnavailableError as error:
        raise CommandError(ExitCode.DATA, f"relay export: {error}") from None
    finally:
        states.close()
    context.show({"messages": number}, lambda: [f"exported {counted(number, 'message')}"])


def _note(text: str) -> None:
    click.echo(printable(f"relay import: {text}"), err=True)


def _said(importing: MailImport) -> str:
    number = counted(importing.imported, "message")
    present = f", {importing.present} were there already" if importing.present else ""
    return f"imported {number}{present}"


def _mailbox(root: Path, address: str, *, create: bool = False, hint: str = "") -> Path:
    """Return the mailbox. Raises CommandError; `hint` is about one that is not there."""
    if root.is_dir() and root.stat().st_uid != os.geteuid():
        text = f"{root} belongs to the user {root.stat().st_uid}: run it as that user"
        raise CommandError(ExitCode.NO_PERMISSION, f"relay: {text}")
    try:
        place = mailbox_directory(root, own_mailbox(address))
    except NoSuchItemError as error:
        raise CommandError(ExitCode.DATA, f"relay: {error}") from None
    if create:
        return Folders(lambda account: mailbox_directory(root, account)).mailbox(
            own_mailbox(address)
        )
    if not (place / "cur").is_dir():
        text = f"relay: there is no mailbox {shown(address)}{hint}"
        raise CommandError(ExitCode.DATA, text)
    return place


def _folders(mailbox: Path, name: str) -> list[Folder]:
    found = folders_of(mailbox, name)
    if not found:
        raise CommandError(ExitCode.DATA, f"relay: the mailbox has no folder {shown(name)}")
    return found
