"""Where requests may go, and what is read of an answer: real receivers on loopback."""

import asyncio

import pytest

from relay.base.message.web_url import UrlError, read_url
from relay.delivery import http_connection
from relay.delivery.http_connection import HttpError
from relay.front_door.notifications import https_client
from relay.front_door.notifications.https_client import (
    ANYWHERE,
    LOOPBACK,
    PRIVATE,
    Destinations,
    HttpsClient,
)
from tests.support.events import until
from tests.support.receiver import Receiver
from tests.support.tables import each_row
from tests.support.tls import Authority, self_signed

HERE = Destinations(networks=LOOPBACK, plain=LOOPBACK, public=False)


@pytest.fixture(autouse=True)
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch):
    """Trust the tests' CA, as an operator does by SSL_CERT_FILE."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    https_client._context.cache_clear()
    yield
    https_client._context.cache_clear()


def client(destinations: Destinations = HERE, **names: str) -> HttpsClient:
    zone = {name.replace("_", "."): address.split() for name, address in names.items()}

    async def lookup(name: str) -> list[str]:
        return zone.get(name, [])

    return HttpsClient(lookup, destinations)


async def post(sender: HttpsClient, url: str, *, timeout_s: float = 60, **options: int):
    body, to = b'{"value": []}', sender.read_url(url)
    return await sender.request("POST", to, body=body, timeout_s=timeout_s, **options)


@each_row(
    "text, host, port, target",
    [
        ("https://hooks.example.net", "hooks.example.net", 443, "/"),
        ("https://Hooks.Example.NET:8443/a/b?c=d&e", "hooks.example.net", 8443, "/a/b?c=d&e"),
        ("https://bücher.example/x", "xn--bcher-kva.example", 443, "/x"),
        ("https://[2001:DB8::1]:1/", "2001:db8::1", 1, "/"),
        ("https://192.0.2.1/", "192.0.2.1", 443, "/"),
        ("https://app/hook", "app", 443, "/hook"),
    ],
)
def test_urls(text: str, host: str, port: int, target: str) -> None:
    url = read_url(text)
    assert (url.host, url.port, url.target) == (host, port, target)


@each_row(
    "text, found",
    [
        ("http://hooks.example.net/", "scheme 'http'"),
        ("ftp://hooks.example.net/", "scheme 'ftp'"),
        ("hooks.example.net/x", "scheme ''"),
        ("https://user:password@hooks.example.net/", "user name"),
        ("https://@hooks.example.net/", "user name"),
        ("https://hooks.example.net/#x", "fragment"),
        ("https://hooks.example.net/#", "fragment"),
        ("https://hooks.example.net/a b", "percent-encoded"),
        ("https://hooks.example.net/ä", "percent-encoded"),
        ("https://hooks.example.net\\@127.0.0.1/", "percent-encoded"),
        ("https://hooks.example.net/\r\nHost: x", "percent-encoded"),
        ("https://hooks.example.net\t/", "percent-encoded"),
        ("https://hooks.example.net:0/", "port 0"),
        ("https://hooks.example.net:70000/", "Port"),
        ("https://hooks.example.net:x/", "Port"),
        ("https:///x", "the host ''"),
        ("https://a..b/", "the host"),
        ("https://[127.0.0.1]/", "IPv"),
        ("https://[fe80::1%25eth0]/", "IPv6"),
        ("https://x[::1]y/", "IPv6"),
        ("https://[::1]y:1/", "IPv6"),
        ("https://[::1/", "IPv6"),
        ("https://2130706433/", "different addresses"),
        ("https://0x7f000001/", "different addresses"),
        ("https://0177.0.0.1/", "different addresses"),
        ("https://127.1/", "different addresses"),
        ("https://x/" + "a" * 3000, "3010 characters"),
    ],
)
def test_urls_that_are_refused(text: str, found: str) -> None:
    with pytest.raises(UrlError, match=found):
        read_url(text)


NOT_PUBLIC = [
    *("127.0.0.1", "127.8.9.10", "0.0.0.0", "10.1.2.3", "172.31.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1"),
    *("240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("192.0.0.8", "192.0.0.9", "192.0.0.192", "192.88.99.1", "3fff::1", "5f00::1"),
    *("64:ff9b:1::7f00:1", "64:ff9b:1::a9fe:a9fe", "64:ff9b:1:ffff::10.0.0.1"),
    *("::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:1::"),
    *("fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "100::1"),
]
PUBLIC = ["1.1.1.1", "198.51.99.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


def test_addresses_that_are_public() -> None:
    of_serve = Destinations()
    assert [one for one in NOT_PUBLIC if not of_serve.refusal(one, scheme="https")] == []
    assert [one for one in PUBLIC if of_serve.refusal(one, scheme="https")] == []
    assert all(of_serve.refusal(one, scheme="http") for one in [*PUBLIC, *NOT_PUBLIC])


def test_addresses_that_are_named() -> None:
    named = Destinations(networks=("10.1.0.0/16",))
    assert named.refusal("10.1.2.3", scheme="https") == ""
    assert named.refusal("::ffff:10.1.2.3", scheme="https") == ""
    assert "no public address" in named.refusal("10.2.2.3", scheme="https")
    compose = Destinations(networks=LOOPBACK + PRIVATE, plain=LOOPBACK + PRIVATE, public=False)
    assert compose.refusal("172.18.0.3", scheme="http") == ""
    assert "beyond this machine" in compose.refusal("1.1.1.1", scheme="https")
    anywhere = Destinations(networks=ANYWHERE, plain=LOOPBACK)
    assert anywhere.refusal("10.2.2.3", scheme="https") == ""
    assert "expected https" in anywhere.refusal("10.2.2.3", scheme="http")


async def test_post(authority: Authority) -> None:
    with Receiver(authority.issue("DNS:hooks.example.net")) as receiver:
        sender = client(hooks_example_net="127.0.0.1")
        answer = await post(sender, receiver.url("/hook?a=b", host="hooks.example.net"))
    assert (answer.status, answer.body) == (202, b"")
    [(path, header, body)] = receiver.requests
    assert (path, header["host"], body) == (
        "/hook?a=b",
        f"hooks.example.net:{receiver.port}",
        b'{"value": []}',
    )
    assert header["accept"] == "*/*"


async def test_the_next_address_is_tried(authority: Authority) -> None:
    with Receiver(authority.issue("DNS:hooks.example.net")) as receiver:
        sender = client(hooks_example_net="127.0.0.2 127.0.0.1")
        assert (await post(sender, receiver.url(host="hooks.example.net"))).status == 202


async def test_certificates(authority: Authority, tmp_path) -> None:
    sender = client(hooks_example_net="127.0.0.1")
    for certificate in (
        authority.issue("DNS:other.example.net"),
        self_signed(tmp_path, "DNS:hooks.example.net"),
    ):
        with Receiver(certificate) as receiver:
            with pytest.raises(HttpError, match="TLS: ") as failed:
                await post(sender, receiver.url(host="hooks.example.net"))
            assert (receiver.requests, failed.value.untrusted) == ([], True)
    with Receiver() as receiver, pytest.raises(HttpError, match="TLS: ") as failed:
        await post(sender, receiver.url().replace("http:", "https:"))
    assert not failed.value.untrusted  # a port without TLS has no certificate


async def test_a_name_that_leads_elsewhere_later(authority: Authority) -> None:
    """DNS rebinding: the address that was judged is the one that is connected to."""
    answers = iter([["127.0.0.2"], ["127.0.0.1"]])
    asked = []

    async def lookup(name: str) -> list[str]:
        asked.append(name)
        return next(answers)

    sender = HttpsClient(lookup, Destinations(networks=("127.0.0.2/32",)))
    with Receiver(authority.issue("DNS:rebinds.example.net"), host="127.0.0.1") as receiver:
        url = receiver.url(host="rebinds.example.net")
        with pytest.raises(HttpError, match="connection refused"):
            await post(sender, url)  # at 127.0.0.2 nobody listens
        assert asked == ["rebinds.example.net"]
        with pytest.raises(HttpError, match=r"127\.0\.0\.1 is no public address"):
            await post(sender, url)
    assert receiver.requests == []


@each_row("address", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost"])
async def test_loopback_is_refused_in_serve(address: str) -> None:
    sender = client(Destinations(), localhost="127.0.0.1 ::1")
    with pytest.raises(HttpError, match="no public address"):
        await post(sender, f"https://{address}:1/")


async def test_a_name_without_addresses() -> None:
    with pytest.raises(HttpError, match="the name has no address"):
        await post(client(), "https://nowhere.example.net/")


async def test_redirects_are_not_followed() -> None:
    with Receiver() as receiver:
        receiver.mode = "redirect"
        answer = await post(client(), receiver.url())
    assert (answer.status, len(receiver.requests)) == (307, 1)


@pytest.mark.parametrize("mode", ["drip", "stall"])
async def test_slow_answers_are_cut_off(mode: str) -> None:
    with Receiver() as receiver:
        receiver.mode = mode
        with pytest.raises(HttpError, match=r"no answer within 0\.2 s") as failed:
            await asyncio.wait_for(post(client(), receiver.url(), timeout_s=0.2), 120)
        assert failed.value.timed_out


async def test_a_slow_body_ends_with_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "_REST_S", 1000)
    with Receiver() as receiver:
        receiver.mode = "stall-body"
        async with asyncio.timeout(120):
            assert (await post(client(), receiver.url(), timeout_s=2)).status == 202


async def test_an_answer_of_a_gigabyte() -> None:
    with Receiver() as receiver:
        receiver.mode = "huge"
        with pytest.raises(HttpError, match="longer than 4096 octets"):
            await post(client(), receiver.url(), answer_bytes_max=4096)
        answer = await post(client(), receiver.url())  # the body is not asked for
        assert (answer.status, answer.body) == (200, b"")
        receiver.mode = "huge-header"
        with pytest.raises(HttpError, match="no HTTP answer"):
            await post(client(), receiver.url())
        await asyncio.sleep(0)
    assert receiver.sent_bytes < 50_000_000  # buffers of the kernel


@each_row(
    "mode, why",
    [
        ("garbage", "no HTTP answer"),
        ("hang-up", "the host closed the connection without an answer"),
        ("informational", "more than 8 responses are informational"),
        ("extensions", "header and framing are longer than 65536 octets"),
    ],
)
async def test_what_is_no_answer(mode: str, why: str) -> None:
    with Receiver() as receiver:
        receiver.mode = mode
        with pytest.raises(HttpError, match=why):
            await post(client(), receiver.url(), answer_bytes_max=4096)


async def test_nothing_is_written_to_a_connection_that_the_host_has_closed() -> None:
    """A commit of the queue may come between the look whether it is open and the request."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    place = server.sockets[0].getsockname()
    async with server, asyncio.timeout(120):
        connection = await http_connection.open_http(
            *place, authority="a", host="a", context=None, timeout_s=60
        )
        await until(lambda: not connection.is_open)
        with pytest.raises(HttpError, match=r"the host closed the connection$") as failed:
            await connection.request("GET", "/", timeout_s=60, answer_bytes_max=0)
    assert not failed.value.may_have_arrived
