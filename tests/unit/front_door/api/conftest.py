"""The API in one process."""

from tests.support.api_clients import api

__all__ = ["api"]
