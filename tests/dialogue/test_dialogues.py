"""Run every script in this folder against a real listener."""

import asyncio
import contextlib
import socket
import ssl
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import pytest

from relay.base.certificates import ServerCertificate
from relay.base.message.content import read_all
from relay.base.pressure import PressureState
from relay.base.settings.tree import SmtpListener
from relay.base.socket_address import Address
from relay.operation.app.transport import setup_of
from relay.store.spool.types import SpoolFullError, SpoolUnavailableError
from relay.transport.gate.keeper import GateKeeper
from relay.transport.gate.wire import LoadState
from relay.transport.ingress.session_limits import SessionLimits
from tests.dialogue.script import Action, Script, octets, over_bdat, read_script
from tests.support.ingress import Relay, make_certificate

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))
OF_ONE_COMMAND = ("bdat", "bdat_refused", "bare_newline", "ahead", "ahead_allowed", "ahead_login")
WITH_DATA = [
    path
    for path in SCRIPTS
    if "C: DATA\n" in path.read_text("utf-8") and path.stem not in OF_ONE_COMMAND
]
OTHER_LIMITS = ("junk", "auth_token", "large", "auth_failures", "auth_token_failures", "max_rate")
PATIENCE_S = 120.0
WORDS = ("role", "bare_newline", "max_rate_per_client")
FAULTS = {
    "broken": RuntimeError("secret detail"),
    "full": SpoolFullError("secret detail"),
    "unavailable": SpoolUnavailableError("secret detail"),
}


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
async def test_dialogue(path: Path, certificate):
    await play(read_script(path), certificate)


@pytest.mark.parametrize("path", WITH_DATA, ids=lambda path: path.stem)
async def test_a_dialogue_of_data_is_the_same_over_bdat(path: Path, certificate):
    script = read_script(path)
    script.listener["bare_newline"] = "reject"
    over_bdat(script)
    assert all(action.text.upper() != "DATA" for action in script.actions)
    await play(script, certificate)


async def play(script: Script, certificate) -> None:
    """Raises AssertionError that names the line of the script."""
    relay, limits, listener = parts_of(script, certificate)
    server = relay.server(limits=SessionLimits(**limits), **listener)
    async with asyncio.timeout(PATIENCE_S):
        await server.start()
        try:
            await converse(script, relay, server.address)
        finally:
            await server.drain(0.5)


def parts_of(script: Script, certificate) -> tuple[Relay, dict, dict]:
    """Returns the relay of a script, the limits of its sessions, and the listener's settings."""
    options = dict(script.listener)
    relay = Relay()
    relay.spool.fault = FAULTS.get(options.pop("spool", ""))
    trusted = options.pop("trusted", "yes")
    networks = {"no": (), "yes": ("127.0.0.0/8",)}.get(trusted, (trusted,))
    proxies = ("127.0.0.1/32",) if options.pop("proxy", "") else ()
    limits = {"auth_failure_delay_s": 0.01, "last_reply_s": 0.2}
    for key in [key for key in options if key.startswith("limits.")]:
        limits[key.removeprefix("limits.")] = int(options.pop(key))
    tls = certificate if options.pop("tls", "") else None
    listener = {"trusted_networks": networks, "proxy_networks": proxies, "tls": tls}
    if place := options.pop("listen", ""):
        listener["listen"] = Address(place, 0)
    changes = {key: value if key in WORDS else int(value) for key, value in options.items()}
    return relay, limits, listener | changes


async def test_dialogues_through_the_gate(certificate):
    """All at the same time, with one child, which has the limits of sessions that a service has."""
    scripts = [read_script(path) for path in SCRIPTS if path.stem not in OTHER_LIMITS]
    played, listeners = [], []
    keeper = GateKeeper(
        words=("logfmt", "", "", "", ""),
        setup=lambda: setup_of("relay.example.test", listeners),
        load=lambda: LoadState(PressureState(), paused=""),
    )
    for number, script in enumerate(scripts):
        relay, _, changes = parts_of(script, certificate)
        tls = changes["tls"]
        server = relay.server(elsewhere=partial(keeper.hand_on, number), **changes)
        shown = ServerCertificate(tls.certificate, tls.key) if tls else None
        listeners.append((SmtpListener(**{"listen": Address("127.0.0.1", 0)} | changes), shown))
        played.append((server, script, relay))
    await keeper.start()
    try:
        for server, _, _ in played:
            await server.start()
        talks = [converse(script, relay, server.address) for server, script, relay in played]
        faults = await asyncio.gather(*talks, return_exceptions=True)
        assert [fault for fault in faults if fault] == []
        assert len(faults) > 25
    finally:
        for server, _, _ in played:
            server.stop_listening()
        await keeper.drain(0.5)


async def connected(address: Address, octets: bytes = b""):
    """Connect and send before the event loop runs, so that the server has not seen the client."""
    client = socket.create_connection((address.host, address.port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(octets)
    return await asyncio.open_connection(sock=client)


async def converse(script: Script, relay: Relay, address: Address) -> None:
    """Raises AssertionError that names the line."""
    opened, unsent = [], b""
    try:
        for action in script.actions:
            where = f"{script.name}.txt:{action.number}"
            if action.kind == "CONNECT" or not opened:
                early = octets(action.text) if action.kind == "CONNECT" else b""
                opened.append(await connected(address, early))
            if action.kind in "CR":
                unsent += octets(action.text) + (b"\r\n" if action.kind == "C" else b"")
                continue
            if unsent:
                opened[-1][1].write(unsent)
                unsent = b""
            await check(action, relay, *opened[-1], where=where)
    finally:
        for _, writer in opened:
            writer.close()
    assert not unsent, "the script ends with lines without a reply"


async def check(action: Action, relay: Relay, reader, writer, *, where: str) -> None:
    match action.kind:
        case "S":
            said = (await asyncio.wait_for(reader.readline(), PATIENCE_S / 2)).decode()
            assert said.endswith("\r\n"), f"{where}: the server said {said!r} and closed"
            assert fnmatchcase(said[:-2], action.text.replace("[", "[[]")), f"{where}: {said!r}"
        case "TLS":
            await writer.start_tls(_trusting_context())
        case "END":
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read(1) == b"", f"{where}: the connection is still open"
        case "ADVANCE":
            relay.clock.advance(int(action.text))
        case "ACCEPTED":
            assert len(relay.spool.accepted) == int(action.text), where
        case "CONTENT":
            content = read_all(relay.spool.accepted[-1].contents[0])
            assert octets(action.text) in content, f"{where}: {content!r}"


def _trusting_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
