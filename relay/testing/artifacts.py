"""What is kept of a failed test: the journeys and sources of its messages, and the relay's log."""

import re
import shutil
from pathlib import Path

import msgspec

from relay.testing.relay import Relay
from relay.testing.relay_thread import LOG_NAME
from relay.testing.waiting import journey_lines

_SHOWN_MAX = 20
_NAME_CHARACTERS_MAX = 40


def write_artifacts(relay: Relay, folder: Path) -> str:
    """Write them into a new folder, and return what the report shows. Does not raise."""
    try:
        return _write(relay, folder)
    except Exception as error:  # noqa: BLE001 - the test has failed already, for its own reason
        return f"the messages of this test were not kept: {error!r}"


def _write(relay: Relay, folder: Path) -> str:
    running = relay.running
    folder.mkdir(parents=True)
    journeys = running.run(running.observer.journeys())
    arrivals = running.run(running.observer.arrivals())
    for number, journey in enumerate(journeys, start=1):
        name = f"{number:02}-{_file_name(journey.subject)}"
        document = msgspec.json.format(msgspec.json.encode(journey), indent=1)
        (folder / f"{name}.json").write_bytes(document)
    for number, arrival in enumerate(arrivals, start=1):
        name = f"{number:02}-{_file_name(arrival.copy.recipient)}-{_file_name(arrival.subject)}"
        (folder / f"{name}.eml").write_bytes(arrival.copy.content)
    shutil.copyfile(running.thread.folder.path / LOG_NAME, folder / LOG_NAME)
    lines = [line for one in journeys[-_SHOWN_MAX:] for line in journey_lines(one)]
    return "\n".join([*lines, f"journeys and messages: {folder}"])


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9@._-]+", "-", text).strip("-")[:_NAME_CHARACTERS_MAX] or "message"
