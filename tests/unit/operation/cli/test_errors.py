"""Every error is one line on stderr and a code of sysexits."""

import errno
from pathlib import Path

import click

from relay.base.running_relay import (
    ControlError,
    ControlForbiddenError,
    ControlUnavailableError,
    NotAllowedError,
    RejectedError,
    TryLaterError,
)
from relay.base.settings.document import Fault, SettingsError
from relay.operation.app.development_folder import ForeignFolderError
from relay.operation.app.state_dir import AlreadyRunningError
from relay.operation.cli.errors import CommandError, ExitCode, report_error
from relay.store.spool.types import SpoolError
from tests.support.tables import each_row


@each_row(
    "error, code, text",
    [
        (CommandError(ExitCode.DATA, "relay trace: none"), 65, "relay trace: none"),
        (CommandError(ExitCode.CONFIGURATION), 78, ""),
        (click.exceptions.Exit(0), 0, ""),
        (click.UsageError("expected a selector"), 64, "Error: expected a selector"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (
            SettingsError([Fault(Path("r.toml"), 3, "bogus", "found an unknown key")]),
            78,
            "r.toml:3: bogus: found an unknown key",
        ),
        (ControlUnavailableError("no relay is running"), 69, "relay: no relay is running"),
        (ControlForbiddenError("permission denied"), 77, "relay: permission denied"),
        (ControlError(400, "BadRequest", "state: found x"), 65, "relay: state: found x"),
        (ControlError(503, "Busy", "too many"), 75, "relay: too many"),
        (AlreadyRunningError("state is in use"), 69, "relay: state is in use"),
        (ForeignFolderError("not ours"), 64, "relay: not ours"),
        (RejectedError("550 5.1.1 no"), 65, "relay: 550 5.1.1 no"),
        (RejectedError("a\x1b[2J\nb\x07"), 65, "relay: a?[2J\nb?"),
        (NotAllowedError("403"), 77, "relay: 403"),
        (TryLaterError("451"), 75, "relay: 451"),
        (SpoolError("the disk is full"), 75, "relay: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 77, "/x: Permission denied"),
        (OSError(errno.EADDRINUSE, "cannot listen on 1"), 69, "relay: cannot listen on 1"),
        (ImportError("No module named 'x'"), 69, "the installation is not complete: No module"),
        (ZeroDivisionError("oh"), 70, "relay: internal error: ZeroDivisionError: oh"),
    ],
)
def test_an_error_has_its_code_and_one_line(error, code, text, capsys):
    assert report_error(error) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert text in printed.err
    assert bool(text) == bool(printed.err)
    assert "Traceback" not in printed.err
