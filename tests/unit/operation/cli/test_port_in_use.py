"""A port in use: exit 69 and its name, for the service and the development relay."""

import socket

import pytest

from relay.development.verbs.dev_options import PORTS
from tests.support import relay_starts

CONFIG = """\
hostname = "relay.example.test"
state_dir = "state"
[http]
listen = ["127.0.0.1:{port}"]
[mailboxes]
accounts = "accounts.toml"
[policy]
directory = "rules"
"""


DEV = ("dev", "--dir", "here", *(f"--{name}=127.0.0.1:0" for name in PORTS))


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--config", "relay.toml"],
        *([*DEV, f"--{name}", "127.0.0.1:{port}"] for name in PORTS),
    ],
    ids=["serve", *PORTS],
)
def test_a_port_in_use_is_named(tmp_path, arguments):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "relay.toml").write_text(CONFIG.format(port=port))
        (tmp_path / "accounts.toml").touch(0o600)
        (tmp_path / "rules").mkdir()
        command = [*relay_starts.RELAY, *(one.format(port=port) for one in arguments)]
        environment = relay_starts.environment(tmp_path)
        done = relay_starts.run(command, cwd=tmp_path, env=environment, timeout_s=30)
    assert done.returncode == 69, done.stderr
    assert "in use" in done.stderr.lower()
    if arguments[0] == "dev":
        assert "; try --http 127.0.0.1:0 --https 127.0.0.1:0 --smtp 127.0.0.1:0 " in done.stderr
    assert "internal error" not in done.stderr
