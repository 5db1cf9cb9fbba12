"""Hostile messages and records, silent name servers, workers that fail: each check has its bounds."""

import asyncio
import base64
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from msgspec import msgpack

from relay.base.message.header import ParsedContent
from relay.transport.checks import checker, workers
from relay.transport.checks.check_child import MEMORY_BYTES_MAX
from relay.transport.checks.checker import (
    CheckReply,
    CheckRequest,
    KnownAnswer,
    SenderChecker,
    SenderQuestion,
)
from relay.transport.routing.dns_cache import DnsQuestion
from relay.transport.routing.mx_hosts import NOT_ASKED, Answer, NoName
from tests.support.dns_server import Zone
from tests.support.events import until
from tests.support.logs import capture_logs
from tests.support.manual_clock import ManualClock
from tests.support.sender_checks import open_checks, txt

PLAIN = b"From: a@bank.test\r\nSubject: x\r\n\r\nHello.\r\n"
BODY_HASH = base64.b64encode(hashlib.sha256(b"Hello.\r\n").digest())
TAGS = b"DKIM-Signature: v=1; a=rsa-sha256; d=bank.test; s=s1; b=YQ==; bh=%b; h=from" % BODY_HASH


def number(octets: int) -> bytes:
    return b"\x02\x82" + octets.to_bytes(2) + b"\x7f" + b"\xff" * (octets - 1)  # in DER


def rsa(modulus: bytes, exponent: bytes) -> Zone:
    both = modulus + exponent
    octets = b"\x30\x82" + len(both).to_bytes(2) + both
    return {KEY: txt(f"p={base64.b64encode(octets).decode()}")}


KEY = "s1._domainkey.bank.test"
GOOD_KEY, HUGE_KEY = rsa(number(256), b"\x02\x03\x01\x00\x01"), rsa(number(2048), number(2048))
LOOP: Zone = {
    f"{name}.test": txt(f"v=spf1 include:{other}.test -all")
    for name, other in (("bank", "b"), ("b", "c"), ("c", "bank"))
}
MX = {f"m{n}.test": {"MX": [f"10 h{m}.m{n}.test" for m in range(10)]} for n in range(10)}
HOSTS: Zone = {f"h{m}.m{n}.test": {"A": ["192.0.2.9"]} for m in range(10) for n in range(10)}
MANY_MX = {
    "bank.test": txt("v=spf1 " + "".join(f"mx:m{n}.test " for n in range(10))),
    **MX,
    **HOSTS,
}


def spf(text: str) -> Zone:
    return {"bank.test": txt(text)}


ADDRESSES: Zone = {
    f"h{n}.test": {"A": [f"10.{m >> 8}.{m & 255}.{n}" for m in range(450)]} for n in range(10)
}
NETWORKS: Zone = {f"n{n}.test": txt("v=spf1 " + "ip4:10.0.0.1 " * 1200 + "?all") for n in range(2)}
REVERSE = "1.2.0.192.in-addr.arpa"

# the zone, fields before those of PLAIN, the results of SPF and of DKIM
HOSTILE: list[tuple[Zone, bytes, str, str]] = [
    (spf("v=spf1 " + "a:x.test " * 500), b"", "permerror", "none"),
    (spf("v=spf1 " + "ip4:192.0.2.9 " * 4000), b"", "permerror", "none"),
    (MANY_MX, b"", "permerror", "none"),
    (
        spf("v=spf1 " + " ".join(f"a:{name}" for name in ADDRESSES)) | ADDRESSES,
        b"",
        "permerror",
        "none",
    ),
    (spf("v=spf1 include:n0.test include:n1.test -all") | NETWORKS, b"", "permerror", "none"),
    (spf("v=spf1 ptr -all") | {REVERSE: "SERVFAIL"}, b"", "fail", "none"),
    (
        spf("v=spf1 ptr -all") | {REVERSE: {"PTR": ["x.test."]}, "x.test": "SERVFAIL"},
        b"",
        "fail",
        "none",
    ),
    (LOOP, b"", "permerror", "none"),
    (spf("v=spf1 a:." + "a" * 50_000 + "!"), b"", "permerror", "none"),
    ({}, TAGS + b"; x=" + b"1" * 65_536 + b"\r\n", "none", "permerror"),
    (
        GOOD_KEY,
        5 * (TAGS.replace(b"YQ==", b"Y" + b"\r\n " * 2500 + b"!") + b"\r\n"),
        "none",
        "permerror",
    ),
    (
        GOOD_KEY,
        5 * (TAGS + b":%x" * 1500 % (*range(1500),) + b"\r\n") + b"X:\r\n" * 9000,
        "none",
        "permerror",
    ),
    ({}, 200 * (TAGS + b"\r\n"), "none", "permerror"),
    (HUGE_KEY, TAGS + b"\r\n", "none", "permerror"),
    ({KEY: txt("p=" + "A" * 60_000)}, TAGS + b"\r\n", "none", "permerror"),
    (
        {**spf("v=spf1 include:b.test"), "b.test": txt("v=spf1 -all"), KEY: "TIMEOUT"},
        TAGS + b"\r\n",
        "neutral",
        "temperror",
    ),
    ({"bank.test": "SERVFAIL", KEY: "SERVFAIL"}, TAGS + b"\r\n", "temperror", "temperror"),
    ({"bank.test": "TIMEOUT", KEY: "TIMEOUT"}, TAGS + b"\r\n", "temperror", "temperror"),
]


