"""The cloud of `relay dev --cloud`: a second development relay that plays Microsoft 365.

Its front door, in the profile strict, is Graph, and its token endpoint the sign-in. It listens on
loopback, at the port after that of the first relay's pages. Mail from the local domains and from
that of docs/cloud.md, whose mailboxes are in the cloud alone, goes there by routes of the first
relay, which captures mail from other domains as before. The senders' mailboxes, the faults of the
scenario and what arrived are in the cloud's own pages. Its clock is its own.
"""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from relay.base.message.nexthop import HopKind, NextHop
from relay.base.settings.tree import SENDER
from relay.base.socket_address import Address
from relay.development.options import DevelopmentOptions
from relay.development.relay import DevelopmentRelay
from relay.operation.app.development_folder import DevelopmentFolder, OwnEntry, open_inner_folder

_NAME = "cloud"  # of the [[oauth]]
_CLIENT_ID = "relay-dev"
_DOMAIN = "contoso.example"  # of docs/cloud.md
_LOOPBACK = "127.0.0.1"
_PORT_MAX = 65_535


@asynccontextmanager
async def cloud_for(
    folder: DevelopmentFolder, options: DevelopmentOptions
) -> AsyncIterator[DevelopmentRelay]:
    """Run the cloud of a relay with these options, in a directory below `folder`.

    Raises OSError for a port in use.
    """
    port = options.http.port
    inner = open_inner_folder(folder, OwnEntry.CLOUD)
    try:
        cloud = DevelopmentRelay(
            inner,
            DevelopmentOptions(
                http=Address(_LOOPBACK, port + 1 if 0 < port < _PORT_MAX else 0),
                https=None,
                smtp=Address(_LOOPBACK, 0),
                ca_dir=options.ca_dir,
                domains=senders_domains(options),
                like_graph=True,
                keep=options.keep,
            ),
        )
        try:
            await cloud.start()
            yield cloud
        finally:
            await cloud.stop()
    finally:
        inner.remove()


def sent_through(cloud: Address, options: DevelopmentOptions) -> DevelopmentOptions:
    """Return the options of a relay whose mail leaves through the cloud that listens there."""
    return replace(options, overrides=cloud_config(cloud, senders_domains(options)))


def senders_domains(options: DevelopmentOptions) -> tuple[str, ...]:
    """Return the domains whose mail leaves through the cloud of a relay with these options."""
    return tuple(dict.fromkeys((*options.domains, _DOMAIN)))


def cloud_config(cloud: Address, domains: Sequence[str]) -> dict[str, Any]:
    """Return the keys of relay.toml by which mail from these domains leaves through a development
    relay that plays Microsoft 365: at this address it has Graph and the token endpoint.
    """
    hop = NextHop(HopKind.GRAPH, cloud.host, cloud.port)
    client = {
        "name": _NAME,
        "token_url": f"http://{cloud}/common/oauth2/v2.0/token",
        "scope": "https://graph.microsoft.com/.default",
        "client_id": _CLIENT_ID,
        "client_secret": secrets.token_urlsafe(32),
    }
    auth = {"user": SENDER, "oauth": _NAME}
    route = {"domain": "*", "next_hop": str(hop), "auth": auth, "reports": True}
    routes = [{**route, "sender": f"*@{domain}"} for domain in domains]
    return {"oauth": [client], "route": routes}
