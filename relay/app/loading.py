"""Read everything that a service runs with: settings, accounts, rules.

On the path: before it, and at SIGHUP.
Holds: nothing is half-read: all of it is without a fault, or there is none.
Fails: SettingsError with every fault of the first of them that has any.
Standards: none.
"""

from collections.abc import Mapping
from pathlib import Path

from relay.accounts import load_accounts
from relay.app.inforce import Configured
from relay.app.routes import route_table
from relay.clock import Clock
from relay.policy import load_rules
from relay.settings import Fault, SettingsError, load


def read_all(file: Path, environ: Mapping[str, str], clock: Clock) -> Configured:
    """Return what the configuration `file` and the files it names say. Raises SettingsError."""
    settings = load(file, environ)
    boxes = settings.mailboxes
    rules = load_rules(settings.policy.directory, local_domains=boxes.domains)
    accounts = load_accounts(boxes.accounts, boxes.domains, clock=clock, environ=environ)
    try:
        route_table(settings, accounts)
    except ValueError as error:
        accounts.close()
        raise SettingsError([Fault(file, 0, "route", str(error))]) from None
    return Configured(settings, accounts, rules)
