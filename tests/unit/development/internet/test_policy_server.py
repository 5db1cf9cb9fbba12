"""The web server with the MTA-STS policies of simulated domains."""

import asyncio
import ssl
from contextlib import asynccontextmanager

import pytest

from relay.base.message.mta_sts import StsPolicy, read_policy
from relay.development.internet import policy_server
from relay.development.internet.host_certificates import HostCertificates
from relay.development.internet.policy_server import PolicyServer
from relay.development.internet.scenario_file import parse_scenario

SCENARIO = """
[[domain]]
name = "a.test"
aliases = ["b.test"]
mx = [{ host = "mx1.a.test" }, { host = "mx2.a.test" }]
mta_sts = "testing"
[[domain]]
name = "silent.test"
"""
PATH = "/.well-known/mta-sts.txt"


@asynccontextmanager
async def connected(name="mta-sts.a.test"):
    """Connect as the fetcher does."""
    certificates = HostCertificates()
    server = PolicyServer(certificates, parse_scenario(SCENARIO).scenario.domain_of)
    await server.start()
    context = ssl.create_default_context(cadata=certificates.authority)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default since Python 3.13
    try:
        yield await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=context, server_hostname=name
        )
    finally:
        server.stop()


async def answer(request, name="mta-sts.a.test"):
    async with connected(name) as (reader, writer):
        writer.write(request)
        found = await reader.read()
        writer.transport.abort()
    return found.decode().partition("\r\n\r\n")


@pytest.mark.parametrize("domain", ["a.test", "b.test"])
async def test_the_policy_of_a_domain(domain):
    name = f"mta-sts.{domain}"
    request = f"GET {PATH} HTTP/1.1\r\nAccept: */*\r\nHost: {name}:4433\r\n\r\n"
    header, _, body = await answer(request.encode(), name)
    assert header.startswith("HTTP/1.1 200 OK\r\n")
    hosts = frozenset({"mx1.a.test", "mx2.a.test"})
    assert read_policy(body.encode()) == StsPolicy("testing", hosts, 86_400)


@pytest.mark.parametrize(
    "request_",
    [
        f"GET {PATH} HTTP/1.1\r\nHost: mta-sts.silent.test\r\n\r\n",
        f"GET {PATH} HTTP/1.1\r\nHost: mta-sts.unknown.test\r\n\r\n",
        f"GET {PATH} HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: mta-sts.a.test\r\n\r\n",
        "\x16\x03\r\n\r\n",
    ],
)
async def test_what_has_no_policy(request_):
    header, _, body = await answer(request_.encode())
    assert (header[:22], body) == ("HTTP/1.1 404 Not Found", "")


async def test_a_client_is_bounded_in_octets_and_time(monkeypatch):
    assert await answer(b"GET / HTTP/1.1\r\n" + b"x" * 20_000) == ("", "", "")
    monkeypatch.setattr(policy_server, "_REQUEST_S", 0.1)
    assert await answer(b"GET / HTTP/1.1\r\n") == ("", "", "")
