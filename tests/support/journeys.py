"""Short looks at a journey (`GET /relay/v1/messages/{id}`)."""

from typing import Any


def states(journey: dict[str, Any]) -> dict[str, str]:
    """Each recipient's state by its address."""
    return {one["address"]: one["state"] for one in journey["recipients"]}


def outcomes(journey: dict[str, Any], address: str) -> list[str]:
    """What each attempt at one recipient came to."""
    (one,) = (each for each in journey["recipients"] if each["address"] == address)
    return [attempt["outcome"] for attempt in one["attempts"]]
