"""Postfix's smtp-sink as a next hop in its odd moods, and smtp-source with a crash in the middle."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.interop.conftest import program
from tests.support.ports import free_port
from tests.support.relay_process import until
from tests.support.remotes import Remotes

PLAIN = b"Subject: plain\r\n\r\nHello.\r\n"
EIGHT_BIT = b"Subject: eight\r\n\r\nGr\xc3\xbc\xc3\x9fe.\r\n"
"""(the sink's options, the content, the recipient's state, how its reply begins)"""
MOODS = [
    ((), PLAIN, "relayed", "2.0.0"),
    (("-f", "EHLO"), PLAIN, "relayed", "2.0.0"),
    ((), EIGHT_BIT, "relayed", "2.0.0"),
    (("-8",), EIGHT_BIT, "relayed", "2.0.0"),
    (("-f", "DATA"), PLAIN, "failed", "5.3.0"),
    (("-f", "."), PLAIN, "failed", "5.3.0"),
    (("-r", "DATA"), PLAIN, "deferred", "4.3.0"),
    (("-r", "."), PLAIN, "deferred", "4.3.0"),
    (("-q", "CONNECT"), PLAIN, "deferred", "4.4."),
    (("-q", "."), PLAIN, "deferred", "4.4."),
    (("-Q", "."), PLAIN, "deferred", "4."),
]


@pytest.fixture(scope="module")
def moody(serve_module):
    """One relay for all moods: each has a route of its own."""
    ports = [free_port() for _ in MOODS]
    routes = [
        {"domain": f"mood{number}.test", "next_hop": f"smtp://127.0.0.1:{port}"}
        for number, port in enumerate(ports)
    ]
    return serve_module(config={"route": routes, "delivery": {"retry": ["1h"]}}), ports


@pytest.mark.parametrize(
    "number", range(len(MOODS)), ids=[f"{' '.join(one[0]) or 'none'}-{one[2]}" for one in MOODS]
)
def test_a_next_hop_in_any_mood_ends_where_it_should(moody, number):
    relay, ports = moody
    options, content, state, status = MOODS[number]
    port = ports[number]
    command = [program("smtp-sink"), "-u", "nobody", *options, f"127.0.0.1:{port}", "100"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until("the sink listens", lambda: listens(port))
        sent = relay.submit("alice@example.test", [f"b@mood{number}.test"], content)
        journey = relay.until_state(sent, state)
    finally:
        process.kill()
        process.wait()

    (recipient,) = journey["recipients"]
    assert recipient["state"] == state
    assert recipient["status"].startswith(status), recipient
    (attempt,) = recipient["attempts"]
    in_doubt = options == ("-q", ".")
    assert attempt["outcome"] == ("indeterminate" if in_doubt else state)


def listens(port):
    """Whether something is bound there, without connecting to it: a probe would be a session."""
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(
        fields[1].endswith(f":{port:04X}") and fields[3] == "0A"
        for fields in (line.split() for line in listening)
    )


def test_smtp_source_and_a_kill_in_the_middle_lose_nothing(run):
    """Some are at the remote host, some under way, the rest queued: then the relay dies."""
    count, connections = 300, 10
    with Remotes() as remotes:
        gate = asyncio.Event()
        remote = remotes.start("a.test", gates={"MAIL": gate})
        options = {"config": {"delivery": {"max_connections_per_next_hop": connections}}}
        with remotes.relay(**options) as relay:
            listener = relay.ready["smtp"][0]
            done = run(
                "smtp-source", "-s", "10", "-d", "-N", "-l", "4096", "-m", str(count),
                "-f", "a@example.test", "-t", "b@a.test", listener,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            remotes.open_gate(gate)
            until("some arrive", lambda: len(remote.envelopes) > count // 10)
            relay.restart()
            # before and from Postfix 3.10 on
            forms = [
                {f"{number}b@a.test" for number in range(1, count + 1)},
                {f"b{number}@a.test" for number in range(count)},
            ]

            def arrived():
                return [address for one in list(remote.envelopes) for address in one.addresses]

            until("every message", lambda: any(one <= set(arrived()) for one in forms))
            until("an empty queue", lambda: not relay.queue())
            assert set(arrived()) in forms
            assert len(arrived()) <= count + connections, "more than those in doubt came twice"
            assert relay.metric("relay_queue_unaccounted") == 0
