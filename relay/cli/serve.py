"""`relay serve`: the service.

On the path: loads everything, composes the daemon, runs it.
Holds: facts on stdout, everything else on stderr.
Fails: 78 for a configuration that cannot be used, 69 for a port in use.
Standards: CONTRACT, "Commands".
"""

import asyncio
from pathlib import Path

import click
import uvloop

from relay.accounts import load_accounts
from relay.app.compose import Sources, compose
from relay.app.notify import ServiceManager
from relay.app.serve import serve as run
from relay.cli.context import Given, common_options
from relay.cli.exits import Ended, Exit
from relay.clock import SystemClock
from relay.journal import logs
from relay.policy import load
from relay.settings import read_environment


@click.command()
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the pid and the real addresses here as JSON when everything listens.",
)
@common_options
def serve(given: Given, ready_file: Path | None) -> None:
    """Run the service until SIGTERM: HTTP, SMTP, pickup and delivery in one process."""
    settings = given.settings()
    environment = read_environment()
    logs.configure(
        settings.observe.log,
        clock=SystemClock(),
        environ_journal_stream=environment.journal_stream,
        color=not environment.no_color,
    )
    accounts = load_accounts(
        settings.mailboxes.accounts, settings.mailboxes.domains, clock=SystemClock(),
        environ=environment.variables,
    )  # fmt: skip
    rules = load(settings.policy.directory, local_domains=settings.mailboxes.domains)
    sources = Sources(accounts, rules, crash_at=environment.crash_at)

    async def serve_until_told() -> None:
        try:
            daemon = compose(settings, sources)
        except ValueError as error:
            raise Ended(Exit.CONFIGURATION, f"{given.config_file()}: {error}") from None
        await run(daemon, ServiceManager(environment.notify_socket), ready_file=ready_file)

    try:
        uvloop.run(serve_until_told())
    except asyncio.CancelledError:
        raise Ended(Exit.BUG, "relay: cancelled") from None
    finally:
        logs.drain()
        accounts.close()
