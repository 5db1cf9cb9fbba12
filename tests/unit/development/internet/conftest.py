"""Certificates for the simulated hosts."""

from tests.support.tls import authority

__all__ = ["authority"]
