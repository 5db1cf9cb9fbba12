"""What simulated hosts do: replies of the scenario, its limits, test recipients."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.development.internet.behaviour import Action, Moment
from relay.development.internet.scenario_file import parse_scenario
from relay.development.internet.scenario_state import ScenarioState
from tests.support.manual_clock import ManualClock

DOMAIN = '[[domain]]\nname = "example.org"\naliases = ["example.net"]\n'
MX = "mx1.example.org"


class Hosts:
    """Asks as the hosts of a scenario do."""

    def __init__(self, text: str = "") -> None:
        self.clock = ManualClock()
        self.state = ScenarioState(parse_scenario(text).scenario, self.clock)

    def at(self, stage: str, *recipients: str, host: str = MX, sender: str = "a@a.test", tls=False):
        one = recipients[0] if stage == "RCPT" else ""
        accepted = () if stage == "RCPT" else recipients
        moment = Moment(stage, host, tls=tls, sender=sender, recipient=one, recipients=accepted)
        return self.state.at(moment)

    def rcpt(self, recipient: str, **more) -> str:
        return self.at("RCPT", recipient, **more).reply


def rule(verb: str = "RCPT", **keys) -> str:
    lines = "".join(
        f'{key} = "{value}"\n' if isinstance(value, str) else f"{key} = {value}\n"
        for key, value in keys.items()
    )
    return f'[[domain.reply]]\nverb = "{verb}"\n{lines}'


def test_the_first_match_wins():
    hosts = Hosts(DOMAIN + rule(recipient="x*", reply="550 one") + rule(reply="551 two"))
    assert hosts.rcpt("x@example.org") == "550 one"
    assert hosts.rcpt("XY@example.net") == "550 one"
    assert hosts.rcpt("y@example.org") == "551 two"
    assert hosts.rcpt("x@example.com") == ""


def test_a_letter_beyond_ascii_is_another_user_as_at_real_hosts():
    hosts = Hosts(DOMAIN + rule(recipient="mike", reply="550 one"))
    assert hosts.rcpt("MIKE@example.org") == "550 one"
    assert hosts.rcpt("mi\N{KELVIN SIGN}e@example.org") == ""


def test_after_its_times_the_next_match_is_used():
    hosts = Hosts(DOMAIN + rule(reply="450 one", times=2) + rule(reply="451 two", times=1))
    replies = [hosts.rcpt("x@example.org") for _ in range(5)]
    assert replies == ["450 one", "450 one", "451 two", "", ""]
    used = [(one.entry, one.used, one.left) for one in hosts.state.used()]
    assert used == [("example.org: RCPT", 2, 0), ("example.org: RCPT", 1, 0)]


def test_senders_and_hosts_are_matched():
    hosts = Hosts(DOMAIN + rule("MAIL", sender="*@spam.test", host="mx1.*", reply="550 no"))
    assert hosts.at("MAIL", sender="a@spam.test").reply == "550 no"
    assert hosts.at("MAIL", sender="a@a.test") == Action()
    assert hosts.at("MAIL", sender="a@spam.test", host="mx1.other.test") == Action()
    assert Hosts(DOMAIN + rule("MAIL", sender="<>", reply="550 no")).at("MAIL", sender="").reply


def test_the_final_dot_is_refused_for_one_of_the_recipients():
    hosts = Hosts(DOMAIN + rule("DOT", recipient="x", reply="550 {recipient} from {sender_domain}"))
    assert hosts.at("DOT", "y@example.org") == Action()
    assert hosts.at("DOT", "x@example.com") == Action()
    assert (
        hosts.at("DOT", "y@example.org", "x@example.org").reply == "550 x@example.org from a.test"
    )


@pytest.mark.parametrize(
    ("kind", "stage", "recipients"),
    [
        ("connections", "BANNER", ()),
        ("messages", "MAIL", ()),
        ("recipients", "RCPT", ("x@example.org",)),
    ],
)
def test_a_limit_ends_when_time_has_passed(kind, stage, recipients):
    limit = f'[[domain.limit]]\n{kind} = "2/1m"\nreply = "421 4.7.28 too many"\n'
    hosts = Hosts(DOMAIN + limit)

    def replies(count):
        return [hosts.at(stage, *recipients).reply for _ in range(count)]

    assert replies(4) == ["", "", "421 4.7.28 too many", "421 4.7.28 too many"]
    hosts.clock.advance(59)
    assert replies(1) == ["421 4.7.28 too many"]
    hosts.clock.advance(1)
    assert replies(3) == ["", "", "421 4.7.28 too many"]


def test_greylisting_of_a_domain_remembers_who_has_passed():
    hosts = Hosts(DOMAIN + 'greylist = "1m"\n')
    assert hosts.rcpt("x@example.org").startswith("451 4.7.1 ")
    hosts.clock.advance(59)
    assert hosts.rcpt("x@example.org").startswith("451 4.7.1 ")
    hosts.clock.advance(1)
    assert hosts.rcpt("x@example.org") == ""
    assert hosts.rcpt("x@example.org") == ""
    assert hosts.rcpt("y@example.org").startswith("451 4.7.1 ")
    assert hosts.rcpt("x@example.org", sender="other@a.test").startswith("451 4.7.1 ")


@pytest.mark.parametrize(
    ("action", "word"), [("servfail", "SERVFAIL"), ("nxdomain", "NXDOMAIN"), ("stall", "TIMEOUT")]
)
def test_faults_of_the_name_server(action, word):
    state = Hosts(DOMAIN + rule("DNS", action=action, times=2)).state
    found = [(kind, state.dns("example.org", kind)) for kind in ("TXT", "MX", "A", "MX", "MX", "A")]
    assert found == [("TXT", word), ("MX", word), ("A", word), ("MX", word), ("MX", ""), ("A", "")]
    assert state.dns("example.com", "MX") == ""


# -- test recipients


def test_each_sender_and_recipient_has_a_count_of_its_own():
    hosts = Hosts()
    assert hosts.rcpt("x+451x1@other.test")
    assert hosts.rcpt("y+451x1@other.test")
    assert hosts.rcpt("x+451x1@other.test", sender="b@a.test")
    assert hosts.rcpt("X+451x1@other.test") == ""


def test_what_is_covered():
    state = Hosts(DOMAIN).state
    for address in (
        "x@example.org",
        "x@EXAMPLE.net",
        "x+550@other.test",
        "bounce@simulator.amazonses.com",
    ):
        assert state.covers(address)
    for address in ("x@other.test", "john1550@gmail.com", "x@sub.example.org", "bounce@gmail.com"):
        assert not state.covers(address)


def test_what_is_remembered_is_bounded():
    hosts = Hosts(DOMAIN + 'greylist = "1m"\n')
    for number in range(10_050):
        hosts.rcpt(f"{number}@example.org")
        hosts.rcpt(f"{number}+450x3@other.test")
    assert len(hosts.state._first_us) == 10_000
    assert len(hosts.state._refused) == 10_000


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "x+450x1", "x+grey"]), st.integers(0, 90)), max_size=40
    )
)
def test_the_same_events_give_the_same_replies(events):
    text = (
        "seed = 7\n"
        + DOMAIN
        + 'greylist = "30s"\n'
        + rule(recipient="a", chance=40, reply="450 a")
        + '[[domain.limit]]\nrecipients = "5/1m"\nreply = "451 slow"\n'
    )

    def run() -> list[str]:
        hosts = Hosts(text)
        replies = []
        for local, seconds in events:
            hosts.clock.advance(seconds)
            replies.append(hosts.rcpt(f"{local}@example.org"))
        return replies

    assert run() == run()
