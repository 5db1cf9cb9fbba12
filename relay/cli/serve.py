"""`relay serve`: the service.

On the path: loads everything, composes the daemon, runs it.
Holds: facts on stdout, everything else on stderr.
Fails: 78 for a configuration or a state_dir that cannot be used, 69 for a port in use.
Standards: docs/names.md (Commands).
"""

import asyncio
from pathlib import Path

import click
import uvloop

from relay.app.compose import Sources, compose
from relay.app.configuration import InForce, read_all
from relay.app.daemon import ServiceManager
from relay.app.daemon import serve as run
from relay.app.state_dir import unusable_state
from relay.cli.errors import Ended, Exit
from relay.cli.options import Given, common_options
from relay.clock import SystemClock
from relay.observe import logs
from relay.settings import read_environment


@click.command()
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the pid and the real addresses here as JSON when everything listens.",
)
@common_options
def serve(given: Given, ready_file: Path | None) -> None:
    """Run the service until SIGTERM: HTTP, SMTP, pickup and delivery in one process.

    SIGHUP reads rules and accounts again; a bad file changes nothing and is logged.
    """
    environment = read_environment()
    file, clock = given.config_file(), SystemClock()
    in_force = InForce(lambda: read_all(file, environment.variables, clock))
    settings = in_force.settings
    if fault := unusable_state(settings):
        in_force.close()
        raise Ended(Exit.CONFIGURATION, fault)
    logs.configure(
        settings.observe.log,
        clock=clock,
        environ_journal_stream=environment.journal_stream,
        color=not environment.no_color,
    )
    sources = Sources(in_force, in_force.rules, crash_at=environment.crash_at)

    async def serve_until_told() -> None:
        try:
            daemon = compose(settings, sources)
        except ValueError as error:
            raise Ended(Exit.CONFIGURATION, f"{file}: {error}") from None
        manager = ServiceManager(environment.notify_socket)
        await run(daemon, manager, in_force=in_force, ready_file=ready_file)

    try:
        uvloop.run(serve_until_told())
    except asyncio.CancelledError:
        raise Ended(Exit.BUG, "relay: cancelled") from None
    finally:
        logs.drain()
        in_force.close()
