"""To whom a release may send captured mail of a development relay.

Its own recipients get it if `--release-allow` matches them. A copy goes to any addresses that a
person names. A copy has the same content and header; only the envelope has other recipients.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from relay.base import phrases
from relay.base.message.address import AddressError, own_mailbox, parse_mailbox
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import Destination, NextHop
from relay.front_door.api.dependencies import DevelopmentControls
from relay.front_door.api.request_parameters import read_body
from relay.front_door.http.errors import ApiError, bad_request, quoted
from relay.store.spool.queue_commands import COPIES_MAX, RouteLookup

_NOTHING_LEAVES = (
    "No mail leaves this machine. To let captured mail leave by a release, start the relay with: "
    "relay dev --release-to smtp://HOST:PORT"
)


class _AddressesBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    to: list[str] | None = None


def addresses_of_body(octets: bytes) -> tuple[str, ...]:
    """Return the addresses to which a copy is released, () for the recipients of the message.

    Raises ApiError 400.
    """
    addresses = read_body(octets, _AddressesBody).to
    return () if addresses is None else parse_addresses(addresses)


def parse_addresses(texts: Sequence[str]) -> tuple[str, ...]:
    """Return addresses that a person has named, without duplicates. Raises ApiError 400."""
    if not 1 <= len(texts) <= COPIES_MAX:
        raise bad_request(f"to: found {len(texts):,} addresses, expected 1 to {COPIES_MAX}.")
    addresses = []
    for text in texts:
        try:
            addresses.append(parse_mailbox(text))
        except AddressError as error:
            message = f"to: found {quoted(text)}: {error}."
            raise ApiError(400, "ErrorInvalidRecipients", message) from None
    return tuple(dict.fromkeys(addresses))


def release_host(development: DevelopmentControls | None) -> NextHop:
    """Return where released mail goes. Raises ApiError 403 if nothing leaves this machine."""
    if development is None or development.release_to is None:
        raise ApiError(403, "ErrorAccessDenied", _NOTHING_LEAVES)
    return development.release_to


def release_route(development: DevelopmentControls | None) -> RouteLookup | None:
    """Return where a release sends captured mail for one of its own recipients; None if nothing
    leaves this machine.
    """
    if development is None or development.release_to is None:
        return None
    to = Destination(development.release_to, chosen=True)
    return lambda address, _sender: to if development.may_release(address) else None


def without_release_host(route: RouteLookup, development: DevelopmentControls) -> RouteLookup:
    """Return a route that leads to the host of a release only for recipients of `release_route`."""

    def destination_of(address: str, reverse_path: str) -> Destination | None:
        resolved = route(address, reverse_path)
        is_release = (
            resolved is not None and resolved.next_hop.without_route == development.release_to
        )
        return None if is_release and not development.may_release(address) else resolved

    return destination_of


def captured_recipients(entry: Mapping[str, Any]) -> list[str]:
    """Return the recipients of an entry of the queue that are captured."""
    everyone = entry["recipients"]
    return [
        recipient["address"]
        for recipient in everyone
        if recipient["state"] == RecipientState.CAPTURED
    ]


def check_own_recipients(
    entries: Sequence[Mapping[str, Any]],
    development: DevelopmentControls | None,
    *,
    named: Sequence[str] | None = None,
) -> None:
    """Raise ApiError 403 unless mail may leave for all captured recipients of these entries. For a
    copy, only the recipients among its `named` addresses count.
    """
    if development is None:
        return
    everyone = [address for entry in entries for address in captured_recipients(entry)]
    if named is not None:
        chosen = set(map(own_mailbox, named))
        everyone = [address for address in everyone if own_mailbox(address) in chosen]
    refused = [address for address in everyone if not development.may_release(address)]
    if not refused:
        return
    message = (
        f"No --release-allow matches {phrases.named(refused)}, and nothing was "
        'released. Name other addresses for a copy, {"to": ["ADDRESS"]}, or start the relay with: '
        f"relay dev --release-to {development.release_to} --release-allow GLOB"
    )
    raise ApiError(403, "ErrorAccessDenied", message)
