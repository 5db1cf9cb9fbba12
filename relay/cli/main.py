"""The command's root: common options, the verbs, and what becomes of an exception.

On the path: see the room.
Holds: --config and --json may stand before or after the verb.
Fails: with a sysexits code and one line on stderr; 70 for a fault of ours.
Standards: sysexits(3).
"""

import os
import sys

import click

from relay import __version__
from relay.app import AlreadyRunningError
from relay.cli import check, dev, policy, queue, send, serve, trace, wait
from relay.cli.context import Given, common_options
from relay.cli.exits import Ended, Exit
from relay.http import ControlError, ControlUnavailableError
from relay.settings import SettingsError
from relay.spool.types import SpoolError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="relay")
@common_options
@click.pass_context
def cli(context: click.Context, given: Given) -> None:
    """Relay: a self-hosted mail relay with the shape of Microsoft Graph's send-mail process."""
    context.obj = given


for _verb in (
    dev.dev,
    serve.serve,
    check.check,
    send.send,
    wait.wait,
    trace.trace,
    queue.queue,
    policy.policy,
):
    cli.add_command(_verb)


def main() -> None:
    """Run the command line and exit."""
    sys.exit(_run())


def _run() -> int:
    try:
        cli.main(standalone_mode=False)
    except Ended as ended:
        if str(ended):
            _say(str(ended))
        return ended.code
    except click.exceptions.Exit as ended:
        return Exit.USAGE if ended.exit_code else Exit.OK
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except (click.Abort, KeyboardInterrupt):
        return 130
    except SettingsError as error:
        _say(str(error))
        return Exit.CONFIGURATION
    except (ControlUnavailableError, AlreadyRunningError) as error:
        _say(f"relay: {error}")
        return Exit.UNAVAILABLE
    except ControlError as error:
        _say(f"relay: {error}")
        return Exit.DATA if error.status < _SERVER_FAULT else Exit.TRY_LATER
    except (SpoolError, TimeoutError) as error:
        _say(f"relay: {error}")
        return Exit.TRY_LATER
    except PermissionError as error:
        _say(f"relay: {error}")
        return Exit.NO_PERMISSION
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except OSError as error:
        _say(f"relay: {error.strerror or error}")
        return Exit.UNAVAILABLE
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user
        _say(f"relay: internal error: {type(error).__name__}: {error}")
        return Exit.BUG
    return Exit.OK


def _say(text: str) -> None:
    click.echo(text, err=True)


_SERVER_FAULT = 500
