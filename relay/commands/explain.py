"""Ask where mail for an address goes: the running relay, or a configuration that none uses."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relay.client import (
    ControlClient,
    ControlError,
    ControlForbiddenError,
    ControlUnavailableError,
)
from relay.clock import Clock
from relay.settings.tree import Settings

_TIMEOUT_S = 120.0  # the rules may take 10 s, the name servers longer


def ask_relay(
    settings: Settings, query: Mapping[str, str], message: bytes | None
) -> dict[str, Any]:
    """Return what the running relay answers. Raises ControlUnavailableError, ControlError."""
    client = ControlClient(settings.control_socket, timeout_s=_TIMEOUT_S)
    if message is None and "probe" not in query:
        return client.get("/explain", query)
    return client.post_message("/explain", query, message or b"")


def explain(
    settings: Settings,
    file: Path,
    query: Mapping[str, str],
    *,
    message: bytes | None,
    environ: Mapping[str, str],
    clock: Clock,
) -> tuple[dict[str, Any], str]:
    """Return the document, and why it is from the configuration `file`, "" if a relay runs.

    Raises ControlError for a question that cannot be answered; SettingsError for files.
    """
    try:
        return ask_relay(settings, query, message), ""
    except ControlForbiddenError:
        raise
    except ControlUnavailableError as silent:
        if "probe" in query:
            raise
        reason = str(silent)
    from relay.api.explain import read_question  # noqa: PLC0415 - slow, as the following
    from relay.app.explain import explainer_of_files  # noqa: PLC0415
    from relay.http.errors import ApiError  # noqa: PLC0415

    try:
        question = read_question(query, message)
    except ApiError as error:
        raise ControlError(error.status, error.code, error.message) from None

    async def answer() -> dict[str, Any]:
        files = explainer_of_files(settings, file=file, environ=environ, clock=clock)
        with files as (explainer, close):
            try:
                return await explainer.explain(question)
            finally:
                await close()

    return asyncio.run(answer()), reason
