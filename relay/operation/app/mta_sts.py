"""Fetch MTA-STS policies of domains; count sessions under MTA-STS and DANE; renew TLSA records."""

import dataclasses
from functools import partial

from msgspec import structs

from relay.base.message.tls_policy import MTA_STS, REQUIRETLS
from relay.base.message.web_url import UrlError, read_url
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import DeliverySettings
from relay.delivery.host_selection import Connect, HostSession
from relay.delivery.http_connection import HttpError
from relay.delivery.smtp.connect import ConnectError, Target
from relay.front_door.notifications.https_client import Destinations, HttpsClient, Lookup
from relay.operation.app.foundation import Foundation
from relay.operation.app.notifications import lookup_of
from relay.transport.routing.resolver import LoopbackResolver, Resolver
from relay.transport.routing.sts_policies import FETCH_S, StsFetchError, StsPolicies

_DIRECTORY = "mta-sts"
_POLICIES = {MTA_STS: "sts", REQUIRETLS: "requiretls"}  # label, by what demands the TLS level
_FILE_BYTES_MAX = 64 * 1024  # RFC 8461 3.3
_OK = 200
_NO_STARTTLS = "starttls-not-supported"


def build_policies(base: Foundation, resolver: Resolver | LoopbackResolver) -> StsPolicies:
    """Return the policies, not open. A development relay fetches from the simulated internet."""
    dns = dns_of(resolver)
    lookup = lookup_of(dns)
    return StsPolicies(
        base.settings.state_dir / _DIRECTORY,
        base.clock,
        resolver=resolver,
        texts=dns.texts,
        fetch=lambda domain: fetch_policy(base.settings.delivery, lookup, domain),
        count=partial(count, base.metrics),
    )


async def fetch_policy(delivery: DeliverySettings, lookup: Lookup, domain: str) -> bytes:
    """Return the policy file of a domain. Raises StsFetchError."""
    client = HttpsClient(lookup, Destinations(delivery.mta_sts_allow), ca=delivery.mta_sts_ca)
    text = f"https://mta-sts.{domain}:{delivery.mta_sts_port}/.well-known/mta-sts.txt"
    try:
        answer = await client.request(
            "GET", read_url(text), timeout_s=FETCH_S, answer_bytes_max=_FILE_BYTES_MAX
        )
    except UrlError as error:
        raise StsFetchError(str(error)) from None
    except HttpError as error:
        result = "sts-webpki-invalid" if error.untrusted else "sts-policy-fetch-error"
        raise StsFetchError(str(error), result) from None
    if answer.status != _OK:  # RFC 8461 3.3
        raise StsFetchError(f"HTTP status {answer.status}")
    return answer.body


def count(metrics: Metrics, result: str, policy: str = "sts") -> None:
    """Count a result type of RFC 8460."""
    metrics.tls_policy.labels(policy=policy, result=result).inc()


def counted(connect: Connect, metrics: Metrics) -> Connect:
    """Return `connect`, wrapped: sessions under MTA-STS, DANE or REQUIRETLS are counted."""

    async def connect_and_count(target: Target) -> HostSession:
        is_dane = target.tls.level == "dane"
        policy = _POLICIES.get(target.tls_by, "tlsa" if is_dane else "")
        if not policy and not target.tls.testing:  # nearly always
            return await connect(target)
        policy = policy or "sts"
        try:
            connection = await connect(target)
        except ConnectError as error:
            if error.tls_result:  # else there was no session
                count(metrics, error.tls_result, policy)
            raise
        session = connection.peer.session
        good = "tlsa-invalid" if is_dane and not target.tls.tlsa else "success"
        count(metrics, (session and session.mismatch) or good, policy)
        return connection

    return connect_and_count


def dns_of(resolver: Resolver | LoopbackResolver) -> Resolver:
    """Return the resolver that asks the DNS for the domains of mail."""
    return resolver.simulated if isinstance(resolver, LoopbackResolver) else resolver


def renewed(connect: Connect, resolver: Resolver | LoopbackResolver) -> Connect:
    """Return a function that calls `connect`. If the certificate of a host matches none of its TLSA
    records, it asks for the records again without the cache, and retries if they have changed.
    """

    async def connect_again(target: Target) -> HostSession:
        try:
            return await connect(target)
        except ConnectError as error:
            if not target.tls.tlsa or error.tls_result in ("", _NO_STARTTLS):
                raise
            records = await dns_of(resolver).tlsa(target.host, target.port, fresh=True)
            if records.usable in ((), target.tls.tlsa):
                raise
        policy = structs.replace(target.tls, tlsa=records.usable)
        return await connect(dataclasses.replace(target, tls=policy))

    return connect_again
