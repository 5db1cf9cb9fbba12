"""`relay dev`: the whole pipeline on loopback, without a file.

On the path: runs app.development, shows what app.demonstration and app.follow see.
Holds: facts on stdout, everything else on stderr.
Fails: 69 for a port in use or a step that did not come.
Standards: CONTRACT, "Commands".
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import uvloop

from relay.app.daemon import Daemon
from relay.app.demonstration import DemonstrationError, Shown, demonstrate
from relay.app.development import HTTP, SMTP, Folder, compose_development, open_folder
from relay.app.follow import Follower
from relay.app.sending import RefusedError
from relay.app.serve import write_ready_file
from relay.cli.context import Given, common_options, print_json
from relay.cli.exits import Ended, Exit
from relay.cli.show import STEPS, printable, step_line
from relay.clock import SystemClock
from relay.journal import logs
from relay.settings import read_environment
from relay.settings.tree import Address
from relay.settings.values import parse_address

_NOT_DUE = "none due: nobody failed, no receipt was asked for"


class _AddressType(click.ParamType[Address]):
    name = "HOST:PORT"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Address:
        if isinstance(value, Address):
            return value
        try:
            address = parse_address(value, Path.cwd())
        except ValueError as error:
            self.fail(str(error), param, context)
        if not address.host.startswith("127.") and address.host not in ("::1", "localhost"):
            self.fail("the development relay listens on loopback only", param, context)
        return address


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep mail and state here. [default: a folder that goes with Ctrl-C]",
)
@click.option(
    "--http",
    default=HTTP,
    type=_AddressType(),
    show_default="127.0.0.1:8025",
    help="Where the Graph API listens; port 0 takes a free one.",
)
@click.option(
    "--smtp",
    default=SMTP,
    type=_AddressType(),
    show_default="127.0.0.1:1025",
    help="Where SMTP listens; port 0 takes a free one.",
)
@click.option("--once", is_flag=True, help="Show the two messages and exit: 0 if all went well.")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write pid and addresses here as JSON when everything listens.",
)
@click.option(
    "--exit-after", type=click.IntRange(min=1), metavar="N", help="Exit after N messages."
)
@common_options
def dev(given: Given, **options: Any) -> None:
    """Run the development relay: no file, loopback only, no mail leaves this machine."""
    environment = read_environment()
    logs.configure(
        "auto", clock=SystemClock(), color=not environment.no_color, level="warning"
    )  # the events themselves are shown on stdout
    place = open_folder(options["folder"])
    try:
        uvloop.run(_Development(given, place, options).run())
    finally:
        place.remove()
        logs.drain()


class _Development:
    def __init__(self, given: Given, place: Folder, options: dict[str, Any]) -> None:
        self._json = given.json
        self._place = place
        self._once: bool = options["once"]
        self._exit_after: int | None = options["exit_after"]
        self._ready_file: Path | None = options["ready_file"]
        self._http: Address = options["http"]
        self._smtp: Address = options["smtp"]
        self._stop = asyncio.Event()

    async def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        settings = self._place.write_config(http=self._http, smtp=self._smtp)
        daemon = compose_development(settings)
        try:
            with _port_in_use():
                await daemon.start()
            await self._started(daemon)
        finally:
            await daemon.stop()

    async def _started(self, daemon: Daemon) -> None:
        http, smtp = daemon.http_servers[0].bound[0], daemon.smtp_servers[0].address
        self._place.write_config(http=http, smtp=smtp)  # with the ports that were really taken
        if self._ready_file is not None:
            write_ready_file(self._ready_file, daemon)
        self._banner(http, smtp)
        try:
            await demonstrate(daemon, self._show_journey)
        except (DemonstrationError, RefusedError) as error:
            raise Ended(Exit.UNAVAILABLE, f"relay dev: {error}") from None
        if self._once:
            return
        self._next(http, smtp)
        follower = Follower(daemon, self._show_step)
        await follower.look(quietly=True)
        await self._follow(daemon, follower, shown_before=follower.messages)

    async def _follow(self, daemon: Daemon, follower: Follower, *, shown_before: int) -> None:
        following = asyncio.create_task(follower.run())
        stopping = asyncio.create_task(self._stop.wait())
        waiting = {following, stopping}
        if self._exit_after is not None:
            waiting.add(asyncio.create_task(self._enough(daemon, follower, shown_before)))
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _enough(self, daemon: Daemon, follower: Follower, shown_before: int) -> None:
        assert self._exit_after is not None
        while True:
            count = daemon.changes.count
            await follower.look()
            if follower.messages - shown_before >= self._exit_after:
                return
            await daemon.changes.beyond(count)

    # -- what people see
    def _banner(self, http: Address, smtp: Address) -> None:
        if self._json:
            return
        mail = self._place.path / "mail" / "example.test"
        for line in (
            "relay dev: nothing leaves this machine (no DNS, no outbound connection)",
            "",
            f"  Graph API  http://{http}/v1.0    Authorization: Bearer alice",
            f"  SMTP       smtp://alice:alice@{smtp}    (or no login at all)",
            f"  Mail       {mail}/<name>/    plain Maildir",
            "  People     alice, bob; any other token or login makes its own mailbox",
            "",
        ):
            click.echo(line)

    def _show_journey(self, shown: Shown) -> None:
        if self._json:
            print_json(shown.journey)
            return
        click.echo(f'{shown.title}: {shown.journey["sender"]}, "{shown.journey["subject"]}"')
        steps = shown.journey["steps"]
        for number, name in STEPS.items():
            mine = [step for step in steps if step["step"] == number]
            for step in mine:
                click.echo(step_line(step))
            if not mine:
                click.echo(f" {number} {name:<18} {'-':<12}  {self._missing(number)}")
        if shown.report_subject:
            subject = printable(shown.report_subject)
            click.echo(f'   the report is in {shown.mailbox}/new: "{subject}"')
        else:
            click.echo(f"   delivered to {shown.mailbox}/new")
        click.echo()

    @staticmethod
    def _missing(number: int) -> str:
        return _NOT_DUE if number == 7 else "not reached: it was refused in step 5"

    def _next(self, http: Address, smtp: Address) -> None:
        if self._json:
            return
        host, port = smtp.host, smtp.port
        for line in (
            "Try next:",
            f"  curl -i http://{http}/v1.0/me/sendMail -H 'Authorization: Bearer alice' \\",
            '    -H \'Content-Type: application/json\' -d \'{"message": {"subject": "hi",',
            '    "toRecipients": [{"emailAddress": {"address": "bob@example.test"}}]}}\'',
            f"  swaks --server {host} --port {port} -f app@example.test -t bob@example.test",
            "  relay send --token alice --to bob@example.test --subject hi",
            "  relay trace last        relay queue list        relay wait ID",
            "",
            f"ready (pid {os.getpid()}); every step of every message follows, Ctrl-C ends it",
        ):
            click.echo(line)

    def _show_step(self, journey: dict[str, Any], step: dict[str, Any]) -> None:
        if self._json:
            print_json({"id": journey["id"], "graph_id": journey["graph_id"], **step})
            return
        name = journey["id"] or journey["submission_id"]
        click.echo(f"{name} {step_line(step)}")


@contextlib.contextmanager
def _port_in_use() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"relay dev: {error.strerror or error}; try --http 127.0.0.1:0 --smtp 127.0.0.1:0"
        raise Ended(Exit.UNAVAILABLE, text) from None
