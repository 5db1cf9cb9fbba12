"""`relay import`: messages from files, mbox files and Maildirs with folders into a mailbox.

It writes into the directory of the mailbox, as mail programs do, whether a relay runs or not. Exits
65 for a mailbox or folder that does not exist, and if something was left out, after all others were
imported; 66 for a file that does not exist; 77 for a file that cannot be read, and for a user who
does not own the mailboxes.
"""

import os
from pathlib import Path

import click

from relay.base.clock import Ids, SystemClock
from relay.base.message.address import own_mailbox
from relay.base.phrases import counted, shown
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.options import CommandContext, InputPath, common_options
from relay.operation.cli.output import printable
from relay.operation.commands.mail_import import BadMailError, FoundMail, MailImport, find_mail
from relay.store.mailbox.errors import NoSuchItemError
from relay.store.mailbox.folders import Folders, list_folders
from relay.store.mailbox.message_file import mailbox_directory
from relay.store.mailbox.stored_message import Folder


@click.command("import")
@click.argument("paths", nargs=-1, required=True, type=InputPath(), metavar="PATH…")
@click.option("--mailbox", required=True, metavar="ADDRESS", help="Where to put the messages.")
@click.option("--folder", metavar="NAME", help="Its folder; default: Inbox, and by their names.")
@click.option("--create", is_flag=True, help="Make the mailbox if it does not exist.")
@common_options
def import_mail(
    context: CommandContext,
    paths: tuple[Path, ...],
    *,
    mailbox: str,
    folder: str | None,
    create: bool,
) -> None:
    """Put messages into a mailbox: files of messages, mbox files, Maildirs, directories of these.

    The folders of a Maildir become those of the mailbox, or folders below --folder. A message that
    was there already is not added. Imported mail is new, but that of a Maildir keeps its flags.
    What is no mail is named and left out; then the exit status is 65.
    """
    settings = context.settings()
    hint = "; `relay import --create` makes it"
    place = _mailbox(settings.mailboxes.root, mailbox, create=create, hint=hint)
    base = None if folder is None else _folder(place, folder)
    importing = MailImport(place, base, hostname=settings.hostname, ids=Ids(SystemClock()))
    bad = 0

    def leave_out(error: BadMailError) -> None:
        nonlocal bad
        bad += 1
        click.echo(printable(f"relay import: left out {error}"), err=True)

    def add(mail: FoundMail) -> None:
        try:
            importing.add(mail)
        except BadMailError as error:
            leave_out(error)

    try:
        for path in paths:
            try:
                for mail in find_mail(path, leave_out):
                    add(mail)
            except BadMailError as error:
                leave_out(error)
    finally:
        importing.finish()
    result = {"imported": importing.imported, "present": importing.present, "no_mail": bad}
    context.show(result, lambda: [_summary(importing, bad)])
    if bad:
        raise CommandError(ExitCode.DATA)


def _summary(importing: MailImport, bad: int) -> str:
    number = importing.imported + importing.present + bad
    present = f", {importing.present} were there already" if importing.present else ""
    left_out = f", left out {bad}" if bad else ""
    return f"found {number}: imported {counted(importing.imported, 'message')}{present}{left_out}"


def _mailbox(root: Path, address: str, *, create: bool = False, hint: str = "") -> Path:
    """Return the mailbox. Raises CommandError; `hint` is added if the mailbox does not exist."""
    if root.is_dir() and root.stat().st_uid != os.geteuid():
        text = f"{root} belongs to the user {root.stat().st_uid}: run it as that user"
        raise CommandError(ExitCode.NO_PERMISSION, f"relay: {text}")
    try:
        place = mailbox_directory(root, own_mailbox(address))
    except NoSuchItemError as error:
        raise CommandError(ExitCode.DATA, f"relay: {error}") from None
    if not create and not (place / "cur").is_dir():
        text = f"relay: there is no mailbox {shown(address)}{hint}"
        raise CommandError(ExitCode.DATA, text)
    return Folders(lambda account: mailbox_directory(root, account)).mailbox(own_mailbox(address))


def _folder(mailbox: Path, name: str) -> Folder:
    """Return the folder with this name or id. Raises CommandError."""
    folded = name.casefold()
    for folder in list_folders(mailbox):
        if folded in (folder.id.casefold(), folder.display_name.casefold()):
            return folder
    raise CommandError(ExitCode.DATA, f"relay: the mailbox has no folder {shown(name)}")
