"""Build what fetches the MTA-STS policies of domains, and count sessions under them."""

from functools import partial

from relay.app.foundation import Foundation
from relay.app.notifications import lookup_of
from relay.delivery.dependencies import Connect
from relay.message.tls_policy import MTA_STS, REQUIRETLS
from relay.message.web_url import UrlError, read_url
from relay.notifications.https_client import (
    Destinations,
    HttpsClient,
    Lookup,
    RequestFailedError,
)
from relay.observe.metrics import Metrics
from relay.routing.resolver import LoopbackResolver, Resolver
from relay.routing.sts_policies import FETCH_S, StsFetchError, StsPolicies
from relay.settings.tree import DeliverySettings
from relay.smtp.connect import ConnectError, Target
from relay.smtp.connection import Connection

_DIRECTORY = "mta-sts"
_POLICIES = {MTA_STS: "sts", REQUIRETLS: "requiretls"}  # by who demands the level
_FILE_BYTES_MAX = 64 * 1024  # RFC 8461 3.3
_OK = 200


def build_policies(base: Foundation, resolver: Resolver | LoopbackResolver) -> StsPolicies:
    """Return the policies, not open; those of a development relay are on the simulated internet."""
    dns = resolver.simulated if isinstance(resolver, LoopbackResolver) else resolver
    lookup = lookup_of(dns)
    return StsPolicies(
        base.settings.state_dir / _DIRECTORY, base.clock, resolver=resolver, texts=dns.texts,
        fetch=lambda domain: fetch_policy(base.settings.delivery, lookup, domain),
        count=partial(_count, base.metrics),
    )  # fmt: skip


async def fetch_policy(delivery: DeliverySettings, lookup: Lookup, domain: str) -> bytes:
    """Return the policy file of a domain. Raises StsFetchError."""
    client = HttpsClient(lookup, Destinations(delivery.mta_sts_allow), ca=delivery.mta_sts_ca)
    text = f"https://mta-sts.{domain}:{delivery.mta_sts_port}/.well-known/mta-sts.txt"
    try:
        answer = await client.get(
            read_url(text), timeout_s=FETCH_S, answer_bytes_max=_FILE_BYTES_MAX
        )
    except UrlError as error:
        raise StsFetchError(str(error)) from None
    except RequestFailedError as error:
        result = "sts-webpki-invalid" if error.untrusted else "sts-policy-fetch-error"
        raise StsFetchError(str(error), result) from None
    if answer.status != _OK:  # RFC 8461 3.3
        raise StsFetchError(f"HTTP status {answer.status}")
    return answer.body


def _count(metrics: Metrics, result: str, policy: str = "sts") -> None:
    metrics.tls_policy.labels(policy=policy, result=result).inc()


def counted(connect: Connect, metrics: Metrics) -> Connect:
    """Return `connect`, which counts the sessions under an MTA-STS policy, or with REQUIRETLS."""

    async def connect_and_count(target: Target) -> Connection:
        if not (policy := _POLICIES.get(target.tls_by)) and not target.tls.testing:
            return await connect(target)  # nearly always
        policy = policy or "sts"
        try:
            connection = await connect(target)
        except ConnectError as error:
            if error.tls_result:  # else there was no session
                _count(metrics, error.tls_result, policy)
            raise
        session = connection.peer.session
        _count(metrics, (session and session.mismatch) or "success", policy)
        return connection

    return connect_and_count
