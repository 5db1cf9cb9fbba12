"""What must be equal on all nodes of a spool, since a message may be accepted at one of them and
delivered by another.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from hashlib import sha256

import msgspec

from relay.app.srs_key import srs_in
from relay.settings.document import SettingsError
from relay.settings.tree import Settings
from relay.signing.keys import KeyRing
from relay.spool.engine import LOCAL_DOMAINS

# Of a route: what may be another on each machine.
_OF_MACHINE = ("auth", "ca", "source_address")


def agreed_parts(
    settings: Settings, *, rules: str, accounts: str, keys: KeyRing
) -> Mapping[str, str]:
    """Return a digest of each part by its name. `rules` and `accounts` are the digests of those.

    Local domains and accounts are those of a mail root: each has its own. Of the domains it is the
    text that other nodes read. The digests are of
    secrets too, and therefore stay in this process.
    """
    routes = [
        {one.name: getattr(route, one.name) for one in fields(route) if one.name not in _OF_MACHINE}
        for route in settings.route
    ]
    signing = sorted(
        (one.domain, one.selector, one.private.public().hex(), one.ends_us or 0)
        for one in keys.keys
    )
    store = settings.mailboxes.store
    parts = {
        "rules": rules,
        "routes": _digest(routes),
        LOCAL_DOMAINS.format(store): " ".join(sorted(settings.account_domains)),
        f"accounts of the store {store}": accounts,
        "domains that are passed on": _digest(
            sorted(
                (one.name, one.recipients.partition(":")[0], one.alias_of)
                for one in settings.domain
                if not one.has_accounts
            )
        ),
        "DKIM keys": _digest(signing),
    }
    with suppress(SettingsError):  # a damaged one is no reason to end a service that runs
        if (srs := srs_in(settings)) is not None:
            parts["srs_key"] = srs.digest()
    return parts


def _digest(value: object) -> str:
    return sha256(msgspec.json.encode(value)).hexdigest()
