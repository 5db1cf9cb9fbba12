"""Pauses of a node: their file, their end, and what is said of them."""

import asyncio

import pytest

from relay.base.clock import SystemClock
from relay.base.pauses import Paused, Pauses
from tests.support.events import until
from tests.support.manual_clock import ManualClock

DELIVERY, ACCEPT = Paused.DELIVERY, Paused.ACCEPT


async def test_a_pause_lasts_over_a_restart_until_it_is_taken_back(tmp_path) -> None:
    file, clock = tmp_path / "paused.json", ManualClock()
    pauses = Pauses(file, clock)
    assert (pauses.why(ACCEPT), dict(pauses.current())) == ("", {})
    await pauses.pause(ACCEPT, for_s=None, who="root")
    await pauses.pause(DELIVERY, for_s=60, who="ann")
    clock.advance(30)
    again = Pauses(file, clock)
    assert again.why(ACCEPT) == "accepting mail is paused by root since 2023-11-14T22:13:20Z"
    assert again.why(DELIVERY).endswith(
        "by ann since 2023-11-14T22:13:20Z until 2023-11-14T22:14:20Z"
    )
    clock.advance(30)
    assert (again.why(DELIVERY), *again.current()) == ("", ACCEPT)
    await again.resume([ACCEPT, DELIVERY])
    assert dict(Pauses(file, clock).current()) == {}
    assert file.stat().st_mode & 0o777 == 0o600


async def test_delivery_goes_on_when_its_pause_ends(tmp_path) -> None:
    told: list[bool] = []
    clock = ManualClock()
    pauses = Pauses(tmp_path / "paused.json", clock)
    pauses.on_change = lambda found: told.append(Paused.DELIVERY in found)
    await pauses.pause(DELIVERY, for_s=0.05, who="ann")
    assert told == [True]
    clock.advance(1)
    await until(lambda: told == [True, False])


async def test_changes_at_once_are_all_kept(tmp_path) -> None:
    file, clock = tmp_path / "paused.json", ManualClock()
    pauses = Pauses(file, clock)
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for what in Paused:
            group.create_task(pauses.pause(what, for_s=None, who="ann"))
    assert set(Pauses(file, clock).current()) == set(Paused)


async def test_a_change_that_cannot_be_written_changes_nothing(tmp_path) -> None:
    pauses = Pauses(tmp_path / "no-such-folder" / "paused.json", ManualClock())
    with pytest.raises(FileNotFoundError):
        await pauses.pause(ACCEPT, for_s=None, who="ann")
    assert pauses.why(ACCEPT) == ""


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"{",
        b'{"all": {"since": "", "until": null, "who": ""}}',
        b'{"accept": {"since": "", "until": "soon", "who": ""}}',
    ],
)
async def test_another_file_is_a_fault(tmp_path, octets) -> None:
    file = tmp_path / "paused.json"
    file.write_bytes(octets)
    with pytest.raises(ValueError, match=r"."):
        Pauses(file, ManualClock())


async def test_the_end_of_a_pause_is_told_once_or_twice_although_timers_are_early(tmp_path) -> None:
    """A child of the gate that was told 60 times and has not answered yet is ended."""
    told: list[list[bool]] = [[] for _ in range(20)]
    for number, of_one in enumerate(told):
        pauses = Pauses(tmp_path / str(number), SystemClock())
        pauses.on_change = lambda paused, of_one=of_one: of_one.append(bool(paused))
        await pauses.pause(DELIVERY, for_s=0.1 + number * 0.00011, who="ann")
    await until(lambda: not any(of_one[-1] for of_one in told))
    assert max(map(len, told)) <= 4  # the begin, and the end
