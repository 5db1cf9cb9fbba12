"""A relay with HTTPS for Graph's own client libraries, and a mailbox of its own for each test.

What is not installed skips its tests: `make clients` installs everything.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import run_command
from tests.support.faulty_proxy import FaultyProxy
from tests.support.receiver import Receiver
from tests.support.relay_config import account
from tests.support.relay_process import ROOT, RelayProcess, until
from tests.support.remote_mx import Envelope, RemoteMx
from tests.support.remotes import Remotes, received
from tests.support.subscribers import LOOPBACK, local_receiver, trusting
from tests.support.tls import Authority, authority

__all__ = ["authority"]

INSTALLED = ROOT / ".clients"
SECRET = "plain:s3cret"
_SINK = "sink.test"
_USERS = [f"user{number:03}" for number in range(200)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "clients" in item.path.parts:
            # The libraries' own deprecations are none of the relay's.
            item.add_marker(pytest.mark.filterwarnings("default"), append=False)


def node(package: str = "") -> str:
    """Where Node is; skips the test without it or an npm package."""
    found = shutil.which("node")
    if found is None or not (INSTALLED / "node_modules" / package).is_dir():
        pytest.skip("node and its packages are not installed: make clients")
    return found


def run(command: Sequence[str], folder: Path, **environment: str) -> str:
    """Run a program, which finds npm packages and must end with 0; return what it prints."""
    kept = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
    kept["NODE_PATH"] = str(INSTALLED / "node_modules")
    done = run_command(command, cwd=folder, env=kept | environment)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class ServedRelay:
    """A relay, its HTTPS URL, and the CA of its certificate. All mail for sink.test arrives at `sink`.

    Requests to `proxy` get the faults that a test asks for; `receiver` takes notifications.
    """

    relay: RelayProcess
    url: str
    ca: Path
    sink: RemoteMx
    proxy: FaultyProxy
    receiver: Receiver
    _unused: list[str] = field(default_factory=lambda: list(reversed(_USERS)))

    def new_user(self) -> "User":
        """An account that no other test has; its token is its name."""
        return User(self, self._unused.pop())


@dataclass(frozen=True)
class User:
    """An account, and the address at the sink to which only its test sends."""

    served: ServedRelay
    name: str

    @property
    def address(self) -> str:
        return f"{self.name}@example.test"

    @property
    def client_id(self) -> str:
        """The client id of the account; all secrets are the same."""
        return f"{self.name}-id"

    @property
    def sink(self) -> str:
        return f"{self.name}@{_SINK}"

    def arrived(self, address: str = "") -> Envelope:
        """Wait for the only message to `address`, else to `sink`."""
        return received(self.served.sink, address or self.sink)

    def arrivals(self, address: str = "") -> int:
        """How many messages to `address`, else to `sink`, arrived so far."""
        return len(self.served.sink.received(address or self.sink))

    def sent(self) -> list[dict[str, Any]]:
        """The messages in Sent Items, when one is there and the queue has all that were submitted."""
        pending = self.served.relay.pending_submissions
        until("one is filed", lambda: self.messages("sentitems") and not pending())
        return self.messages("sentitems")

    def get(self, path: str) -> Any:
        """GET a path below /me."""
        answer = self.served.relay.graph("GET", f"/me{path}", token=self.name)
        assert answer.status == 200, f"{path}: {answer.status} {answer.body!r}"
        return answer.json()

    def messages(self, folder: str) -> list[dict[str, Any]]:
        """A folder's messages."""
        return self.served.relay.messages(folder, token=self.name)


@pytest.fixture(scope="session")
def served(authority: Authority) -> Iterator[ServedRelay]:
    certificate = authority.issue("DNS:localhost", "IP:127.0.0.1")
    with Remotes() as remotes, FaultyProxy(certificate.server_context()) as proxy:
        sink = remotes.start(_SINK)
        tls = {"certificate": certificate.certificate, "key": certificate.key}
        config = {
            "http": {
                "listen": ["http://127.0.0.1:0", "127.0.0.1:0"],
                "tls": tls,
                **LOOPBACK["http"],
            }
        }
        accounts = [account(name, client_id=f"{name}-id", client_secret=SECRET) for name in _USERS]
        accounts.append(
            account("app", client_id="app-id", client_secret=SECRET, acts_for=["*@example.test"])
        )
        options = {"config": config, "accounts": accounts, "environment": trusting(authority)}
        with remotes.relay(**options) as relay, local_receiver(authority) as receiver:
            proxy.upstream = relay.http
            url = f"https://localhost:{relay.ready['https'][0].rpartition(':')[2]}"
            yield ServedRelay(relay, url, authority.certificate, sink, proxy, receiver)


@pytest.fixture
def user(served: ServedRelay) -> User:
    return served.new_user()


@pytest.fixture(autouse=True)
def trust(served: ServedRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the libraries trust the certificate, as users do: by the environment."""
    monkeypatch.setenv("SSL_CERT_FILE", str(served.ca))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(served.ca))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@dataclass(frozen=True)
class JavaScript:
    """Node, with the npm packages of package.json."""

    node: str
    served: ServedRelay
    folder: Path

    def run(self, program: str, *, token: str = "", url: str = "") -> Any:
        """Run the body of an async function with a Graph `client`; return what it returns, by JSON."""
        path = self.folder / "program.js"
        path.write_text(_PROLOGUE + program + _EPILOGUE)
        printed = run(
            [self.node, str(path)],
            self.folder,
            NODE_EXTRA_CA_CERTS=str(self.served.ca),
            RELAY_URL=url or self.served.url,
            RELAY_TOKEN=token,
        )
        return json.loads(printed or "null")


_PROLOGUE = """\
const graph = require('@microsoft/microsoft-graph-client');
const client = graph.Client.initWithMiddleware({
  baseUrl: process.env.RELAY_URL + '/', customHosts: new Set(['localhost', '127.0.0.1']),
  authProvider: { getAccessToken: async () => process.env.RELAY_TOKEN },
});
const failure = async (promise) => promise.then(
  () => null,
  (e) => ({ statusCode: e.statusCode, code: e.code, message: e.message, requestId: e.requestId }),
);
(async () => {
"""
_EPILOGUE = """
})().then(
  (result) => console.log(JSON.stringify(result === undefined ? null : result)),
  (error) => { console.error(error); process.exit(1); },
);
"""


@pytest.fixture
def javascript(served: ServedRelay, tmp_path: Path) -> JavaScript:
    return JavaScript(node(), served, tmp_path)
