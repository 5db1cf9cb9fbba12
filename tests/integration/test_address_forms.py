"""Who is meant by an address that a configuration or a command names, however it is spelled.

In own domains a rule, a route, an alias and a mailbox mean the person. A right to send as somebody
else, and a condition of a queue command, mean the address as it is written. Of other domains nothing
is known: tags are part of the address.
"""

from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.relay_config import DOMAIN, account
from tests.support.relay_process import OPERATOR, RelayProcess
from tests.support.tables import each_row

OWN = "xn--bcher-kva.test"
ANN, FAR, BOB = f"ann@{OWN}", "ann@far.test", f"bob@{DOMAIN}"
SPELLED = {
    "case": "ANN@XN--BCHER-KVA.TEST",
    "IDN": "ann@bücher.test",
    "tag": f"Ann+x@{OWN}",
    "twin": "ann@twin.test",
    "twin, tag": "ann+x@twin.test",
    "alias": f"al@{OWN}",
    "far": FAR,
    "far, case": "ANN@Far.test",
    "far, tag": "ann+x@far.test",
    "another": f"anne@{OWN}",
}
AS_WRITTEN = {"case", "IDN", "far", "far, case"}
ADDRESS = AS_WRITTEN | {"tag", "twin", "twin, tag"}
PERSON = ADDRESS | {"alias"}
FAR_AWAY = {"far", "far, case"}
NAMED = f"['{ANN}', '{FAR}']"
WHEN = {
    "sender": f"{{ sender = {NAMED} }}",
    "sender's group": "{ sender = 'group:her' }",
    "unless": f"{{ sender = '*' }}\nunless = {{ sender = {NAMED} }}",
    "From": f"{{ header_from = {NAMED} }}",
    "To": f"{{ to_or_cc = {NAMED} }}",
    "recipient": f"{{ recipient = {NAMED} }}",
    "recipient's group": "{ recipient = 'group:her' }",
}
Reader = Callable[[RelayProcess, str], bool]
RULE = "[[rule]]\nname = \"{}\"\nwhen = {}\nthen = [ {{ subject_prefix = '[x]' }} ]\n"
RATE = """[[rule]]
name = "rate"
when = { recipient = "carol@example.test" }
then = [ { rate_limit = { rate = "1/1h", per = "sender" } } ]
"""
ALIAS = f'[[alias]]\naddress = "list@{DOMAIN}"\nto = ["{BOB}"]\nfrom = ["{ANN}", "{FAR}"]\n'


@pytest.fixture(scope="module")
def relay(serve_module) -> RelayProcess:
    routes = [
        {"name": "to her", "domain": OWN, "recipient": ANN, "sender": "*@r.test"},
        {"name": "from her", "domain": "s.test", "sender": ANN},
        {"name": "waiting", "domain": OWN, "sender": "*@q.test"},
        {"name": "from far", "domain": "s.test", "sender": FAR},
        {"name": "rest", "domain": "*"},
    ]
    relay: RelayProcess = serve_module(
        start=False,
        config={
            "mailboxes": {"domains": [DOMAIN, OWN]},
            "domain": [{"name": "twin.test", "alias_of": OWN}],
            "route": [one | {"next_hop": "capture"} for one in routes],
        },
        accounts=[
            account("ann") | {"address": ANN, "aliases": [SPELLED["alias"]], "send_as": [FAR]},
            account("anne") | {"address": SPELLED["another"]},
            account("erin", send_as=[ANN, FAR]),
        ],
        policies={"10.toml": RATE + "".join(RULE.format(*one) for one in WHEN.items())},
    )
    with (relay.folder / "accounts.toml").open("a") as file:
        file.write(ALIAS)
    (relay.folder / "policies/groups").mkdir()
    (relay.folder / "policies/groups/her.txt").write_text(f"{ANN}\n{FAR}\n")
    return relay.start()


def reply(relay: RelayProcess, sender: str, to: str, *, login: str = "", header: str = "") -> str:
    """The last reply to a message: that to the final dot, or the one that refused it before."""
    with relay.smtp() as session:
        session.command_encoding = "utf-8"
        session.ehlo()
        if login:
            session.login(*login.split())
        code, text = session.docmd("MAIL", f"FROM:<{sender}>")
        code, text = session.docmd("RCPT", f"TO:<{to}>") if code == 250 else (code, text)
        code, text = session.data(f"{header}\r\n".encode()) if code == 250 else (code, text)
    return f"{code} {text.decode()}"


