"""Map an exception to one line on stderr and an exit code of sysexits(3).

No traceback reaches a user. An unexpected exception exits with 70.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import TextIO

import click

from relay.base import running_relay
from relay.base.accounts.account import AccountError
from relay.base.settings.document import SettingsError
from relay.operation.app.development_folder import ForeignFolderError
from relay.operation.app.state_dir import AlreadyRunningError
from relay.operation.cli.output import printable
from relay.store.spool import types

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class ExitCode(IntEnum):
    """Exit codes of sysexits(3)."""

    OK = 0
    USAGE = 64  # wrong usage of the command line
    DATA = 65  # an unknown or refused message; a damaged spool (systemd does not restart)
    NO_INPUT = 66  # no such input file
    NO_USER = 67  # `relay sendmail`: no recipient is known
    # a port (not under systemd), the `state_dir` or `mailboxes.root` is in use; no relay is
    # running; name servers that mail needs do not answer; a stop was cut off
    UNAVAILABLE = 69
    BUG = 70  # an internal error of Relay
    TRY_LATER = 75  # try later; `relay wait`: the time is up, or the state can no longer come
    NO_PERMISSION = 77  # missing permission (systemd does not restart)
    CONFIGURATION = 78  # a wrong or missing configuration (systemd does not restart)


class CommandError(Exception):
    """End the command with `code`, after `text` on stderr."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(text)
        self.code = code


_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (  # the first match counts
    (running_relay.ControlForbiddenError, ExitCode.NO_PERMISSION),
    (running_relay.ControlUnavailableError, ExitCode.UNAVAILABLE),
    (AlreadyRunningError, ExitCode.UNAVAILABLE),
    (ForeignFolderError, ExitCode.USAGE),
    (AccountError, ExitCode.DATA),
    (running_relay.NotAllowedError, ExitCode.NO_PERMISSION),
    (running_relay.TryLaterError, ExitCode.TRY_LATER),
    (running_relay.RejectedError, ExitCode.DATA),
    (types.SpoolDamagedError, ExitCode.DATA),
    (types.SpoolFormatError, ExitCode.CONFIGURATION),
    (types.SpoolUnsupportedError, ExitCode.UNAVAILABLE),
    (types.NodeNameError, ExitCode.CONFIGURATION),
    (types.SpoolInUseError, ExitCode.UNAVAILABLE),
    (types.SpoolNotEmptyError, ExitCode.USAGE),
    (types.SpoolError, ExitCode.TRY_LATER),
    (TimeoutError, ExitCode.TRY_LATER),
    (PermissionError, ExitCode.NO_PERMISSION),
    (OSError, ExitCode.UNAVAILABLE),
)
_SERVER_FAULT = 500


def report_error(error: BaseException) -> int:
    """Print the error; return the exit code."""
    match error:
        case CommandError():
            if str(error):
                say(str(error))
            return error.code
        case click.exceptions.Exit():
            return ExitCode.USAGE if error.exit_code else ExitCode.OK
        case click.ClickException():
            with _printing_errors():
                error.show()
            return ExitCode.USAGE
        case click.Abort() | KeyboardInterrupt():
            return INTERRUPTED
        case SettingsError():  # one line per fault, as compilers print them
            say(str(error))
            return ExitCode.CONFIGURATION
        case running_relay.ControlError():
            say(f"relay: {error}")
            return ExitCode.DATA if error.status < _SERVER_FAULT else ExitCode.TRY_LATER
        case UnicodeEncodeError() if error.object[error.start] in "".join(sys.argv):
            say("relay: found an argument that is not text in UTF-8")
            return ExitCode.USAGE
        case ImportError():
            say(f"relay: the installation is not complete: {error}")
            return ExitCode.UNAVAILABLE
        # the reader of stdout has closed it, for which click raises SystemExit
        case BrokenPipeError() | SystemExit():
            _discard(sys.stdout)
            return ExitCode.OK
    for kind, code in _CODES:
        if isinstance(error, kind):
            if kind is OSError:  # stdout itself may be the file that failed
                _discard(sys.stdout)
            say(f"relay: {_text_of(error)}")
            if kind is types.SpoolDamagedError:
                say("relay: `relay restore` puts a backup back; see docs/operation-backup.md")
            return code
    say(f"relay: internal error: {type(error).__name__}: {error}")
    return ExitCode.BUG


def _text_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{printable(os.fsdecode(error.filename))}: " if error.filename else ""
        return f"{place}{error.strerror}"
    return str(error) or type(error).__name__


def _discard(stream: TextIO) -> None:
    """Discard buffered output: at its exit, the interpreter could not write it."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _printing_errors() -> Iterator[None]:
    """Print on stderr in the block. If its disk is full, the exit code stays what it is."""
    try:
        yield
    except OSError:
        _discard(sys.stderr)


def say(text: str) -> None:
    """Print lines on stderr; file names and replies of remote hosts may have control characters."""
    with _printing_errors():
        click.echo("\n".join(printable(line.expandtabs()) for line in text.split("\n")), err=True)
