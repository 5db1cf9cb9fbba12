"""GET and POST /relay/v1/explain: where mail for an address would go, and why.

POST has the message, for conditions of rules that need one. It tells which addresses exist, so it
needs the role read or operate.
"""

import asyncio
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from msgspec.structs import replace

from relay.base.message.address import AddressError, parse_mailbox
from relay.base.message.header import Header
from relay.base.turns import Turns
from relay.front_door.api.dependencies import Explain, Principal, Question
from relay.front_door.api.request_parameters import require_method, single_values
from relay.front_door.http import errors
from relay.front_door.http.http_request import HttpRequest
from relay.transport.policy.rule_test_reader import crlf

PARAMETERS = ("address", "from", "ip", "probe")
MESSAGE_BYTES_MAX = 36 * 1024 * 1024
TURN_S = 30.0  # a question waits for a place
_TOGETHER_MAX = 8  # questions without a message at once
_MESSAGES_MAX = 1  # with a message, of which parsing makes copies
_RETRY_S = 2
_MESSAGE_TYPE = "message/rfc822"


class ExplainHandler:
    """Answers questions, a few at once, of each principal in turn. `explain` raises TimeoutError if
    rules take too long.
    """

    def __init__(self, explain: Explain) -> None:
        self._explain = explain
        self._questions = Turns("explanations", _TOGETHER_MAX)
        self._with_message = Turns("explanations of messages", _MESSAGES_MAX)
        self._arriving = Turns("messages to explain", 2 * MESSAGE_BYTES_MAX)

    # `GET`, `POST explain?address=&from=&ip=&probe=`: as `relay explain`; `POST` has a message of
    # at most 36 MiB
    async def answer(self, request: HttpRequest, principal: Principal) -> Mapping[str, Any]:
        """Return the document. Raises ApiError, NoPlaceError."""
        require_method(request, "GET", "POST")
        principal.check_may_read()
        query = single_values(request.query, PARAMETERS)
        if query.get("probe") == "true":  # it connects, which no GET does
            require_method(request, "POST")
            principal.check_may_operate()
        # before its turn: a slow client would keep its place
        message = await self._message_of(request) if request.method == "POST" else b""
        if message:
            async with self._with_message.turn(principal.name, wait_s=TURN_S):
                return await self._answer(await asyncio.to_thread(read_question, query, message))
        async with self._questions.turn(principal.name, wait_s=TURN_S):
            question = read_question(query, None)
            return await request.cancel_on_disconnect(self._answer(question))

    async def _message_of(self, request: HttpRequest) -> bytes:
        """Read the body. Raises ApiError 415, and what body() raises."""
        message = await request.body(self._arriving, MESSAGE_BYTES_MAX)
        if message and request.media_type != _MESSAGE_TYPE:
            raise errors.unsupported_media_type(request.media_type, _MESSAGE_TYPE)
        return message

    async def _answer(self, question: Question) -> Mapping[str, Any]:
        try:
            return await self._explain(question)
        except TimeoutError:
            message = "The rules took too long; the message would get 451 4.7.1."
            raise _unavailable(message) from None


def read_question(query: Mapping[str, str], message: bytes | None) -> Question:
    """Return the question of parameters and a message. Raises ApiError 400."""
    text = query.get("address", "")
    if not text:
        raise _bad("address", "nothing", "the address of a recipient")
    address = text if text.lower() == "postmaster" else _mailbox("address", text)
    sender, ip = query.get("from", ""), query.get("ip", "")
    sender = "" if sender in ("", "<>") else _mailbox("from", sender)
    if ip:
        try:
            ip = str(ip_address(ip))
        except ValueError:
            raise _bad("ip", errors.quoted(ip), "an IP address") from None
    probe = query.get("probe", "false")
    if probe not in ("true", "false"):
        raise _bad("probe", errors.quoted(probe), "true or false")
    question = Question(address, sender, ip, probe=probe == "true")
    if not message:
        return question
    content = crlf(message)
    if not Header.of(content).fields:
        raise _bad("message", "text without a header", "a message (RFC 5322)")
    return replace(question, content=content)


def _mailbox(name: str, text: str) -> str:
    try:
        return parse_mailbox(text, smtputf8=True)
    except AddressError as error:
        raise errors.bad_request(f"{name}: {error}.") from None


def _bad(name: str, actual: str, expected: str) -> errors.ApiError:
    return errors.bad_request(f"{name}: found {actual}, expected {expected}.")


def _unavailable(message: str) -> errors.ApiError:
    return errors.service_unavailable(message, retry_after_s=_RETRY_S)
