"""The DNS cache: bounded in memory and queries, TTLs."""

import asyncio
import os
import resource
import socket
from pathlib import Path
from random import Random

import dns.rdata

from relay.base.settings.tree import DnsSettings
from relay.base.socket_address import Address
from relay.transport.routing import dns_cache
from relay.transport.routing.dns_cache import QUERIES_MAX, DnsCache
from relay.transport.routing.dns_client import StubResolver, look_up
from relay.transport.routing.mx_hosts import NoAnswer, NoName, NoRecords, Records
from relay.transport.routing.resolver import Resolver
from tests.support.dns_server import DnsThread
from tests.support.events import until
from tests.support.manual_clock import ManualClock
from tests.support.sender_checks import txt
from tests.support.tables import each_row


class Server:
    """Answers when the test says so, and counts queries."""

    def __init__(self):
        self.asked = []
        self.open = asyncio.Event()
        self.now = self.most = 0

    async def ask(self, question):
        self.asked.append(question[0])
        self.now += 1
        self.most = max(self.most, self.now)
        await self.open.wait()
        self.now -= 1
        return Records((question[0],)), 60.0


async def test_dns_queries_in_progress_are_bounded():
    server = Server()
    asking = DnsCache(server.ask, clock=ManualClock())
    wanted = [(f"{number}.test", "A") for number in range(2 * QUERIES_MAX)]
    waiting = asyncio.create_task(asking.answers(*wanted))
    await until(lambda: server.now >= QUERIES_MAX)
    server.open.set()
    assert await waiting == [Records((name,)) for name, _ in wanted]
    assert server.most == QUERIES_MAX


async def test_the_dns_cache_drops_the_least_recently_used_answer(monkeypatch):
    monkeypatch.setattr(dns_cache, "CACHE_MAX", 500)
    server = Server()
    server.open.set()
    asking = DnsCache(server.ask, clock=ManualClock())
    others = [f"{number}.test" for number in range(500 - 2)]
    for name in ("a", "b", *others, "a", "c", "a", "b"):
        await asking.answers((name, "A"))
    assert server.asked == ["a", "b", *others, "c", "b"]


async def test_the_dns_cache_is_bounded_in_octets_for_all_questions_together(monkeypatch):
    """A letter may take four octets; a long answer is used, and asked for again."""
    monkeypatch.setattr(dns_cache, "OCTETS_MAX", 4000)  # three answers
    zone = {name: txt(name * 900) for name in "abcd"} | {"wide": txt("\U0001f600" + "x" * 2000)}
    with DnsThread(zone) as server:
        settings, clock = DnsSettings((server.address,), timeout=60.0), ManualClock()
        resolver = Resolver(settings, clock=clock, rng=Random(1), hostname="relay.test")
        for name in ("a", "b", "a"):
            assert isinstance(await resolver.texts(name), Records)
        by_clients = [(name, "TXT") for name in ("c", "d", "wide", "a")]
        for question in by_clients * 2:
            await resolver.answers_for_clients([question], client="c", wait_s=60)
        await resolver.texts("b")
        asked = {name: server.asked(name, "TXT") for name in zone}
        assert asked == {"a": 1, "b": 2, "c": 1, "d": 1, "wide": 4}  # by UDP and TCP
        for seconds, are_all, times in ((0, False, 1), (0, True, 2), (301, False, 3)):
            clock.now_s += seconds
            resolver.forget_ended(are_all=are_all)
            assert bool(resolver._dns._cache.octets) is (times == 1)
            await resolver.texts("a")
            assert server.asked("a", "TXT") == times
        await resolver.close()


async def test_without_name_servers_the_answer_says_so(tmp_path):
    servers = StubResolver((), timeout_s=60, resolv_conf=str(tmp_path / "none"))
    assert await servers.ask(("x.test", "A")) == (NoAnswer("no name server is configured"), 0.0)


async def test_the_systems_name_servers_are_those_of_its_file_now(tmp_path):
    file = tmp_path / "resolv.conf"
    question = ("a.test", "A")
    with DnsThread({"a.test": {"A": ["192.0.2.1"]}}) as dns:
        servers = StubResolver((), timeout_s=2, resolv_conf=str(file))
        servers._resolver.port = dns.address.port
        assert (await servers.ask(question))[0] == NoAnswer("no name server is configured")
        file.write_text(f"nameserver {dns.address.host}\nsearch example.test\n")
        assert (await servers.ask(question))[0] == Records(("192.0.2.1",))
        file.write_text("nameserver 127.0.0.99\n")
        assert isinstance((await servers.ask(question))[0], NoAnswer)
        (tmp_path / "next").write_text(f"nameserver {dns.address.host}\n")
        (tmp_path / "next").rename(file)
        assert (await servers.ask(question))[0] == Records(("192.0.2.1",))


