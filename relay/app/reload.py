"""Reload the configuration of a running service at SIGHUP, and log what came of it.

Which keys a reload applies is decided in relay/settings/reloadable_keys.py; that a faulty file
changes nothing in `configuration`.
"""

import asyncio

from relay.app.configuration import ActiveConfiguration
from relay.observe.logs import get_logger
from relay.settings.document import SettingsError
from relay.settings.reloadable_keys import ChangedKey

_log = get_logger("app")
_FAULTS_SHOWN = 20


class Reloader:
    """Reloads the configuration at each SIGHUP, one reload at a time.

    Signals that arrive during a reload cause one more reload after it.
    """

    def __init__(self, active: ActiveConfiguration) -> None:
        self._active = active
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def request(self) -> None:
        """Start a reload, or request one more after the running one."""
        if self._task is not None and not self._task.done():
            self._again = True
            return
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def end(self) -> None:
        """Wait for the running reload."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            try:
                renewed = await asyncio.to_thread(self._active.reload, _log_restart_key)
            except SettingsError as error:
                for fault in error.faults[:_FAULTS_SHOWN]:
                    _log.error("not reloaded", fault=str(fault))
                _log.error("the previous configuration stays active", faults=len(error.faults))
            except Exception:  # noqa: BLE001 - a failed reload must not end the service
                _log.exception("not reloaded: the previous configuration stays active")
            else:
                rules = len(self._active.rules().rules)
                _log.info("reloaded", rules=rules, new_certificates=renewed)


def _log_restart_key(changed: ChangedKey) -> None:
    _log.warning(
        "a key of relay.toml has changed: a restart is needed",
        key=changed.key,
        old=changed.old,
        new=changed.new,
    )
