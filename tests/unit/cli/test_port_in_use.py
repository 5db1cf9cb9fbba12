"""A port in use: exit 69 and its name, for the service and the development relay."""

import socket
import subprocess
import sys

import pytest

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


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--config", "relay.toml"],
        ["dev", "--dir", "here", "--http", "127.0.0.1:{port}", "--smtp", "127.0.0.1:0"],
        ["dev", "--dir", "here", "--smtp", "127.0.0.1:{port}", "--http", "127.0.0.1:0"],
    ],
    ids=["serve", "dev http", "dev smtp"],
)
def test_a_port_in_use_is_named(tmp_path, arguments):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "relay.toml").write_text(CONFIG.format(port=port))
        (tmp_path / "accounts.toml").touch(0o600)
        (tmp_path / "rules").mkdir()
        command = [sys.executable, "-m", "relay", *(one.format(port=port) for one in arguments)]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 69, done.stderr
    assert "in use" in done.stderr.lower()
    assert "internal error" not in done.stderr
