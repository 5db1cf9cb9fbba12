"""Listeners on sockets of a service manager, as sd_listen_fds(3) says: this test is the manager."""

import http.client
import os
import shutil
import smtplib
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from tests.support.commands import run_command
from tests.support.relay_config import changed
from tests.support.relay_process import ROOT, RelayProcess, until

RESTARTS = 3
GATE = True


def listening(address: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((address, 0), backlog=128)


@pytest.fixture
def opened():
    """Sockets to close at the end."""
    sockets = []
    yield sockets
    for one in sockets:
        one.close()


@pytest.fixture
def relay(opened):
    made = RelayProcess(
        config={
            "http": {"listen": ["systemd:web"]},
            "smtp": [{"listen": "systemd:smtp", "trusted_networks": ["127.0.0.1/32"]}],
        }
    )
    opened += [listening() for _ in range(3)]
    made.sockets = list(zip(("smtp", "web", "smtp"), opened, strict=True))
    yield made
    made.close()


class Load:
    """Clients that connect again and again; `ends` counts how."""

    def __init__(self, ports: dict[str, list[int]]) -> None:
        self.ends: Counter[str] = Counter()
        self._over = threading.Event()
        works = {"smtp": self.smtp, "web": self.web}
        self._threads = [
            threading.Thread(target=self._repeat, args=(name, works[name], port))
            for name, its in ports.items()
            for port in its
        ]

    def __enter__(self):
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for one in self._threads:
            one.join(60)

    def _repeat(self, name, work, port) -> None:
        while not self._over.is_set():
            try:
                self.ends[name, work(port)] += 1
            except ConnectionRefusedError:
                self.ends[name, "refused"] += 1
            except (OSError, http.client.HTTPException, smtplib.SMTPException):
                self.ends[name, "ended"] += 1
            time.sleep(0.01)

    @staticmethod
    def smtp(port: int) -> int:
        with smtplib.SMTP("127.0.0.1", port, "client.test", 60) as session:
            return session.noop()[0]

    @staticmethod
    def web(port: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status
        finally:
            connection.close()


def test_no_connection_is_refused_in_restarts_under_load(relay):
    ports = {"smtp": [], "web": []}
    for name, one in relay.sockets:
        ports[name].append(one.getsockname()[1])
    relay.start()
    with Load(ports) as load:
        for _ in range(RESTARTS):
            assert relay.stop() == 0
            load.ends["smtp", 250] = load.ends["web", 200] = 0
            relay.start()
            until("served", lambda: load.ends["smtp", 250] and load.ends["web", 200])
    assert not load.ends["smtp", "refused"] + load.ends["web", "refused"], load.ends
    assert relay.ready["smtp"] == [f"127.0.0.1:{ports['smtp'][0]}"]
    assert relay.ready["http"] == [f"127.0.0.1:{ports['web'][0]}"]
    assert relay.faults() == []


def test_a_unix_socket_of_the_service_manager_is_not_removed(relay, opened):
    place = relay.folder / "web.sock"
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.append(unix)
    unix.bind(str(place))
    unix.listen()
    relay.sockets = [relay.sockets[0], ("web", unix)]
    relay.start()
    assert relay.ready["http"] == [f"unix:{place}"]
    assert relay.stop() == 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(60)
        client.connect(str(place))  # it waits for the next relay
        relay.start()
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_the_address_of_the_socket_decides_what_an_address_decides(relay, opened):
    opened += [listening("0.0.0.0") for _ in range(2)]
    offers = []
    for smtp in (opened[0], opened[-1]):
        relay.sockets = [("smtp", smtp), ("web", opened[1])]
        relay.start()
        with relay.smtp() as session:
            session.ehlo()
            offers.append(session.has_extn("auth"))
        relay.stop()
    assert offers == [True, False]
    relay.write_config(changed(relay.config, {"http": {"anonymous": "alice@example.test"}}))
    relay.sockets = [("smtp", opened[0]), ("web", opened[-2])]
    relay.start(wait=False)
    assert relay.wait_end() == 78
    assert "expected only loopback addresses in http.listen with anonymous" in relay.log


@pytest.mark.parametrize(
    ("sockets", "fault"),
    [
        (
            {},
            "cannot listen on systemd:{}: systemd gave this process no socket of this name (it gave: none)",
        ),
        ({"other": listening}, "systemd gave this process no socket of this name (it gave: other)"),
        (
            {"smtp": lambda: socket.socket(type=socket.SOCK_DGRAM), "web": listening},
            "cannot listen on systemd:smtp: found one that is not TCP or a Unix stream, expected ListenStream=",
        ),
        (
            {"smtp": socket.socket, "web": listening},
            "cannot listen on systemd:smtp: found one that does not listen",
        ),
    ],
    ids=["none", "another name", "datagram", "not listening"],
)
def test_sockets_that_cannot_be_used_end_the_start(relay, opened, sockets, fault):
    relay.sockets = [(name, make()) for name, make in sockets.items()]
    opened += [one for _, one in relay.sockets]
    relay.start(wait=False)
    assert relay.wait_end() == 69
    assert fault.format("web") in relay.log
    assert "Traceback" not in relay.log


def test_started_by_systemd_socket_activate(relay, opened):
    program = shutil.which("systemd-socket-activate")
    if program is None:
        assert not os.environ.get("CI"), "systemd-socket-activate is not installed"
        pytest.skip("systemd-socket-activate is not installed")
    ports = [one.getsockname()[1] for _, one in relay.sockets[:2]]
    for one in opened:
        one.close()
    environment = relay.environment
    command = [program, *(f"--listen=127.0.0.1:{port}" for port in ports), "--fdname=smtp:web"]
    command += [f"--setenv={name}={value}" for name, value in environment.items()]
    command += [sys.executable, "-m", "relay", "serve", "--config", str(relay.config_file)]
    with (relay.folder / "relay.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:

        def greeting() -> str:
            with socket.create_connection(("127.0.0.1", ports[0]), 60) as client:
                return client.recv(100).decode()

        def is_open() -> bool:
            try:
                return greeting().startswith("220 ")
            except ConnectionRefusedError:  # it does not listen yet
                return False

        until("greeted", is_open)
        assert Load.web(ports[1]) == 200
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_child_processes_get_neither_the_sockets_nor_the_variables():
    script = """
import json, os, subprocess, sys
from relay.base.socket_address import Address
from relay.base.settings.environment import take_sockets
from relay.base.settings.values import parse_listener
os.environ["LISTEN_PID"] = str(os.getpid())
take_sockets()
look = "import os; print([n for n in os.environ if n.startswith('LISTEN_')], os.path.exists('/proc/self/fd/3'))"
print(subprocess.run([sys.executable, "-c", look], close_fds=False, capture_output=True, text=True).stdout, end="")
print(parse_listener("systemd:web", None).host)
"""
    with listening("0.0.0.0") as one:
        got = run_command(
            [
                "/bin/bash",
                "-c",
                f'exec 3<&{one.fileno()}; exec "$0" -c "$1"',
                sys.executable,
                script,
            ],
            cwd=ROOT,
            pass_fds=[one.fileno()],
            check=True,
            env={"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web", "PATH": os.environ["PATH"]},
        )
    assert got.stdout.splitlines() == ["[] False", "0.0.0.0"]
