"""The page of health: its figures are those of the relay, and who may read it."""

import re
from types import SimpleNamespace

from relay import __version__
from relay.base.observe.metric_samples import MetricSamples
from relay.base.observe.metrics import Metrics
from relay.base.pressure import PressureLevel
from relay.front_door.pages.health import last_hour
from tests.support.events import until
from tests.support.manual_clock import ManualClock
from tests.unit.front_door.pages.conftest import plain, send


async def test_the_page_shows_what_the_relay_has_done(pages):
    await send(pages, "bob@example.test")
    await send(pages, "a+550@b.test", "c+451@d.test", "e@elsewhere.test")
    text = plain(await pages.text("/health"))
    assert "Readiness ready Pressure normal: all mail is accepted" in text
    for expected in (
        "Messages accepted: 3",
        "recipients delivered: 3",
        "captured of these: 1",
        "attempts deferred: 1",
        "recipients failed or expired: 1",
        "reports: 1",
    ):
        assert expected in text
    assert f"Version {__version__}, running for" in text
    table = plain(await pages.text("/health?part=providers"))
    assert re.search(r"b\.test 1 0 0 1 - - 1. 550 5\.1\.1 ", table)
    assert re.search(r"capture 1 1 0 0 [\d.]+\W?m?s", table)


async def test_reasons_of_the_pressure_and_of_not_being_ready_are_shown(pages):
    daemon = pages.relay.daemon
    daemon.pressure.memory = SimpleNamespace(used_bytes=lambda: 1 << 50)
    await until(lambda: daemon.base.pressure.state.level is not PressureLevel.NORMAL)
    daemon.base.readiness.reason = "a room <has> ended"
    text = await pages.text("/health")
    assert "not ready" in text
    assert "a room &lt;has&gt; ended" in text
    assert "refuse: new mail is refused for now" in text
    assert "refuse: memory is short" in text


def test_rates_of_a_busy_relay_are_per_second_and_captured_mail_is_left_out_of_a_service():
    metrics, clock = Metrics(), ManualClock()
    samples = MetricSamples(metrics, clock)
    for _ in range(5):
        samples.keep()
        metrics.accepted.labels("smtp").inc(3000)
        clock.advance(60)
    found = last_hour(samples.last_hour(), captures=False)
    chart = found.charts[0]
    assert chart.title == "Accepted and delivered, per second"
    assert chart.lines[0].highest == "50"
    assert chart.lines[0].path.startswith("M560 ")  # four minutes of the hour
    assert [one.name for one in chart.lines] == ["accepted", "delivered", "relayed"]
    assert found.counted["Messages accepted"] == "15\u202f000"
    assert "recipients captured" not in found.counted
