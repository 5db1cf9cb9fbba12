from tests.support.tls import authority

__all__ = ["authority"]
