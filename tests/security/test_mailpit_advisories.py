"""One test for each published advisory of Mailpit: what was possible there is not possible here.

The advisories are at https://github.com/axllent/mailpit/security/advisories. Each test has the id
of its advisory as a parameter or in its name, and says what the fault was.
"""

import contextlib
import http.client
import io
import re
import socket
import struct
import threading
import zlib
from base64 import encodebytes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.dev_process import DevProcess
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess

MIB = 1 << 20
VIEWS = ("", "?show=text", "?show=headers", "?show=source", "?show=attachments", "?show=links")
PARTS = ("/html", "/text", "/headers", "/source", "/source?download=1", "/attachments/1")


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    """A development relay: its pages are open to this machine."""
    return dev_module("--no-demo")


@pytest.fixture(scope="module")
def small(serve_module) -> RelayProcess:
    """A service that takes messages of up to 1 MiB, with pages."""
    listener = {
        "listen": "127.0.0.1:0",
        "trusted_networks": ["127.0.0.1/32"],
        "max_message_size": "1 MiB",
    }
    config = {"smtp": [listener], "http": {"listen": ["127.0.0.1:0"], "pages": True}}
    return serve_module(config=config)


def sent(relay: DevProcess, html: str, *, sender: str = "app@example.test") -> str:
    """Send HTML to a captured recipient; return the queue id."""
    content = f"Subject: x\r\nContent-Type: text/html\r\n\r\n{html}\r\n".encode()
    key = relay.submit(sender, ["ann@customer.example"], content)
    relay.until_state(key, "captured")
    return key


def peak_kib(relay: RelayProcess) -> int:
    """The most memory that the relay's process has had."""
    status = Path(f"/proc/{relay.ready['pid']}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)
    assert found
    return int(found[1])


# -- cross-site requests


FOREIGN = (
    {"Origin": "http://evil.test"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "websocket", "Sec-Fetch-Dest": "websocket"},
    {"Host": "evil.test"},  # DNS rebinding
)


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda one: " ".join(one.values()))
def test_ghsa_524m_q5m7_79mm_no_other_site_reads_mail_or_follows_it(dev, headers):
    """CVE-2026-22689: any web page could open the WebSocket of events and read all mail."""
    key = sent(dev, "<p>secret")
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    for path in (
        "/",
        f"/messages/{key}",
        f"/messages/{key}/html",
        "/live",
        "/live/list",
        "/relay/v1/events",
        "/relay/v1/messages",
        f"/relay/v1/messages/{key}/source",
    ):
        for more in ({}, {"Accept": "text/event-stream"}, upgrade):
            answer = dev.request("GET", path, headers=headers | more)
            assert answer.status in (400, 403, 421), path
            assert b"secret" not in answer.body
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "segment", ["%6dessages", "MESSAGES", "messages/", "/messages", "./messages", "x/../messages"]
)
def test_ghsa_8r62_w5wh_fc5m_no_spelling_of_a_path_goes_around_the_check(dev, segment):
    """The check of the origin looked at the path before it was decoded, the routes after."""
    key = sent(dev, "<p>secret")
    for headers in FOREIGN:
        answer = dev.request("GET", f"/{segment}/{key}/html", headers=headers)
        assert answer.status >= 400
        assert b"secret" not in answer.body


# -- requests to other hosts


