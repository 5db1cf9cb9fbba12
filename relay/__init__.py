"""Relay: a self-hosted mail relay with the shape of Microsoft Graph's send-mail process.

docs/flow.md follows one message through the rooms, docs/design.md gives the reasons.
"""

__version__ = "0.3.0.dev0"
