"""The route table of a configuration, made in one way for the service, its check and its reload.

On the path: before step 5; compose keeps the table, check and reload only see whether one can be.
Holds: what a start would refuse is refused here.
Fails: ValueError for a route, a password file, or a catch_all or postmaster that is no account.
Standards: none.
"""

from relay.accounts import AccountDirectory
from relay.routing import RouteTable
from relay.settings import Settings


def route_table(settings: Settings, accounts: AccountDirectory) -> RouteTable:
    """Return the table of the routes and local domains in `settings`."""
    boxes = settings.mailboxes
    return RouteTable(
        settings.route,
        boxes.domains,
        accounts,
        catch_all=boxes.catch_all,
        postmaster=boxes.postmaster,
    )
