"""The root of the command: common options and the verbs.

Only the module of the verb used is imported, so that a query to a daemon does not load a daemon.
"""

import importlib
import os
import sys
from pathlib import Path

import click

from relay import __version__, commit
from relay.base.running_relay import ControlClient
from relay.base.settings.environment import read_environment
from relay.operation.cli.options import CommandContext, common_options

_GROUPS = {
    "Develop": {
        "dev": "Run the development relay: no file, loopback only.",
        "clock": "Show and advance the clock of relay dev.",
        "reset": "Delete everything that the development relay has stored.",
    },
    "Send and look": {
        "send": "Send one message and print its id.",
        "sendmail": "Send a message as sendmail(8) does.",
        "mailq": "List the queue as mailq(1) does.",
        "wait": "Wait until a message reaches a state.",
        "trace": "Show a message's journey through the seven steps.",
        "list": "List messages: by sender, recipient, client, state, time.",
        "log": "The same as relay list.",
        "search": "List the messages that the search of the pages finds.",
        "show": "Show a message's content, captured mail too.",
        "stats": "Count mail by provider, domain, route or login.",
        "explain": "Say where mail for an address goes, and why.",
    },
    "Operate": {
        "serve": "Run the service until SIGTERM.",
        "reload": "Have the running service read its configuration again.",
        "ready": "Exit 0 if the running relay is ready.",
        "pause": "Stop delivery or acceptance on this node.",
        "resume": "End what relay pause has stopped.",
        "config": "Show the configuration; what has changed since its load.",
        "check": "Check configuration, accounts, rules, permissions, DNS.",
        "webhook": "Show and try webhooks, and send events again.",
        "account": "Add, list and remove accounts; tokens and passwords.",
        "policy": "Check and try the mail-flow rules.",
        "oauth": "Sign in for the tokens of routes, and try to get them.",
        "dns": "Compare the DNS records of a domain with what to publish.",
        "dkim": "Make keys that sign mail, and show those in use.",
    },
    "Repair": {
        "queue": "List the queue and change it.",
        "suppressed": "List dead addresses; add and remove some.",
        "storage": "Check, copy and prune the stored data.",
        "backup": "Copy everything of a service into a directory.",
        "restore": "Restore a backup into an empty place; what waits is held.",
    },
}
_VERBS = {name: text for group in _GROUPS.values() for name, text in group.items()}
# A verb that is not listed here is a function of this name in the module of this name. The verbs of
# `relay dev` are in a wing that this wing does not import.
_MODULES = {
    "wait": "trace",
    "log": "trace",
    "list": "trace",
    "search": "trace",
    "restore": "backup",
    "check": "backup",
    "pause": "queue",
    "resume": "queue",
    "mailq": "sendmail",
    "reload": "control",
    "ready": "control",
    "webhook": "control",
    "dkim": "dns",
    "dev": "relay.development.verbs.dev",
    "clock": "relay.development.verbs.clock",
    "reset": "relay.development.verbs.clock",
}
_CALLED = ("sendmail", "mailq")  # names of the program, such as symbolic links, that select a verb
_NAMES = {"list": "log"}
# Names that users of other programs may try.
_INSTEAD = {name: f"queue {name}" for name in ("retry", "hold", "release", "cancel", "reroute")} | {
    "delete": "queue cancel",
    "queue delete": "queue cancel",
    "queue flush": "queue retry --all",
    "inbox": "list --to ADDRESS",
    "status": "queue stats",
    "tail": "list",
}


class _Verbs(click.Group):
    """Loads the module of a verb when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _VERBS:
            return None
        module = _MODULES.get(cmd_name, cmd_name)
        if "." not in module:
            module = f"relay.operation.cli.{module}"
        verb = getattr(importlib.import_module(module), _NAMES.get(cmd_name, cmd_name))
        assert isinstance(verb, click.Command)
        return verb

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = " ".join(args[:2]) if args[0] == "queue" else args[0]
        if name in _INSTEAD or args[0] not in _VERBS:
            from difflib import get_close_matches  # noqa: PLC0415 - slow

            close = [_INSTEAD[name]] if name in _INSTEAD else get_close_matches(name, _VERBS, n=1)
            if close:
                ctx.fail(f'No such command {name!r}. Did you mean "relay {close[0]}"?')
        return super().resolve_command(ctx, args)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        for title, verbs in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:8}", text) for name, text in verbs.items()])


_STANDARD_FILES = 3
_VERSION = f"{__version__} ({commit()})".removesuffix(" ()")


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes are those of sysexits: 64 usage, 65 data, 66 no such input file, "
    "69 unavailable, 75 try later, 77 permission, 78 configuration.",
)
@click.version_option(_VERSION, prog_name="relay", message="%(prog)s %(version)s")
@common_options
def cli(_given: CommandContext) -> None:
    """Relay: a self-hosted mail relay with the shape of Microsoft Graph's send-mail process."""


def run() -> int:
    """Run the command line; return the exit code."""
    # libuv aborts when it closes a file of its own that has the number of a standard file
    while (spare := os.open(os.devnull, os.O_RDWR)) < _STANDARD_FILES:
        pass
    os.close(spare)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the encoding of a terminal may lack characters of a subject
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    ControlClient.sudo_user = read_environment().variables.get("SUDO_USER", "")
    called = Path(sys.argv[0]).name
    words, name = sys.argv[1:], None
    if called in _CALLED:
        words, name = [called, *words], "relay"
    try:
        cli.main(words, prog_name=name, standalone_mode=False)
    except BaseException as error:  # noqa: BLE001 - no traceback reaches a user
        # imports the errors of all rooms
        from relay.operation.cli.errors import report_error  # noqa: PLC0415

        return report_error(error)
    return 0
