"""`relay serve`: load the configuration, compose the daemon, run it.

Exits 78 for a configuration or a state_dir that cannot be used, 77 for one that this user cannot
write, 69 for a port in use: a service manager's waits for that one.
"""

import asyncio
import os
from functools import partial
from pathlib import Path

import click
import msgspec
import uvloop

from relay.base.clock import Clock, SystemClock
from relay.base.observe import logs
from relay.base.settings.environment import Environment, read_environment, take_sockets
from relay.base.settings.tree import NodeRole, Settings
from relay.operation.app.compose import compose
from relay.operation.app.configuration import ActiveConfiguration
from relay.operation.app.daemon import serve as run
from relay.operation.app.daemon import wait_for_ports
from relay.operation.app.foundation import RelayDependencies
from relay.operation.app.memory import listener_bytes
from relay.operation.app.pressure_monitor import raise_open_files_limit
from relay.operation.app.state_dir import foreign_state, is_barred, unusable_state
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.options import CommandContext, common_options, role_option
from relay.store.mailbox.mail_root import ForeignRootError
from relay.transport.gate.wire import ChildStart


@click.command()
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the pid and the addresses in use to this file as JSON when everything listens.",
)
@role_option
@common_options
def serve(context: CommandContext, ready_file: Path | None, role: NodeRole) -> None:
    """Run the service until SIGTERM: HTTP, SMTP, pickup and delivery.

    With --role transport it has SMTP, delivery and reports, but no mailboxes, and no HTTP except
    health and metrics: a node of a PostgreSQL spool, where local mail waits for the node that has
    the mailboxes.

    Under systemd it waits for a port that another program has, with nothing open; else it exits 69.

    SIGHUP, as `relay reload`, reloads rules, accounts and some keys of relay.toml; the log names
    changed keys that need a restart. A file with faults is logged and changes nothing.
    """
    take_sockets()
    environment = read_environment()
    file, clock = context.config_file(), SystemClock()
    active = ActiveConfiguration(
        file,
        environment.variables,
        clock=clock,
        role=role,
        crash_at=environment.crash_at,
        on_settings=partial(_start_log, clock=clock, environment=environment),
    )
    settings = active.settings
    if fault := unusable_state(settings) or foreign_state(settings):
        active.close()
        code = ExitCode.NO_PERMISSION if is_barred(settings) else ExitCode.CONFIGURATION
        raise CommandError(code, fault)
    if settings.observe.log_to == "stdout":
        os.dup2(1, 2)  # child processes log there, too
    sources = RelayDependencies(
        active.accounts,
        lambda: active.now.rules,
        lambda: active.now.texts,
        lambda: active.now.keys,
        lambda: active.now.providers,
        route_places=lambda: active.now.places,
        crash_at=environment.crash_at,
        certificates=active.certificates,
        active=active,
        agreed=active.agreed,
        holds_root=role is NodeRole.ALL,
        gate_words=_gate_words(settings, environment),
    )

    async def serve_until_stopped() -> None:
        raise_open_files_limit()
        notify, watchdog_s = environment.notify_socket, environment.watchdog_s
        await wait_for_ports(settings, clock, notify_socket=notify)
        try:
            daemon = compose(settings, sources)
        except ValueError as error:
            raise CommandError(ExitCode.CONFIGURATION, f"{file}: {error}") from None
        try:
            await run(
                daemon,
                notify_socket=notify,
                watchdog_s=watchdog_s,
                ready_file=ready_file,
                ends_process=True,
            )
        except ForeignRootError as error:
            raise CommandError(ExitCode.CONFIGURATION, f"{file}: {error}") from None

    try:
        uvloop.run(serve_until_stopped())
    except asyncio.CancelledError:
        raise CommandError(ExitCode.BUG, "relay: cancelled") from None
    finally:
        logs.drain()
        active.close()


def _start_log(settings: Settings, *, clock: Clock, environment: Environment) -> None:
    logs.configure(
        settings.observe.log,
        clock=clock,
        environ_journal_stream=environment.journal_stream,
        color=not environment.no_color,
        descriptor=1 if settings.observe.log_to == "stdout" else 2,
        node=settings.node_of_many,
    )


def _gate_words(settings: Settings, environment: Environment) -> tuple[str]:
    """Return the argument of relay.transport.gate.child."""
    start = ChildStart(
        settings.observe.log,
        journal=environment.journal_stream,
        color="" if environment.no_color else "color",
        node=settings.node_of_many,
        crash_at=environment.crash_at,
        memory_bytes=listener_bytes(settings),
    )
    return (msgspec.json.encode(start).decode(),)