def steps_of(relay: RelayProcess, accepted: str) -> list[dict[str, Any]]:
    """What is known of a message, by the reply to it."""
    assert accepted.startswith("250 "), accepted
    return [step["detail"] for step in relay.journey(accepted.rpartition(" ")[2])["steps"]]


@cache
def rules_on(relay: RelayProcess, sender: str, to: str, header: str) -> set[str]:
    """The rules that match a message."""
    steps = steps_of(relay, reply(relay, sender, to, header=header))
    return {rule["rule"] for step in steps for rule in step.get("rules", ())}


def from_her(rule: str) -> Reader:
    def matches(relay: RelayProcess, address: str) -> bool:
        header = f"From: {address}\r\nTo: x@x.test, {address}\r\n"
        return rule in rules_on(relay, address, BOB, header)

    return matches


def to_her(rule: str) -> Reader:
    return lambda relay, address: rule in rules_on(relay, "x@x.test", address, "")


def is_limited(relay: RelayProcess, address: str) -> bool:
    """Whether the limit is used that ANN and FAR have used, each for itself."""
    for sender in (ANN, FAR, address):
        answer = reply(relay, sender, f"carol@{DOMAIN}")
    return answer.startswith("4")


def takes(login: str = "", to: str = BOB) -> Reader:
    return lambda relay, address: reply(relay, address, to, login=login).startswith("250")


def route(relay: RelayProcess, address: str, sender: str) -> str:
    query = f"/relay/v1/explain?address={quote(address)}&from={quote(sender)}"
    return relay.graph("GET", query, token=OPERATOR).json()["route"]["name"]


def listed(relay: RelayProcess, query: str) -> list[dict[str, Any]]:
    return relay.graph("GET", f"/relay/v1/queue?{query}", token=OPERATOR).json()


def selected_from(relay: RelayProcess, address: str) -> bool:
    mark = reply(relay, address, "x@q.test").rpartition(" ")[2]
    found = listed(relay, f"sender={quote('ann@bücher.test')}") + listed(relay, f"sender={FAR}")
    return mark in [one["id"] for one in found]


def selected_to(relay: RelayProcess, address: str) -> bool:
    mark = reply(relay, "x@q.test", address).rpartition(" ")[2]
    found = listed(relay, f"recipient={quote('ann@bücher.test')}") + listed(
        relay, f"recipient={FAR}"
    )
    return mark in [one["id"] for one in found]


READERS: dict[str, tuple[set[str], Reader]] = {
    "rule on a sender": (ADDRESS, from_her("sender")),
    "rule on a sender in a group": (ADDRESS, from_her("sender's group")),
    "rule but for a sender": (set(SPELLED) - ADDRESS, from_her("unless")),
    "rule on From": (ADDRESS, from_her("From")),
    "rule on To": (ADDRESS, from_her("To")),
    "rule on a recipient": (ADDRESS, to_her("recipient")),
    "rule on a recipient in a group": (ADDRESS, to_her("recipient's group")),
    "rate_limit": (ADDRESS, is_limited),
    "route by recipient": (
        ADDRESS - FAR_AWAY,
        lambda relay, one: route(relay, one, "x@r.test") == "to her",
    ),
    "route by sender": (
        ADDRESS | {"far, tag"},
        lambda relay, one: route(relay, "x@s.test", one).startswith("from"),
    ),
    "from of an alias": (PERSON, takes(to=f"list@{DOMAIN}")),
    "own login": (PERSON, takes(f"{ANN} ann")),
    "send_as": (AS_WRITTEN | {"twin"}, takes(f"erin@{DOMAIN} erin")),
    "queue by sender": (AS_WRITTEN, selected_from),
    "queue by recipient": (AS_WRITTEN | {"twin"}, selected_to),
}


@each_row("name", READERS)
def test_who_is_meant(relay: RelayProcess, name) -> None:
    meant, reader = READERS[name]
    found = {name for name, address in SPELLED.items() if reader(relay, address)}
    assert (meant - found, found - meant) == (set(), set())
