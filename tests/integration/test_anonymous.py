"""`[http] anonymous` in a running relay: requests without a token, pages of other sites, reloads."""

import http.client
import os
import signal
import socket

import pytest

from tests.support.relay_config import to_toml
from tests.support.relay_process import until

CONFIG = {"http": {"listen": ["127.0.0.1:0"], "anonymous": "bob@example.test"}}
FOREIGN = {"Origin": "http://evil.test", "Content-Type": "text/plain"}


def test_requests_without_a_token_are_those_of_the_account(serve) -> None:
    relay = serve(config=CONFIG)
    assert relay.graph("GET", "/me", token="").json()["mail"] == "bob@example.test"
    assert relay.graph("GET", "/me").json()["mail"] == "alice@example.test"
    key = relay.send_mail(token="", to=["carol@example.test"], subject="without a token")
    relay.until_final(key)
    assert relay.subjects("carol") == ["without a token"]
    refused = relay.graph("POST", "/me/sendMail", b"x", token="", headers=FOREIGN)
    assert (refused.status, refused.json()["error"]["code"]) == (403, "ErrorAccessDenied")
    assert relay.graph("GET", "/me", token="", headers={"Host": "evil.test"}).status == 401
    assert relay.subjects("bob", "Sent") == ["without a token"]

    # a reload with a role that the account must not have gives it none; one without it ends it
    accounts = relay.folder / "accounts.toml"
    for account, fault, statuses in (
        ({"address": "bob@example.test", "role": "operate"}, "the role user", (200, 403)),
        ({"address": "alice@example.test"}, "the address of an account", (401, 401)),
    ):
        accounts.write_text(to_toml({"account": [account]}))
        os.kill(relay.process.pid, signal.SIGHUP)
        until("the fault in the log", lambda text=fault: text in relay.log)
        paths = ("/me", "/relay/v1/queue")
        assert tuple(relay.graph("GET", path, token="").status for path in paths) == statuses


@pytest.mark.parametrize("path", ["/contoso/oauth2/v2.0/token", "/v1.0/uploads/x", "/readyz"])
def test_what_needs_no_token_refuses_pages_of_other_sites(path: str, relay) -> None:
    for headers in (FOREIGN, {"Sec-Fetch-Site": "cross-site"}):
        answer = relay.request("POST", path, b"grant_type=client_credentials", headers)
        assert answer.status == 403, answer.body
    assert relay.request("POST", path, b"x").status != 403


def test_the_metrics_listener_refuses_them_too(serve) -> None:
    with socket.socket() as free:  # the ready file has no address of this listener
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = CONFIG | {"observe": {"log": "json", "metrics": f"127.0.0.1:{port}"}}
    serve(config=config)
    for headers, status in (({}, 200), (FOREIGN, 403)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("GET", "/relay/v1/messages", headers=headers)
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (status, True)
        connection.close()
