"""Write the Authentication-Results field (RFC 8601 2.2)."""

from collections.abc import Sequence

from relay.base.message.authentication_results import AuthResult


def results_field(hostname: str, results: Sequence[AuthResult]) -> bytes:
    """Return the field with its line ends."""
    raise NotImplementedError
