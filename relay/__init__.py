"""Relay: a self-hosted mail relay with the shape of Microsoft Graph's send-mail process.

The rooms and the way of a message through them: docs/flow.md.
"""

__version__ = "0.1.0"
