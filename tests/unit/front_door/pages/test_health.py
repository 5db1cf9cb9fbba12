"""The page of health: its figures are those of the relay, and who may read it."""

import re
from unittest.mock import sentinel

import httpx
import pytest

from relay import __version__
from relay.base.accounts.account import Role
from relay.base.clock import SystemClock
from relay.base.observe.metric_samples import MetricSamples
from relay.base.observe.metrics import Metrics
from relay.base.pressure import Pressure
from relay.front_door.api.dependencies import ApiDependencies, Principal
from relay.front_door.pages.app import create_app
from relay.front_door.pages.health import last_hour
from relay.front_door.pages.logins import Access
from relay.store.journeys.event_feed import ChangeNotifier
from tests.support.events import until
from tests.support.manual_clock import ManualClock
from tests.unit.front_door.pages.conftest import plain, send


async def test_the_page_shows_what_the_relay_has_done(pages):
    await send(pages, "bob@example.test")
    await send(pages, "a+550@b.test", "c+451@d.test", "e@elsewhere.test")
    text = plain(await pages.text("/health"))
    assert "Readiness ready Pressure normal: all mail is accepted" in text
    for expected in (
        "Messages accepted: 3", "recipients delivered: 3", "captured of these: 1",
        "attempts deferred: 1", "recipients failed or expired: 1", "reports: 1",
    ):  # fmt: skip
        assert expected in text
    assert f"Version {__version__}, running for" in text


async def test_each_chart_is_an_image_with_words_and_a_table(pages):
    samples = pages.relay.daemon.base.samples
    samples._samples.append(samples.sample())
    await send(pages, "bob@example.test")
    text = await pages.text("/health")
    for figure in re.findall(r"<figure.*?</figure>", text, re.DOTALL):
        [svg] = re.findall(r'<svg role="img".*?</svg>', figure, re.DOTALL)
        named = re.search(r'aria-labelledby="(\S+) (\S+)"', svg)
        assert f'<title id="{named[1]}">' in svg
        assert f'<desc id="{named[2]}">From ' in svg
        assert "<table" in figure
        assert " style=" not in figure
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "accepted: latest 1, highest 1." in text
    assert "UTC UTC" not in plain(text)
    assert len(re.findall(r"From \d\d:\d\d to \d\d:\d\d UTC\.", text)) >= 5


async def test_the_time_until_mail_is_captured_is_that_of_its_delivery(pages):
    samples = pages.relay.daemon.base.samples
    samples._samples.append(samples.sample())
    await send(pages, "e@elsewhere.test")
    text = plain(await pages.text("/health"))
    chart = text[text.index("Time from acceptance to delivery") :]
    assert re.search(r"half within: latest [0-9.]+ (ms|s)", chart[:300])


async def test_the_part_that_changes_is_had_alone(pages):
    part = await pages.get("/health?part=figures")
    assert part.text.lstrip().startswith("<dl")
    assert part.headers["content-security-policy"].startswith("default-src 'none'")
    assert (await pages.get("/health?part=figures&more=1")).status_code == 400


async def test_reasons_of_the_pressure_and_of_not_being_ready_are_shown(pages):
    daemon = pages.relay.daemon
    daemon.pressure.resident = lambda: 1 << 50
    await until(lambda: not daemon.pressure.is_calm)
    daemon.base.readiness.reason = "a room <has> ended"
    text = await pages.text("/health")
    assert "not ready" in text
    assert "a room &lt;has&gt; ended" in text
    assert "refuse: new mail is refused for now" in text
    assert "refuse: memory is short" in text


@pytest.mark.parametrize(
    ("role", "status", "expected"),
    [
        (Role.USER, 403, "this needs an account of the role read or operate."),
        (Role.READ, 200, "Readiness"),
        (Role.OPERATE, 200, "Readiness"),
    ],
)
@pytest.mark.parametrize("path", ["/health", "/health?part=figures"])
async def test_an_account_of_the_role_user_does_not_see_it(path, role, status, expected):
    answer = await get_from_service(path, role)
    assert answer.status_code == status
    assert expected in plain(answer.text)
    assert "Internet" not in answer.text


@pytest.mark.parametrize("path", ["/internet", "/internet?part=hosts", "/clock"])
async def test_a_service_has_neither_the_simulated_internet_nor_its_clock(path):
    answer = await get_from_service(path, Role.OPERATE)
    assert answer.status_code == 404
    assert "There is no page" in answer.text


async def get_from_service(path, role):
    metrics, clock = Metrics(), SystemClock()
    dependencies = ApiDependencies(
        journeys=sentinel.journeys, queue_admin=sentinel.queue_admin, stats=sentinel.stats,
        way_to=sentinel.way_to, target_of=sentinel.target_of, changes=ChangeNotifier(), metrics=metrics, clock=clock,
        samples=MetricSamples(metrics, clock), ready=lambda: "", prune=sentinel.prune,
        pressure=Pressure(), sources=sentinel.sources, unlock=sentinel.unlock,
        restored=sentinel.restored, submissions=sentinel.submissions, events=sentinel.events,
        refusals=sentinel.refusals, impaired=lambda: "", pauses=None, explain=sentinel.explain, webhooks=None,
    )  # fmt: skip
    app = create_app(dependencies, Access(everyone=Principal("ann@a.test", role)))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://relay.test") as http:
        return await http.get(path)


def test_rates_of_a_busy_relay_are_per_second_and_captured_mail_is_left_out_of_a_service():
    metrics, clock = Metrics(), ManualClock()
    samples = MetricSamples(metrics, clock)
    for _ in range(30):
        samples.keep()
        metrics.accepted.labels("smtp").inc(500)
        clock.advance(10)
    found = last_hour(samples.last_hour(), captures=False)
    chart = found.charts[0]
    assert chart.title == "Accepted and delivered, per second"
    assert chart.lines[0].highest == "50"
    assert [one.name for one in chart.lines] == ["accepted", "delivered", "relayed"]
    assert found.counted["Messages accepted"] == "15\u202f000"
    assert "recipients captured" not in found.counted
