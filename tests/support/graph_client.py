"""A Graph client: messages as JSON, and responses.

Nothing but values. Raises KeyError for an answer that is no error envelope. See Graph v1.0.
"""

import http.client
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes = field(repr=False)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of Graph's error envelope."""
        return str(self.json()["error"]["code"])

    @property
    def message(self) -> str:
        """The message of Graph's error envelope."""
        error = self.json()["error"]
        return f"{error['message']} {error['innerError'].get('detail', '')}".rstrip()


def people(*addresses: str) -> list[dict[str, Any]]:
    """Return recipients as Graph's JSON."""
    return [{"emailAddress": {"address": address}} for address in addresses]


def message(
    *,
    to: Sequence[str] = (),
    cc: Sequence[str] = (),
    bcc: Sequence[str] = (),
    subject: str = "hello",
    text: str = "Hello.",
    **more: Any,
) -> dict[str, Any]:
    """Return a message as JSON; `more` are further properties."""
    lists = {"toRecipients": to, "ccRecipients": cc, "bccRecipients": bcc}
    named = {name: people(*addresses) for name, addresses in lists.items() if addresses}
    return {"subject": subject, "body": {"contentType": "text", "content": text}, **named, **more}
