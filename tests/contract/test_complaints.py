"""Complaints (RFC 5965): a row in the journey of their original, from which nothing follows."""

import pytest

from relay.base.clock import first_id_after
from relay.base.message.authentication_results import AuthResult, checks_of
from relay.base.message.outcome import Delivered, Evidence, Failed, Relayed
from relay.delivery.attempt_result import AttemptTime, result_of_attempt
from relay.delivery.provider_replies import ProviderReplies
from relay.delivery.retry import RetrySchedule
from relay.formats.read_report import RemoteClaim, RemoteReport
from relay.store.journeys.details import RoutedDetail
from relay.store.journeys.events import Event
from relay.store.journeys.journey import join
from relay.store.journeys.message_list import MessageSearch
from relay.store.spool.shared.traffic import BOUNCE_COUNTS, BOUNCES, TrafficCounter
from relay.store.spool.types import ClaimResult
from tests.support.operator import without_node
from tests.support.spools import changed_message

ALICE = "alice@example.test"
SCHEDULE = RetrySchedule((60,), lambda: 0.5)
COPIED = Delivered(Evidence("2.1.5", "250 2.1.5 ok", graph_id="l1"))


def outcome(status: str, reply: str = "", host: str = "mx.big.test"):
    evidence = Evidence(status, reply or f"550 {status} x", host, remote=True)
    return Relayed(evidence) if status.startswith("2") else Failed(evidence)


BOBS = {"reverse_path": "bob@example.test", "account": "bob@example.test"}
TO_JOE = {"outcomes": {"joe@b.test": outcome("2.0.0")}}


@pytest.fixture
def send(spool, make, clock):
    """Send a message to some recipients, each with an outcome; return its queue id."""

    async def send(outcomes=None, **changes) -> str:
        outcomes = outcomes or {"ann@big.test": outcome("2.0.0")}
        hops = {f"mx:{address.rpartition('@')[2]}": [address] for address in outcomes}
        accepted = await spool.accept(make(hops, **{"message_id": "<m@x>"} | changes))
        for claim in accepted.claims:
            known = {one.id: outcomes[one.path.address] for one in claim.recipients}
            time = AttemptTime(clock.queue_us(), clock.time_us(), 1.0)
            result = result_of_attempt(claim, known, time=time, schedule=SCHEDULE)
            await spool.record(result.commit)
        return accepted.queue_id

    return send


@pytest.fixture
def complain(spool, make):
    """Deliver a feedback report; `to` is () for the address of all complaints."""

    async def complain(kind="abuse", *named: str, to=(ALICE,), checks=(), **changes) -> None:
        claims = tuple(RemoteClaim(address, "", "complaint") for address in named)
        message_id = changes.pop("message_id", "<m@x>")
        about = RemoteReport("", message_id, "fbl.big.test", claims, kind)
        facts = {"reverse_path": "fbl@big.test", "account": "", "trusted": False} | changes
        carrier = make({"local": [ALICE]}, client="out.big.test [192.0.2.7]", **facts)
        results = [AuthResult(method, result) for method, result in checks]
        routed = Event(5, RoutedDetail(checks=checks_of(results)))
        (claim,) = (await spool.accept(changed_message(carrier, events=(routed,)))).claims
        await spool.record(ClaimResult(claim, 9, {1: COPIED}, remote_report=(about, to)))

    return complain


async def rows(spool, queue_id: str) -> list[dict]:
    journey = await spool.journey(queue_id)
    return [without_node(one.detail) for one in journey.steps if one.step == 7]


async def test_a_complaint_is_a_row_and_nothing_else(spool, send, complain) -> None:
    queue_id = await send({"ann@big.test": outcome("2.0.0"), "bob@b.test": outcome("5.1.1")})
    before = await spool.journey(queue_id)
    await complain("abuse", "Ann@BIG.test", checks=[("dmarc", "pass")])
    await complain("not-spam", "redacted@big.test", checks=[("spf", "fail")])
    after = await spool.journey(queue_id)
    assert (after.state, after.recipients) == (before.state, before.recipients)
    assert all(one.reported is None for one in join(None, after).recipients)
    row, other = await rows(spool, queue_id)
    source = {"client": "192.0.2.7", "reporting_mta": "fbl.big.test"}
    expected = {"kind": "complaint", "type": "abuse", "verdict": "pass", "source": source}
    assert row == expected | {"recipients": ["ann@big.test"], "received": row["received"]}
    kind = {"type": "not-spam", "verdict": "fail", "received": other["received"]}
    assert other == expected | kind
    assert (await spool.counts()).unaccounted == 0