async def test_hostile_messages_and_records_have_a_result() -> None:
    async with open_checks() as checks:
        for number, (zone, fields, of_sender, of_dkim) in enumerate(HOSTILE):
            checks.use({"_dmarc.bank.test": txt("v=DMARC1; p=reject"), **zone})
            spf, _, *dkim, dmarc = await checks(fields + PLAIN, "a@bank.test")
            results = spf.result, {result.result for result in dkim}
            assert results == (of_sender, {of_dkim}), (number, spf, dkim)
            assert dmarc.result == ("temperror" if "temperror" in results[0] + of_dkim else "fail")
            assert len(dkim) <= 5
            assert sum(checks.dns.queries.values()) <= 40


async def test_messages_that_wait_for_silent_name_servers_delay_no_others(monkeypatch) -> None:
    monkeypatch.setattr(checker, "_SILENT_S", 1000.0)
    async with open_checks({"bank.test": "TIMEOUT", "quick.test": txt("v=spf1 -all")}) as checks:
        await checks(PLAIN, "a@quick.test")
        silent = [asyncio.create_task(checks(PLAIN, "a@bank.test")) for _ in range(50)]
        ips = [f"192.0.2.{2 + number % 20}" for number in range(200)]
        quick = await asyncio.gather(*[checks(PLAIN, "a@quick.test", ip=ip) for ip in ips])
        assert {results[0].result for results in quick} == {"fail"}
        assert not any(task.done() for task in silent)
        for task in silent:
            task.cancel()


async def test_a_long_header_stops_no_other_session() -> None:
    content = b"From: a@bank.test\r\nx: y\r\n" + b" y\r\n" * 750_000 + b"\r\nHello.\r\n"
    async with open_checks({"bank.test": txt("v=spf1 -all")}) as checks:
        await checks(PLAIN, "a@bank.test")
        began_s = time.thread_time()
        ParsedContent.of(content)
        long_s, began_s = time.thread_time() - began_s, time.thread_time()
        [result, *_] = await checks(content, "a@bank.test")
        assert time.thread_time() - began_s < long_s  # more, if the loop read the header too
        assert result.result == "fail"


async def test_the_messages_of_a_client_have_one_worker_and_delay_no_other() -> None:
    async with open_checks({"bank.test": txt("v=spf1 -all")}) as checks:
        await checks(PLAIN, "a@bank.test")
        [worker] = checks.checker._workers._idle
        os.kill(worker.process.pid, signal.SIGSTOP)
        slow = [asyncio.create_task(checks(PLAIN, "a@bank.test")) for _ in range(9)]
        await until(lambda: checks.checker._workers._turns._waiting == 8)
        assert (await checks(PLAIN, "a@bank.test", ip="192.0.2.2"))[0].result == "fail"
        assert not any(task.done() for task in slow)
        os.kill(worker.process.pid, signal.SIGCONT)
        assert {(await task)[0].result for task in slow} == {"fail"}


async def test_honest_mail_passes_while_another_client_asks_much() -> None:
    silent: Zone = dict.fromkeys([f"s{number}.test" for number in range(400)], "TIMEOUT")
    zone = {"_dmarc.bank.test": txt("v=DMARC1; p=reject"), **spf("v=spf1 ip4:192.0.2.0/28 -all")}
    async with open_checks(zone | silent) as checks:
        await checks(PLAIN, "a@other.test")
        questions = [(name, "TXT") for name in silent]
        ask = partial(checks.resolver.answers_for_clients, client="192.0.2.99", wait_s=1000)
        flood = [asyncio.create_task(ask(questions, is_kept=is_kept)) for is_kept in (True, False)]
        await checks.dns.until_asked("s0.test", "TXT")
        for number in range(1, 13):
            ip, host = f"192.0.2.{number}", f"mx{number}.bank.test"
            *_, dmarc = await checks(PLAIN, "a@bank.test", ip=ip, helo=host)
            assert dmarc.result == "pass"
        assert not any(task.done() for task in flood)
        for task in flood:
            task.cancel()


