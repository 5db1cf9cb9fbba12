"""What is slow is done for accounts in turn: the many requests of two delay no other account."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.graph_client import Answer
from tests.support.relay_config import DOMAIN, account
from tests.support.relay_process import RelayProcess

MANY, FEW = ("eve", "mallory"), ("alice", "bob")
CONNECTIONS = 20  # of each account that asks for much
ROW = "<tr><td><div><p>a<b>b</b>&amp;</p></div></td></tr>"
LARGE, SMALL = f"<table>{ROW * 2000}</table>", "<p>hello</p>"
AS_TEXT = {"Prefer": 'outlook.body-content-type="text"'}

Ask = Callable[[str], Answer]


@pytest.fixture(scope="module")
def relay(serve_module) -> RelayProcess:
    return serve_module(accounts=[account(name) for name in MANY])


@pytest.fixture(scope="module")
def asks(relay: RelayProcess) -> dict[str, Ask]:
    """What is slow for a large message, by its name."""
    paths, keys = {}, {}
    for name in MANY + FEW:
        body = {"contentType": "html", "content": LARGE if name in MANY else SMALL}
        draft = relay.graph("POST", "/me/messages", {"subject": "x", "body": body}, token=name)
        paths[name] = f"/me/messages/{draft.json()['id']}"
        keys[name] = relay.send_mail(token=name, to=[f"carol@{DOMAIN}"], body=body)
    return {
        "replies": lambda name: relay.graph(
            "POST", f"{paths[name]}/createReply", {"comment": "x"}, token=name
        ),
        "conversions": lambda name: relay.graph("GET", paths[name], token=name, headers=AS_TEXT),
        "checks": lambda name: relay.graph(
            "GET", f"/relay/v1/messages/{keys[name]}/checks", token=name
        ),
    }


@pytest.mark.parametrize("what", ["replies", "conversions", "checks"])
def test_requests_of_other_accounts_get_their_turn(asks, what: str) -> None:
    ask, stop, began = asks[what], threading.Event(), threading.Semaphore(0)
    answers = Counter[int]()

    def attack(name: str) -> None:
        while not stop.is_set():
            began.release()
            answers[ask(name).status] += 1

    def use(name: str) -> list[int]:
        return [ask(name).status for _ in range(3)]

    with ThreadPoolExecutor(len(MANY) * CONNECTIONS + len(FEW)) as threads:
        try:
            for name in MANY * CONNECTIONS:
                threads.submit(attack, name)
            for _ in range(len(MANY) * CONNECTIONS):
                assert began.acquire(timeout=60)
            used = [*threads.map(use, FEW)]
            done = answers.total()
        finally:
            stop.set()
    assert {*used[0], *used[1]} <= {200, 201}
    assert done < CONNECTIONS  # in the order of their arrival, each would wait for all of them
    assert answers.keys() <= {200, 201, 503}  # 503: one that waited for others of its account
