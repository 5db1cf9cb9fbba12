"""When the MTA-STS policy of a domain is fetched, and how long it holds."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.base.message.mta_sts import StsFinding
from relay.transport.routing import sts_policies
from relay.transport.routing.mx_hosts import NoAnswer, NoName, NoRecords, Records
from relay.transport.routing.sts_policies import CHECK_S, FAILED_S, StsFetchError, StsPolicies
from tests.support.manual_clock import ManualClock

POLICY = b"version: STSv1\nmode: enforce\nmx: mx.a.test\nmax_age: 604800\n"
WEEK_S = 604800
NO_ANSWER = NoAnswer("name server 192.0.2.1 port 53 answered SERVFAIL")


def record(id_: str) -> Records:
    return Records((f"v=STSv1; id={id_};",))


class Domains:
    """The DNS and the web servers of domains, and the policies that are known of them."""

    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock()
        self.directory = directory
        self.records = {"_mta-sts.a.test": record("1")}
        self.files: dict[str, bytes | Exception] = {"a.test": POLICY}
        self.asked: Counter[str] = Counter()
        self.fetched: Counter[str] = Counter()
        self.results: list[str] = []
        self.gate: asyncio.Event | None = None
        self.policies = self.new()

    def new(self) -> StsPolicies:
        """What a start of the relay makes."""
        made = StsPolicies(
            self.directory,
            self.clock,
            resolver=self,
            texts=self.texts,
            fetch=self._fetch,
            count=self.results.append,
        )
        made.open()
        return made

    async def restart(self) -> None:
        await self.policies.close()
        self.policies = self.new()

    async def find(self, domain: str = "a.test") -> StsFinding:
        """What mail gets: it waits for a fetch that it needs."""
        found = await self.policies.find(domain)
        return await found.fetch() if found.fetch is not None else found

    async def mode(self, domain: str = "a.test") -> str:
        found = await self.find(domain)
        return found.policy.mode if found.policy is not None else found.trouble or "nothing"

    async def fetch_ended(self) -> None:
        await asyncio.gather(*self.policies._fetches.values())

    def pass_s(self, seconds: float) -> None:
        self.clock.now_us += int(seconds * 1_000_000)
        self.clock.now_s += seconds

    async def texts(self, name: str):
        self.asked[name] += 1
        return self.records.get(name, NoName())

    async def _fetch(self, domain: str) -> bytes:
        self.fetched[domain] += 1
        if self.gate is not None:
            await self.gate.wait()
        found = self.files[domain]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
async def domains(tmp_path: Path) -> AsyncIterator[Domains]:
    made = Domains(tmp_path / "mta-sts")
    yield made
    await made.policies.close()


async def test_a_policy_is_fetched_once_and_used_until_its_age(domains: Domains) -> None:
    assert [await domains.mode() for _ in range(3)] == ["enforce"] * 3
    assert domains.fetched["a.test"] == 1
    domains.files["a.test"] = StsFetchError("the server is down")
    domains.pass_s(WEEK_S - 1)
    assert await domains.mode() == "enforce"
    domains.pass_s(1)
    assert await domains.mode() == "the server is down"


@pytest.mark.parametrize(
    "answer", [NO_ANSWER, NoRecords(), NoName(), Records(("v=STSv1; id=1", "v=STSv1; id=2"))]
)
async def test_a_policy_holds_over_restarts_and_without_record_and_server(domains: Domains, answer):
    await domains.find()
    domains.records["_mta-sts.a.test"] = answer
    domains.files["a.test"] = StsFetchError("the server is down")
    await domains.restart()
    assert await domains.mode() == "enforce"
    domains.pass_s(WEEK_S)
    await domains.restart()
    assert await domains.mode() == "nothing"
    assert domains.fetched["a.test"] == 1


async def test_another_id_without_a_policy_leaves_the_one_that_is_there(domains: Domains) -> None:
    await domains.find()
    domains.records["_mta-sts.a.test"] = record("2")
    domains.files["a.test"] = b"<html>"
    for _ in range(3):
        assert await domains.mode() == "enforce"
        await domains.fetch_ended()
    assert domains.fetched["a.test"] == 2
    assert domains.results == ["sts-policy-invalid"]


@pytest.mark.parametrize(
    ("failure", "result"),
    [
        (StsFetchError("HTTP status 500"), "sts-policy-fetch-error"),
        (StsFetchError("TLS: expired", "sts-webpki-invalid"), "sts-webpki-invalid"),
        (b"<!DOCTYPE html>", "sts-policy-invalid"),
        (b"version: STSv1\nmode: enforce\nmax_age: 1\n", "sts-policy-invalid"),
        (KeyError("ours"), ""),
    ],
)
async def test_a_failed_fetch_is_kept_for_five_minutes(domains: Domains, failure, result) -> None:
    domains.files["a.test"] = failure
    first = await domains.mode()
    assert first not in ("enforce", "nothing")
    domains.pass_s(FAILED_S - 1)
    assert await domains.mode() == first
    assert domains.fetched["a.test"] == 1
    domains.files["a.test"] = POLICY
    domains.pass_s(1)
    assert await domains.mode() == "enforce"
    assert domains.results == [result][: bool(result)]


async def test_what_a_server_says_is_cut(domains: Domains) -> None:
    domains.files["a.test"] = StsFetchError("no HTTP answer: " + "x" * 20_000)
    assert len(await domains.mode()) <= 200


async def test_a_domain_without_a_record_costs_its_question_only(domains: Domains) -> None:
    assert await domains.mode("b.test") == "nothing"
    assert domains.asked == {"_mta-sts.b.test": 1}
    assert not domains.fetched


async def test_who_waits_waits_a_limited_time(domains: Domains, monkeypatch) -> None:
    monkeypatch.setattr(sts_policies, "FETCH_S", 0.01)
    domains.gate = asyncio.Event()
    assert (await domains.mode()).startswith("not fetched within")
    domains.gate.set()
    domains.pass_s(FAILED_S)
    assert await domains.mode() == "enforce"
    assert domains.results == ["sts-policy-fetch-error"]


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", b'{"domain": 1}', b"\xff", None])
async def test_a_damaged_file_is_fetched_anew(domains: Domains, kept: bytes | None) -> None:
    await domains.find()
    file = domains.directory / "a.test"
    file.write_bytes(file.read_bytes()[:-20] if kept is None else kept)
    await domains.restart()
    assert await domains.mode() == "enforce"
    await domains.restart()
    assert await domains.mode() == "enforce"
    assert domains.fetched["a.test"] == 2


async def test_a_policy_of_a_clock_that_was_ahead_lasts_no_longer(domains: Domains) -> None:
    domains.pass_s(10 * WEEK_S)
    await domains.find()
    domains.pass_s(-10 * WEEK_S)
    await domains.restart()
    assert await domains.mode() == "enforce"
    domains.records.clear()
    domains.pass_s(WEEK_S)
    assert await domains.mode() == "nothing"


async def test_a_disk_that_keeps_nothing_leaves_the_policy_in_force(domains: Domains) -> None:
    domains.directory.write_text("a file")
    await domains.restart()
    assert await domains.mode() == "enforce"
    assert await domains.mode() == "enforce"
    assert domains.fetched["a.test"] == 1


async def test_policies_are_fetched_again_once_a_day(domains: Domains) -> None:
    domains.records["_mta-sts.b.test"] = record("b")
    domains.files["b.test"] = POLICY
    await domains.find("a.test")
    domains.pass_s(CHECK_S / 2)
    await domains.find("b.test")
    domains.pass_s(CHECK_S / 2)
    await domains.policies.check()
    await domains.policies.check()
    assert domains.fetched == {"a.test": 2, "b.test": 1}
    await domains.restart()
    domains.pass_s(CHECK_S)
    await domains.policies.check()
    assert domains.fetched == {"a.test": 3, "b.test": 2}
    domains.pass_s(WEEK_S - 1)  # without mail, the policies have not ended
    assert await domains.mode() == "enforce"


async def test_a_policy_that_is_no_more_in_memory_holds_by_its_file(domains, monkeypatch) -> None:
    monkeypatch.setattr(sts_policies, "IN_MEMORY_MAX", 1)
    await domains.restart()
    domains.records["_mta-sts.b.test"], domains.files["b.test"] = record("1"), POLICY
    assert [await domains.mode(f"{name}.test") for name in "abab"] == ["enforce"] * 4
    assert domains.fetched == {"a.test": 1, "b.test": 1}
    assert len(domains.policies._in_memory) == 1


async def test_the_policies_that_are_kept_have_a_limit(domains: Domains, monkeypatch) -> None:
    monkeypatch.setattr(sts_policies, "POLICIES_MAX", 2)
    for name in ("b.test", "c.test"):
        domains.records[f"_mta-sts.{name}"], domains.files[name] = record("x"), POLICY
    for name in ("a.test", "b.test", "a.test", "c.test"):
        await domains.find(name)
    assert sorted(one.name for one in domains.directory.iterdir()) == ["a.test", "c.test"]
    assert domains.fetched == {"a.test": 1, "b.test": 1, "c.test": 1}