async def test_too_many_messages_at_once_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WAITING_MAX", 0)
    async with open_checks({"bank.test": txt("v=spf1 -all")}) as checks:
        ips = ("192.0.2.1", "192.0.2.2", "192.0.2.3")
        checking = [checks(PLAIN, "a@bank.test", ip=ip) for ip in ips]
        ended = [(await one)[0].result for one in asyncio.as_completed(checking)]
        assert ended == ["unable", "fail", "fail"]


async def test_a_worker_that_hangs_or_grows_is_killed_and_replaced(monkeypatch) -> None:
    large = PLAIN + b"Hello again.\r\n" * 600_000
    async with open_checks({"bank.test": txt("v=spf1 -all")}) as checks:
        await checks(PLAIN, "a@bank.test")
        [worker] = checks.checker._workers._idle
        pid = worker.process.pid
        assert resource.prlimit(pid, resource.RLIMIT_AS) == (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX)
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(workers, "_REQUEST_S", 0.5)
        with capture_logs() as logged:
            results = await checks(PLAIN, "a@bank.test")
        assert [line["reason"] for line in logged] == ["it hangs"]
        assert [result.result for result in results[:2]] == ["fail", "none"]
        assert worker.process.returncode == -signal.SIGKILL
        [worker] = checks.checker._workers._idle
        monkeypatch.setattr(workers, "_REQUEST_S", 100.0)
        resource.prlimit(worker.process.pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))
        with capture_logs() as logged:
            results = await checks(large, "a@bank.test")
        assert logged[0]["reason"].startswith("it ended")
        assert results[0].result == "fail"
        assert worker.process.returncode is not None


def test_a_worker_opens_no_socket() -> None:
    program = """
import socket, sys
def refused(*_, **__): raise AssertionError("a socket")
socket.socket.__init__ = socket.getaddrinfo = refused
from msgspec import msgpack
from relay.transport.checks import check_child, checker
request = msgpack.decode(sys.stdin.buffer.read(), type=checker.CheckRequest)
sys.stdout.buffer.write(msgpack.encode(check_child.reply_to(request)))
"""
    question = SenderQuestion("192.0.2.1", "mx.bank.test", "a@bank.test", "relay.test")
    known = {("bank.test", "TXT"): KnownAnswer([b"v=spf1 mx -all"])}
    request = msgpack.encode(
        CheckRequest(question, known, TAGS + b"\r\n" + PLAIN[:-10], b"Hello.\r\n", is_large=False)
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=request,
        capture_output=True,
        check=True,
        timeout=120,
    )
    reply = msgpack.decode(done.stdout, type=CheckReply)
    asked = {
        ("bank.test", "MX"),
        ("mx.bank.test", "TXT"),
        (KEY, "TXT"),
        ("_dmarc.bank.test", "TXT"),
    }
    assert asked <= {tuple(question) for question in reply.lacking}


async def test_a_silent_domain_does_not_hide_that_the_authors_does_not_exist() -> None:
    zone: Zone = {"_dmarc.bank.test": txt("v=DMARC1; p=none; np=reject"), "silent.test": "TIMEOUT"}
    async with open_checks(zone) as checks:
        *_, dmarc = await checks(PLAIN.replace(b"bank", b"missing.bank", 1), "a@silent.test")
        assert (dmarc.result, dmarc.properties["policy.dmarc"]) == ("fail", "reject")


async def test_neither_a_long_sender_nor_a_long_field_hides_the_author() -> None:
    labels = ".".join(["a" * 60] * 4)[: 198 - len(".bank.test")]  # "x@" before it: 200 characters
    domain = f"{labels}.bank.test.attacker.test"
    names = [f"h{number}.test" for number in range(10)]
    zone = {
        "_dmarc.bank.test": txt("v=DMARC1; p=reject"),
        domain: txt("v=spf1 +all"),
        "slow.test": txt("v=spf1 " + " ".join(f"a:{name}" for name in names) + " +all"),
        **{name: {"A": ["10.0.0.1"]} for name in names},  # each is another round
    }
    folded = b"From: a@bank.test\r\nx: y\r\n" + b" y\r\n" * 250_000 + b"\r\nHello.\r\n"
    async with open_checks(zone) as checks:
        for content, sender in ((PLAIN, domain), (folded, domain), (folded, "slow.test")):
            spf, *_, dmarc = await checks(content, f"x@{sender}")
            assert (spf.result, dmarc.result) == ("pass", "fail")