@contextlib.contextmanager
def internal_service() -> Iterator[tuple[int, list[str]]]:
    """A service of this machine that no mail may reach, by IPv4 and IPv6; yield its port and who came."""
    came: list[str] = []
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = first.getsockname()[1]
        listeners = [first]
        with contextlib.suppress(OSError):
            listeners.append(
                stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
            )

        def accept(listener: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, address = listener.accept()
                    came.append(str(address))
                    connection.close()

        threads = [threading.Thread(target=accept, args=(one,)) for one in listeners]
        for thread in threads:
            thread.start()
        try:
            yield port, came
            with socket.create_connection(("127.0.0.1", port)) as own:
                own.recv(1)  # it is closed when it was counted
            assert came.pop() != "", "the service sees who comes"
        finally:
            for listener in listeners:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


@pytest.mark.parametrize(
    "advisory",
    [
        pytest.param("link-check", id="GHSA-mpf7-p9x7-96r3 link check, CVE-2026-27808"),
        pytest.param("html-check", id="GHSA-6jxm-fv7w-rw5j HTML check, CVE-2026-23845"),
        pytest.param("html-check", id="GHSA-j3fj-qppj-fmmc HTML check again"),
        pytest.param("proxy", id="GHSA-8v65-47jx-7mfr screenshot proxy, CVE-2026-21859"),
        pytest.param(
            "link-check", id="GHSA-w4mc-hhc6-xp28 addresses in other forms, CVE-2026-55187"
        ),
    ],
)
def test_no_content_makes_the_relay_connect_to_another_host(dev, advisory):
    """The server fetched links, style sheets and images of a message, also from its own network."""
    with internal_service() as (port, came):
        hosts = (
            "127.0.0.1",
            "localhost",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "2130706433",
        )
        urls = [f"http://{host}:{port}/" for host in hosts]
        key = sent(
            dev,
            "".join(
                f'<a href="{url}">x</a><img src="{url}"><link rel=stylesheet href="{url}"><iframe src="{url}"></iframe>'
                f'<style>@import "{url}";p{{background:url({url})}}</style><p background="{url}" style="background:url({url})">'
                for url in urls
            ),
        )
        for path in (*VIEWS, *PARTS):
            assert dev.request("GET", f"/messages/{key}{path}").status in (200, 404), path
        for path in (
            f"/api/v1/message/{key}/{advisory}",
            f"/messages/{key}/{advisory}",
            f"/relay/v1/messages/{key}/{advisory}",
            f"/{advisory}?url={urls[0]}",
        ):
            answer = dev.request(
                "GET", path, headers={"Authorization": f"Bearer {dev.ready['token']}"}
            )
            assert answer.status == 404, path
        assert came == []


def test_ghsa_w4vj_r5pg_3722_many_readers_of_one_content_get_the_same(dev):
    """Concurrent requests wrote the same map while style sheets were rewritten: the server died."""
    key = sent(dev, "<style>p{color:red;background:url(http://a.test/)}</style><p>x" * 500)
    with ThreadPoolExecutor(16) as readers:
        answers = list(
            readers.map(lambda _: dev.request("GET", f"/messages/{key}/html"), range(48))
        )
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1


# -- names and addresses


HOSTILE_IDS = (
    "../../../../tmp/mailpit-was-here",
    "/etc/cron.d/x",
    "..\\..\\x",
    "a/../../b@c.test",
    "..",
    "%2e%2e%2fx",
    "x\x00y",
    "~/x",
    "-rf",
)


@pytest.mark.parametrize("name", HOSTILE_IDS)
def test_ghsa_qx5x_85p8_vg4j_no_id_and_no_name_of_a_message_is_a_path(dev, name):
    """`mailpit dump` wrote to DIRECTORY/ID.eml, with the id that the other side gave."""
    before = {path for path in dev.folder.rglob("*") if path.is_file()}
    plain = name.replace("\0", "")
    key = dev.submit(
        "app@example.test",
        ["ann@customer.example"],
        f"Subject: x\r\nMessage-ID: <{plain}>\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nt\r\n"
        f'--b\r\nContent-Type: image/png\r\nContent-Disposition: attachment; filename="{plain}"\r\n\r\ny\r\n--b--\r\n'.encode(),
    )
    dev.until_state(key, "captured")
    written = {path for path in dev.folder.rglob("*") if path.is_file()} - before
    mail = [
        path for path in written if path.suffix not in (".sqlite", ".sqlite-wal", ".sqlite-shm")
    ]
    assert mail
    for path in mail:
        assert re.fullmatch(r"[\w.,:=@+%-]+", path.name), path
        assert "mailpit" not in path.name
        assert path.resolve().is_relative_to(dev.folder.resolve())
    answer = dev.request("GET", f"/messages/{key}/attachments/1")
    named = re.search(r'filename="([^"]*)"', answer.headers["content-disposition"])
    assert named
    assert not set(named[1]) & set('/\\:*?"<>|%~\0')
    assert not named[1].startswith((".", "-"))
    for path in (
        f"/messages/{quote(name, safe='')}/source",
        f"/messages/{quote(name, safe='')}/attachments/1",
        f"/relay/v1/messages/{quote(name, safe='')}/source",
    ):
        found = dev.request("GET", path, headers={"Authorization": f"Bearer {dev.ready['token']}"})
        assert found.status in (200, 404)  # 200: it is the Message-ID of this message
        assert b"root:" not in found.body


class Wire:
    """An SMTP session in which a test sends any octets."""

    def __init__(self, relay: RelayProcess) -> None:
        self._socket = socket.create_connection(relay.smtp_address(), timeout=120)
        self._replies = self._socket.makefile("rb")
        self.reply()
        self.command(b"EHLO client.test")

    def send(self, octets: bytes) -> bool:
        """Return False if the other side has closed the connection."""
        try:
            self._socket.sendall(octets)
        except OSError:
            return False
        return True

    def reply(self) -> str:
        lines = []
        with contextlib.suppress(OSError):
            while line := self._replies.readline():
                lines.append(line.decode("utf-8", "replace"))
                if line[3:4] != b"-":
                    break
        return "".join(lines)

    def command(self, octets: bytes) -> str:
        self.send(octets + b"\r\n")
        return self.reply()

    def close(self) -> None:
        self._replies.close()
        self._socket.close()


@pytest.fixture
def wire(small: RelayProcess) -> Iterator[Wire]:
    made = Wire(small)
    yield made
    made.close()


@pytest.mark.parametrize(
    "injected",
    [
        b"\rX-Injected: 1",
        b"\nX-Injected: 1",
        b"\x00",
        b"\x0bX-Injected: 1",
        b"\x85X",
        b" X-Injected: 1\r",
    ],
)
@pytest.mark.parametrize("place", ["MAIL", "RCPT"])
def test_ghsa_54wq_72mp_cq7c_no_envelope_address_adds_a_header(small, wire, injected, place):
    """CVE-2026-23829: a CR in MAIL or RCPT became a line of the stored header."""
    sender = b"a" + (injected if place == "MAIL" else b"") + b"@example.test"
    recipient = b"alice" + (injected if place == "RCPT" else b"") + b"@example.test"
    first = wire.command(b"MAIL FROM:<" + sender + b">")
    if place == "MAIL":
        assert first.startswith("5"), first
        return
    assert first.startswith("250")
    assert wire.command(b"RCPT TO:<" + recipient + b">").startswith("5")


# -- sizes


def test_ghsa_fpxj_m5q8_fphw_data_has_a_limit(small, wire):
    """CVE-2026-45710: no limit on DATA and on the body of /api/v1/send."""
    assert wire.command(b"MAIL FROM:<app@example.test> SIZE=99999999999").startswith("552")
    before = peak_kib(small)
    assert wire.command(b"MAIL FROM:<app@example.test>").startswith("250")
    assert wire.command(b"RCPT TO:<alice@example.test>").startswith("250")
    assert wire.command(b"DATA").startswith("354")
    for _ in range(64):
        if not wire.send((b"x" * 62 + b"\r\n") * 16384):
            break
    wire.send(b".\r\n")
    assert wire.reply().startswith(("552", "421"))
    assert peak_kib(small) - before < 24 * 1024


def test_ghsa_r553_m4fv_5v97_one_line_of_data_has_a_limit(small, wire):
    """The limit on DATA was checked after a whole line, however long, was in memory."""
    before = peak_kib(small)
    assert wire.command(b"MAIL FROM:<app@example.test>").startswith("250")
    assert wire.command(b"RCPT TO:<alice@example.test>").startswith("250")
    assert wire.command(b"DATA").startswith("354")
    for _ in range(64):
        if not wire.send(b"x" * MIB):
            break
    wire.send(b"\r\n.\r\n")
    assert wire.reply().startswith(("552", "500", "550", "421"))
    assert peak_kib(small) - before < 24 * 1024


@pytest.mark.parametrize("start", [b"", b"MAIL FROM:<", b"NOOP ", b"AUTH PLAIN "])
def test_ghsa_w878_pj84_3j5v_a_command_line_has_a_limit(small, start):
    """CVE-2026-67445: a command was read up to its line end, however far that was."""
    before = peak_kib(small)
    wire = Wire(small)
    wire.send(start)
    for _ in range(64):
        if not wire.send(b"x" * MIB):
            break
    wire.send(b"\r\n")
    assert wire.reply()[:3] in ("500", "421", ""), "refused, or closed"
    wire.close()
    assert peak_kib(small) - before < 24 * 1024
    small.submit("app@example.test", ["alice@example.test"])


JSON_TYPE = "application/json"
FORM_TYPE = "application/x-www-form-urlencoded"
BODIES = [
    ("POST", "/v1.0/me/sendMail", JSON_TYPE),
    ("POST", "/v1.0/$batch", JSON_TYPE),
    ("POST", "/v1.0/me/messages", JSON_TYPE),
    ("PATCH", "/v1.0/me/messages/x", JSON_TYPE),
    ("POST", "/relay/v1/queue/hold", JSON_TYPE),
    ("POST", "/relay/v1/queue/release", JSON_TYPE),
    ("POST", "/relay/v1/storage/prune", JSON_TYPE),
    ("DELETE", "/relay/v1/messages", JSON_TYPE),
    ("POST", "/x/oauth2/v2.0/token", FORM_TYPE),
    ("POST", "/login", FORM_TYPE),
    ("POST", "/queue/hold", FORM_TYPE),
]


def test_ghsa_28pq_6qxg_wg5r_every_body_has_a_limit(small):
    """CVE-2026-48824: the limit on /api/v1/send was missing for the bodies of all other paths."""
    fields = f"Host: 127.0.0.1\r\nAuthorization: Bearer {OPERATOR}\r\nContent-Length: {1 << 40}"
    with contextlib.ExitStack() as opened:
        asked = {}
        for method, path, kind in BODIES:  # at once: each answer waits a second for the body
            asked[path] = opened.enter_context(socket.create_connection(small.http, timeout=120))
            head = f"{method} {path} HTTP/1.1\r\n{fields}\r\nContent-Type: {kind}\r\n\r\n"
            asked[path].sendall(head.encode())
        for path, connection in asked.items():
            status = int(connection.recv(4096)[9:12])
            assert status in (303, 404, 405, 413), f"{path}: refused before the body is read"


@pytest.mark.parametrize(
    ("path", "kind"), [("/relay/v1/queue/hold", JSON_TYPE), ("/login", FORM_TYPE)]
)
def test_ghsa_28pq_6qxg_wg5r_a_body_of_unknown_length_has_a_limit(small, path, kind):
    """CVE-2026-48824: millions of ids in one body took half a gigabyte."""
    before = peak_kib(small)
    connection = http.client.HTTPConnection(*small.http, timeout=120)
    body = (b'"xxxxxxxxxxxxxxxx",' * 3449 for _ in range(512))
    headers = {"Content-Type": kind, "Authorization": f"Bearer {OPERATOR}"}
    with contextlib.closing(connection):
        connection.request("POST", path, body, headers, encode_chunked=True)
        assert connection.getresponse().status in (411, 413)
    assert peak_kib(small) - before < 24 * 1024


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that needs gigabytes when it is decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    pixels = io.BytesIO()
    for _ in range(height):
        pixels.write(packer.compress(b"\0" * (width // 8 + 1)))
    pixels.write(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", pixels.getvalue())
        + chunk(b"IEND", b"")
    )


def test_ghsa_75mr_qw9x_3r39_images_are_never_decoded(dev):
    """CVE-2026-67446: a thumbnail decoded an image of any dimensions."""
    image = bomb(40_000, 40_000)
    assert len(image) < MIB
    content = (
        (
            b"Subject: x\r\nContent-Type: multipart/related; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n"
            b"<img src=cid:i>\r\n--b\r\nContent-Type: image/png\r\nContent-ID: <i>\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        )
        + encodebytes(image).replace(b"\n", b"\r\n")
        + b"--b--\r\n"
    )
    key = dev.submit("app@example.test", ["ann@customer.example"], content)
    dev.until_state(key, "captured")
    dev.request("GET", f"/messages/{key}?show=text")
    before = peak_kib(dev)
    for path in (*VIEWS, *PARTS, "/attachments/1/thumb", "/part/1/thumb"):
        answer = dev.request("GET", f"/messages/{key}{path}")
        assert answer.status in (200, 404)
    assert dev.request("GET", f"/messages/{key}/attachments/1").body == image
    assert peak_kib(dev) - before < 64 * 1024
