"""Scenarios of a development relay: by option, by request, in delivery and at the front door."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from relay.app.development import DevelopmentOptions, DevelopmentRelay
from relay.app.development_folder import open_folder
from relay.settings.document import SettingsError
from relay.settings.tree import Address
from tests.support.graph_client import message

SCENARIO = """\
# mine
[[domain]]
name = "shop.test"
[[domain.reply]]
verb = "RCPT"
recipient = "x"
reply = "550 5.1.1 gone"
times = 5
"""
LOCAL = Address("127.0.0.1", 0)


class Client(httpx.AsyncClient):
    async def send_to(self, *recipients: str, **more: dict[str, str]) -> httpx.Response:
        content = {"message": message(to=recipients)}
        return await self.post("/v1.0/me/sendMail", json=content, **more)

    async def recipients(self, answer: httpx.Response) -> dict[str, tuple[str, str]]:
        """State and reply by recipient, when the message has reached its end."""
        assert answer.status_code == 202, answer.text
        path = f"/relay/v1/messages/{answer.headers['x-relay-message-id']}/wait"
        found = await self.get(path, params={"state": "final", "timeout": "20"})
        assert found.status_code == 200, found.text
        return {one["address"]: (one["state"], one["reply"]) for one in found.json()["recipients"]}


@pytest.fixture
def running(short_path: Path) -> Callable[..., object]:
    @asynccontextmanager
    async def run(*scenarios: str) -> AsyncIterator[Client]:
        options = DevelopmentOptions(http=LOCAL, https=LOCAL, smtp=LOCAL, scenarios=scenarios)
        relay = DevelopmentRelay(open_folder(short_path / "dev"), options)
        try:
            await relay.start()
            url = f"http://{relay.addresses.http}"
            headers = {"authorization": "Bearer alice"}
            async with Client(base_url=url, headers=headers, trust_env=False, timeout=30) as client:
                yield client
        finally:
            await relay.stop()

    return run


async def test_a_scenario_given_at_the_start(running, tmp_path):
    (tmp_path / "mine.toml").write_text(SCENARIO)
    async with running("gmail:5.1.1", f"{tmp_path}/mine.toml") as client:
        answer = await client.send_to("anyone@gmail.com", "x@shop.test")
        found = await client.recipients(answer)
        assert found["x@shop.test"] == ("failed", "550 5.1.1 gone")
        state, reply = found["anyone@gmail.com"]
        assert state == "failed"
        assert reply.startswith(
            "550 5.1.1 The email account that you tried to reach does not exist."
        )


def test_a_faulty_scenario_at_the_start_is_an_error(short_path):
    options = DevelopmentOptions(http=LOCAL, https=LOCAL, smtp=LOCAL, scenarios=("gmial",))
    with pytest.raises(SettingsError, match="found no scenario of this name"):
        DevelopmentRelay(open_folder(short_path / "dev"), options)


async def test_faults_of_the_front_door(running, tmp_path):
    faults = """
[[graph]]
path = "*/sendMail"
status = 429
retry_after = 1
times = 1
[[graph]]
path = "*/sendMail"
account = "alice@*"
status = 504
times = 1
"""
    (tmp_path / "faults.toml").write_text(faults)
    async with running(f"{tmp_path}/faults.toml") as client:
        first = await client.send_to("bob@example.test")
        assert (first.status_code, first.headers["retry-after"]) == (429, "1")
        second = await client.send_to("bob@example.test")
        assert second.status_code == 504
        assert (await client.get("/v1.0/me/messages")).status_code == 200
        # what SDKs do after a 504: the message is not sent a second time
        third = await client.send_to("bob@example.test", headers={"retry-attempt": "1"})
        assert (await client.recipients(third))["bob@example.test"][0] == "delivered"
        inbox = await client.get(
            "/v1.0/me/mailFolders/inbox/messages", headers={"authorization": "Bearer bob"}
        )
        assert len(inbox.json()["value"]) == 1
