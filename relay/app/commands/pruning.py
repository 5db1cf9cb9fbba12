"""Remove history now: the running relay does it, or, where none runs, its files are owned for it.

On the path: beside it; the command line comes here.
Holds: what is in the queue stays; what was counted is what goes.
Fails: ControlUnavailableError, ControlError; SpoolError, OSError for the files.
Standards: docs/design.md 4 (history).
"""

from collections.abc import Mapping
from typing import Any

from relay.app.commands.control import ControlClient, ControlForbiddenError, ControlUnavailableError
from relay.app.lock import AlreadyRunningError
from relay.clock import Clock
from relay.settings import Settings

_STEP_S_MAX = 120.0
_NOTHING = {"messages": 0, "submissions": 0, "kept": 0}


def prune(
    settings: Settings, clock: Clock, *, older_than_s: float | None, dry_run: bool
) -> dict[str, Any]:
    """Remove finished messages that arrived so long ago, else before spool.keep, and submission
    keys whose own time is over. Return how many of each, and how many messages were `kept` that
    look finished and are not.
    """
    client = ControlClient(settings.control_socket, timeout_s=_STEP_S_MAX)

    def ask(*, only_say: bool) -> Mapping[str, Any]:
        told: Mapping[str, Any] = client.post(
            "/storage/prune", {"older_than_s": older_than_s, "dry_run": only_say}
        )
        return told

    try:
        found = ask(only_say=True)
        while not dry_run and not ask(only_say=False)["ended"]:
            pass  # the relay's own work went on between
    except ControlUnavailableError as silent:
        if isinstance(silent, ControlForbiddenError):
            raise
        found = _offline(settings, clock, silent, older_than_s=older_than_s, dry_run=dry_run)
    return {name: found[name] for name in _NOTHING} | {"dry_run": dry_run}


def _offline(
    settings: Settings,
    clock: Clock,
    silent: ControlUnavailableError,
    *,
    older_than_s: float | None,
    dry_run: bool,
) -> Mapping[str, Any]:
    from relay.app.commands.offline import Files, ask_files  # noqa: PLC0415 - where none runs

    age_s = settings.spool.keep if older_than_s is None else older_than_s

    async def ask(files: Files) -> Mapping[str, Any]:
        found = await files.spool.keeping.prune_many(age_s, dry_run=True)
        while not dry_run and not (await files.spool.keeping.prune_many(age_s))["ended"]:
            pass
        return found

    try:
        return ask_files(settings, clock, ask, nothing=_NOTHING)
    except AlreadyRunningError as running:
        raise ControlUnavailableError(f"{silent}, but {running}") from None