@pytest.mark.parametrize(
    ("sent", "came", "joined"),
    [
        ([{}], {}, [1]),
        ([{"account": "eve@example.test", "reverse_path": "Alice@Example.test"}], {}, [1]),
        ([{}], {"to": ("bob@example.test",)}, [0]),
        ([{}], {"to": ()}, [1]),
        ([{"trusted": False, "account": ""}], {}, [0]),
        ([{"trusted": False, "account": ""}], {"to": ()}, [1]),
        ([{}, {}], {}, [0, 1]),
        ([{}, BOBS], {}, [1, 0]),
        ([{}, BOBS, {}], {"to": ()}, [0, 0, 1]),
        ([TO_JOE, {}, BOBS | TO_JOE], {"named": ["Joe@b.test"]}, [1, 0, 0]),
        ([{}, TO_JOE, {}], {"named": ["joe@b.test"], "to": ()}, [0, 1, 0]),
        ([{}, {}], {"named": ["joe@b.test"]}, [0, 1]),
        ([{}, {"trusted": False, "account": ""}], {}, [1, 0]),
        ([{"message_id": "<other@x>"}], {}, [0]),
        ([{"message_id": ""}], {"message_id": ""}, [0]),
    ],
)
async def test_the_one_original_of_who_got_the_report_is_found(
    spool, send, complain, sent, came, joined
) -> None:
    ids = [await send(**changes) for changes in sent]
    named, came = came.get("named", ()), {name: came[name] for name in came if name != "named"}
    await complain("abuse", *named, **came)
    assert [len(await rows(spool, one)) for one in ids] == joined


async def test_twenty_rows_are_kept_of_which_some_are_for_complaints(spool, send, complain) -> None:
    """A forged complaint does not hide that of another recipient."""
    queue_id = await send({"ann@a.test": outcome("2.0.0"), "joe@b.test": outcome("2.0.0")})
    for kind in ("auth-failure",) * 12 + ("fraud",) * 12:
        await complain(kind, "ann@a.test")
    await complain("abuse", "joe@b.test")
    kinds = [row["type"] for row in await rows(spool, queue_id)]
    assert kinds == ["auth-failure"] * 10 + ["fraud"] * 10 + ["abuse"]


async def test_what_came_back_is_listed_and_counted(spool, send, complain) -> None:
    """By domain and provider; what is no complaint is not."""
    both = {"ann@a.test": outcome("2.0.0"), "joe@b.test": outcome("2.0.0", host="mx.small.test")}
    first = await send(both, message_id="<1@x>")
    await complain("abuse", message_id="<1@x>")  # of whom, it does not say
    await complain("abuse", message_id="<1@x>")
    second = await send(both, message_id="<2@x>")
    for named in ("ann@a.test", "joe@b.test", "joe@b.test"):
        await complain("opt-out", named, message_id="<2@x>")
    for reply in (
        "550 5.1.10 x",
        "550 5.2.1 disabled",
        "550 5.2.1 receives mail at a rate that",
        "550 5.2.2 x",
        "550 5.7.1 listed by a DNSBL",
        "550 5.7.26 unauthenticated",
    ):
        bad = {"bad@a.test": outcome(reply.split()[1], reply)}
        await send(bad, message_id=f"<{reply}@x>")
    await complain("virus", "joe@b.test", message_id=f"<{reply}@x>")
    search = MessageSearch(has_complaint=True, kind="mail")
    page = await spool.find_page(search, account=None, before=None, limit=9)
    assert [one.queue_id for one in page.messages] == [second, first]
    counter = TrafficCounter(BOUNCES, ProviderReplies().provider_of, after=first_id_after(0))
    await spool.maintenance.count_traffic(counter)
    names = ("domain", "provider", *BOUNCE_COUNTS, "complaints_percent")
    found = [tuple(group[name] for name in names) for group in counter.bounces()]
    assert found == [
        ("a.test", "big.test", 2, 2, 2, 1, 1, 1, 50.0),
        ("b.test", "small.test", 2, 0, 0, 0, 0, 1, 50.0),
        ("", "", 0, 0, 0, 0, 0, 1, None),
    ]
    assert [*counter.bounces()[0]] == [*names]
