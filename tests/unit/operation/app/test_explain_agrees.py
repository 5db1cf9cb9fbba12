"""Random configurations: what an explanation says is what delivery then does.

Each relay is real, in one process, with the tests' DNS server and scripted hosts. `make test` tries
25 configurations, `make test-long` 175 more.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from relay.base.message.envelope import Envelope, ForwardPath
from relay.base.running_relay import ControlClient
from relay.delivery.smtp import connect as connecting
from relay.delivery.smtp.connect import Target
from relay.store.journeys.document import Recipient
from relay.store.spool.types import Selector
from relay.transport.ingress.data import Origin
from tests.support.dns_server import DnsThread
from tests.support.long_tests import sampled
from tests.support.remote_mx import RemoteMx
from tests.support.tables import each_row

SENDER = "alice@example.test"
TRUSTED = Origin(ip="127.0.0.1", helo="client.test", trusted=True)
LOGIN = Origin(ip="127.0.0.1", helo="client.test", login=SENDER, trusted=True)
CONTENT = b"From: alice@example.test\r\nSubject: hello\r\n\r\nbody\r\n"
RULE = "[[rule]]\nname = '{0}'\nwhen = {{ recipient = '{0}@*' {1} }}\nthen = [ {2} ]\n"
BY_RULE = (
    ("printer", "", '{ set_sender = "carol@example.test" }'),
    ("logged", ', login = "alice@example.test"', '{ reject = "5.7.1 of a login" }'),
    ("any", ', login = "*"', "{ discard = true }"),
)
DOMAINS = ("one.test", "two.test", "gone.test", "null.test", "later.test", "silent.test")
LOCAL_PARTS = ("bob", "moved", "dropped", "refused", "tagged")
EACH = 5  # configurations in one test
ACTIONS = (
    '{ reject = "5.7.1 no" }',
    "{ discard = true }",
    '{ redirect = ["carol@one.test"] }',
    '{ redirect = ["alice@example.test"] }',
    '{ subject_prefix = "[X]" }',
)
# of an explanation, and of the recipient after the first attempt
OUTCOMES = {
    "local": "delivered",
    "captured": "captured",
    "invalid": "failed",
    "discarded": "discarded",
    "held": "held",
    "rejected": "failed",
}
LEVELS = ("none", "opportunistic", "required", "verify")


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsThread]:
    zone = {
        "one.test": {"MX": ["10 mx.one.test."]},
        "mx.one.test": {"A": ["127.0.0.21"]},
        "two.test": {"MX": ["10 a.two.test.", "10 b.two.test.", "20 mx.one.test."]},
        "a.two.test": {"A": ["127.0.0.23"]},
        "b.two.test": {"A": ["127.0.0.22"]},
        "null.test": {"MX": ["0 ."]},
        "later.test": "SERVFAIL",
        "silent.test": {"MX": ["10 mx.silent.test."]},
        "mx.silent.test": {},
    }
    with DnsThread(zone) as dns:
        yield dns


@pytest.fixture
async def port():
    """The port of three hosts, which take all mail."""
    async with (
        RemoteMx(host="127.0.0.21") as one,
        RemoteMx(host="127.0.0.22", port=one.port),
        RemoteMx(host="127.0.0.23", port=one.port),
    ):
        yield one.port


def configuration(rng: random.Random, dns: DnsThread, port: int) -> tuple[dict[str, Any], str]:
    """A random configuration, and its rules."""
    actions = [
        "mx",
        "mx",
        "capture",
        "hold",
        "local",
        "reject:5.7.1 closed",
        f"smtp://127.0.0.22:{port}",
        "smtp://localhost:1",
    ]
    routes = []
    for number in range(rng.randrange(4)):
        route = {
            "name": f"r{number}",
            "domain": rng.choice((*DOMAINS, "*", "*.test", "example.test")),
            "next_hop": rng.choice(actions),
        }
        if rng.random() < 0.3:
            route["sender"] = rng.choice(("*@example.test", "<>", "*@other.test"))
        if rng.random() < 0.6 and route["next_hop"].startswith(("mx", "smtp")):
            route["tls"] = rng.choice(LEVELS)
        routes.append(route)
    rules = "".join(
        f"[[rule]]\nname = 'rule {number}'\nwhen = {{ recipient = '{rng.choice(LOCAL_PARTS)}@*' }}\n"
        f"then = [ {rng.choice(ACTIONS)} ]\nmode = '{rng.choice(('enforce', 'enforce', 'audit'))}'\n"
        for number in range(rng.randrange(4))
    )
    delivery = {"port": port, "tls": rng.choice(LEVELS[:3]), "retry": ["1h"]}
    return {
        "route": routes,
        "dns": {"nameservers": [str(dns.address)], "timeout": "60s"},
        "delivery": delivery,
    }, rules


@pytest.mark.parametrize("first", sampled(range(0, 200, EACH), one_of=8))
async def test_explanation_and_delivery_agree(
    settings_with, composed, tmp_path, monkeypatch, dns, port, first
) -> None:
    targets: list[Target] = []

    async def connect(target, **options):
        targets.append(target)
        return await connecting.connect(target, **options)

    monkeypatch.setattr("relay.operation.app.transport.connect", connect)
    for seed in range(first, first + EACH):
        rng = random.Random(seed)
        changes, rules = configuration(rng, dns, port)
        (tmp_path / "policies").mkdir(exist_ok=True)
        (tmp_path / "policies" / "10.toml").write_text(rules)
        daemon = composed(settings_with(**changes, state_dir=f"state{seed}"))
        await daemon.start()
        try:
            for _ in range(3):
                domain = rng.choice((*DOMAINS, "one.test", "two.test", "example.test"))
                address = f"{rng.choice((*LOCAL_PARTS, 'alice'))}@{domain}"
                explained = await explain(daemon, address)
                report = await explain(daemon, SENDER, sender="<>")  # if the mail fails
                targets.clear()
                _, done = await deliver(daemon, address)
                note = f"seed {seed}: {address}: {changes['route']} {rules} {explained} {done}"
                assert done is None or address in [one.address for one in done], note
                assert agrees(explained, done), note
                assert connects_as([explained, report], targets), f"{note} {targets}"
        finally:
            await daemon.stop()


@each_row(
    "address, mail",
    [
        ("printer@one.test", {}),
        ("bob@one.test", {}),
        ("bob@one.test", {"content": b"Received: by b\r\n" * 101 + CONTENT}),
        ("bob@one.test", {"content": CONTENT.replace(b"alice", b"carol"), "origin": LOGIN}),
        ("logged@one.test", {"sender": "alice+tag@example.test", "origin": LOGIN}),
        ("any@one.test", {"sender": "ann@away.test", "origin": Origin("", "", trusted=True)}),
    ],
)
async def test_an_explanation_goes_through_the_stages_of_acceptance(
    settings_with, composed, tmp_path, address, mail
) -> None:
    (tmp_path / "policies").mkdir(exist_ok=True)
    (tmp_path / "policies" / "10.toml").write_text("".join(RULE.format(*row) for row in BY_RULE))
    paper = {"domain": "one.test", "sender": "carol@example.test", "next_hop": "capture"}
    daemon = composed(settings_with(route=[paper, {"domain": "*", "next_hop": "hold"}]))
    await daemon.start()
    try:
        explained = await explain(daemon, address, **mail)
        reply, done = await deliver(daemon, address, **mail)
        assert agrees(explained, done), explained
        assert done is not None or explained["reply"] == reply
    finally:
        await daemon.stop()


async def explain(daemon, address, *, sender=SENDER, content=CONTENT, origin=TRUSTED):
    """Ask the relay on its control socket."""
    client = ControlClient(daemon.base.settings.control_socket)
    query = {"address": address, "from": sender, "ip": "" if origin.login else origin.ip}
    return await asyncio.to_thread(client.post_message, "/explain", query, content)


async def deliver(daemon, address, *, sender=SENDER, content=CONTENT, origin=TRUSTED):
    """Accept a message and return the reply, and its recipients after the first attempt; None: it
    was rejected.
    """
    reply = await daemon.transport.acceptance.accept(
        Envelope(sender), [ForwardPath(address)], content, origin=origin
    )
    if not reply.queue_id:
        return reply.reply, None
    selector = Selector(ids=(reply.queue_id,), state="queued")
    async with asyncio.timeout(120):
        while True:
            count = daemon.base.changes.count
            if not await daemon.base.spool.queue_admin.list(selector, limit=1):
                journey = await daemon.base.journeys.journey(reply.queue_id, account=None)
                assert journey is not None
                return reply.reply, journey.recipients
            await daemon.base.changes.wait_beyond(count)


def agrees(explained: dict[str, Any], done: Sequence[Recipient] | None) -> bool:
    """Whether the state of the recipient, the host of its attempt and its TLS are as explained."""
    state = explained["state"]
    if done is None:
        return state in ("rejected", "invalid")
    [recipient] = [one for one in done if one.address == explained["address"]]
    if "targets" in explained:
        return recipient.state == "redirected"
    if state == "remote":
        best = [
            one["name"]
            for one in explained["hosts"]
            if one["preference"] == explained["hosts"][0]["preference"]
        ]
        attempts = [attempt for attempt in recipient.attempts if attempt.host]
        hosts, policies = {each.host for each in attempts}, {each.policy for each in attempts}
        tls = explained["tls"]
        expected = {f"{tls['policy']}: {tls['level']}"} if tls else set()
        is_there = recipient.state in (("relayed", "deferred") if best else ("deferred",))
        return is_there and hosts <= set(best) and policies <= expected
    return recipient.state == OUTCOMES[state]


def connects_as(explained: Sequence[dict[str, Any]], targets: Sequence[Target]) -> bool:
    """Whether the connections are to the hosts explained, at the level explained."""
    documents = [each for one in explained for each in one.get("targets", [one])]
    remote = [one for one in documents if one["state"] == "remote"]
    for target in targets:
        levels = [
            one["tls"]["level"]
            for one in remote
            for host in one["hosts"]
            if host["name"] == target.host and target.address in host["addresses"]
        ]
        if target.tls.level not in levels:
            return False
    return True