async def test_a_forger_spends_no_question_and_no_time_of_aligned_names() -> None:
    names = [f"h{number}.test" for number in range(10)]
    zone: Zone = {
        "_dmarc.bank.test": txt("v=DMARC1; p=reject"),
        "s2._domainkey.bank.test": "TIMEOUT",
        "slow.test": "TIMEOUT",
        **MX,
        **HOSTS,
        "many.test": txt("v=spf1 " + " ".join(f"mx:m{n}.test" for n in range(5)) + " -all"),
        **{f"k._domainkey.{name}": "TIMEOUT" for name in names},
    }
    others = b"".join(TAGS.replace(b"d=bank", b"d=h%d" % n) + b"\r\n" for n in range(10))
    long = TAGS.replace(b"s1", b"s2") + b"; z=" + "ä".encode() * 4200 + b"\r\n"
    large = b"x" * 900 + b"\r\n"
    async with open_checks(zone) as checks:
        for fields in (others + TAGS + b"\r\n", long):
            for sender in ("many.test", "slow.test"):
                content = fields + PLAIN + large * 100
                *_, dkim, dmarc = await checks(content, f"a@{sender}", helo=f"h.{sender}")
                assert (dkim.domain("header.d"), dkim.result) == ("bank.test", "permerror")
                assert dmarc.result == "fail", dmarc


async def test_aligned_names_have_their_own_questions_however_late() -> None:
    zone: Zone = MANY_MX | {
        "_dmarc.bank.test": txt("v=DMARC1; p=reject"),
        "helo.test": MANY_MX["bank.test"],
        "bank.test": txt("v=spf1 include:1.test -all"),
        **{f"{n}.test": txt(f"v=spf1 include:{n + 1}.test -all") for n in range(1, 8)},
        "8.test": txt("v=spf1 +all"),
    }
    async with open_checks(zone) as checks:
        ask = checks.checker._ask

        async def late(questions: Sequence[DnsQuestion], **options: Any) -> Sequence[Answer]:
            if ("2.test", "TXT") in questions:
                await checks.dns.until_asked("h3.m2.test", "A")
            return await ask(questions, **options)

        checks.checker._ask = late
        spf, helo, *_, dmarc = await checks(PLAIN, "a@bank.test", helo="helo.test")
        results = [result.result for result in (spf, helo, dmarc)]
        assert results == ["pass", "permerror", "pass"], spf


async def test_an_aligned_pass_waits_for_the_rest_if_a_rule_reads_it(monkeypatch) -> None:
    zone: Zone = {
        "_dmarc.bank.test": txt("v=DMARC1; p=reject"),
        "bank.test": txt("v=spf1 +all"),
        "s1._domainkey.silent.test": "TIMEOUT",
    }
    content = TAGS.replace(b"bank", b"silent") + b"\r\n" + PLAIN
    async with open_checks(zone) as checks:
        for needs_all, of_dkim in ((True, ["temperror"]), (False, [])):
            monkeypatch.setattr(checker, "_SILENT_S", 3.0 if needs_all else 1000.0)
            _, _, *dkim, dmarc = await checks(content, "a@bank.test", needs_all=needs_all)
            assert ([result.result for result in dkim], dmarc.result) == (of_dkim, "pass")


async def test_checks_that_all_fail_by_this_relay_are_named_for_a_minute() -> None:
    clock, answers = ManualClock(), list[Answer]()

    async def ask(questions: Sequence[DnsQuestion], **_: Any) -> Sequence[Answer]:
        return answers * len(questions)

    checker, question = SenderChecker(ask, clock=clock), SenderQuestion("192.0.2.1", "", "", "")
    try:
        for answer, is_named in ((NOT_ASKED, True), (NoName(), False), (NOT_ASKED, False)):
            answers[:] = [answer]
            await checker.check(question, PLAIN)
            assert bool(checker.impaired()) is is_named
        clock.now_s += 61
        assert not checker.impaired()
        await checker.check(question, PLAIN)
        assert checker.impaired()
    finally:
        checker.close()