async def test_a_command_looks_up_several_records_at_once():
    zone = {
        "a.test": {"TXT": ['"v=spf1 " "-all"'], "MX": ["10 MX.A.test."]},
        "_25._tcp.a.test": {"TLSA": ["3 1 1 " + "ab" * 32]},
        "alias.test": {"CNAME": ["a.test."]},
        "octets.test": {"TXT": ['"\\195\\169\\255"']},
        "broken.test": "SERVFAIL",
    }
    questions = [("a.test", "TXT"), ("a.test", "MX"), ("_25._tcp.a.test", "TLSA")]
    questions += [
        ("octets.test", "TXT"),
        ("alias.test", "TXT"),
        ("none.test", "TXT"),
        ("a.test", "A"),
        ("a.test", "TXT"),
    ]
    with DnsThread(zone) as dns:
        found = await look_up([dns.address], [*questions, ("broken.test", "TXT")], timeout_s=60)
        assert dns.asked("a.test", "TXT") == 1
    texts = Records(("v=spf1 -all",))
    assert list(found) == [*questions[:-1], ("broken.test", "TXT")]
    assert list(found.values())[:-1] == [
        texts,
        Records(("10 mx.a.test",)),
        Records(("3 1 1 " + "ab" * 32,)),
        Records(("\u00e9\udcff",)),
        texts,
        NoName(),
        NoRecords(),
    ]
    assert "SERVFAIL" in found["broken.test", "TXT"].text


async def test_an_answer_of_thousands_of_records_does_not_stop_the_relay():
    """dnspython would parse it on the event loop, for 200 ms."""
    many = [f"10.{number >> 8}.{number & 255}.1" for number in range(3750)]
    hosts = [f"h{number}.many.test." for number in range(101)]
    zone = {
        "many.test": {"A": many, "MX": [f"10 {name}" for name in hosts], "PTR": hosts},
        "few.test": {"A": many[:400], "MX": [f"10 {name}" for name in hosts[1:]], "PTR": hosts[1:]},
    }
    asked = [(name, kind) for name in zone for kind in ("A", "MX", "PTR")]
    with DnsThread(zone) as server:
        answers = await look_up((server.address,), asked, timeout_s=60)
    assert "more than 500 records" in answers["many.test", "A"].text
    for kind, number in (("A", 400), ("MX", 100), ("PTR", 100)):
        assert len(answers["few.test", kind].values) == number
        assert "answered more than" in answers["many.test", kind].text


@each_row(
    "octets, strings",
    [(b"\1x" * 600, [b"x" * 255, b"x" * 255, b"x" * 90]), (b"\2ab\0\1c", [b"abc"]), (b"\0", [b""])],
)
def test_a_text_in_thousands_of_strings_does_not_stop_the_relay(octets, strings):
    """dnspython would make an object of each one on the event loop, for 100 ms."""
    assert [*dns.rdata.from_wire("IN", "TXT", octets, 0, len(octets)).strings] == strings


async def test_a_query_that_this_machine_cannot_send_is_no_silence_of_a_name_server():
    with DnsThread({"a.test": {"A": ["192.0.2.1"]}}) as dns:
        servers, free = StubResolver((dns.address,), timeout_s=120), os.dup(0)
        os.close(free)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            answer, _ = await servers.ask(("a.test", "A"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert answer == NoAnswer("no query was sent: too many open files", is_own=True)


async def test_a_query_that_is_cancelled_at_any_step_leaves_no_socket_open():
    """One that is open when the loop is closed keeps it from its end, where warnings are errors."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        servers = StubResolver([Address(*silent.getsockname())], timeout_s=120)
        before = open_files()
        for steps in range(20):
            query = asyncio.create_task(servers.ask(("a.test", "MX")))
            for _ in range(steps):
                await asyncio.sleep(0)
            query.cancel()
            await asyncio.wait([query])
            assert query.cancelled()
            await until(lambda: open_files() == before, timeout_s=20)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))
