"""What rules send outside: its sender, and whose name a tenant may lend to the mail of strangers."""

import pytest

from relay.base.accounts.account import Account
from relay.base.message.lifecycle import RecipientState
from relay.base.message.srs import Srs
from relay.store.spool.types import NewMessage
from relay.transport.policy.rule_book import RuleBook, TenantRules
from relay.transport.policy.rule_files import read_rules
from relay.transport.routing.route_table import RouteTable
from tests.support.ingress import FakeAccounts, Relay
from tests.unit.transport.ingress.test_acceptance import TRUSTED, UNTRUSTED, accept, envelope

ANN, BOB, CAROL, EVE = "ann@far.test", "bob@own.test", "carol@acme.test", "eve@evil.test"
LENT = "550 5.7.1 From or Sender has a domain of this host"
DOMAINS = ("example.test", "own.test", "acme.test", "globex.test", "srs.test")


class People(FakeAccounts):
    """The alias "team", and people with addresses of one word in each domain."""

    def by_address(self, address):
        name, _, domain = address.partition("@")
        return Account(address) if domain in DOMAINS and name.isalpha() and name != "team" else None


class Sending(Relay):
    """A relay of several domains, of which two belong to tenants."""

    @property
    def router(self):
        return RouteTable((), DOMAINS, self.accounts)


def relay_with(folder, then: str, *, by: str = "acme", when: str = CAROL) -> Relay:
    """A relay with one rule, of a tenant or of the operator ("")."""
    rules = []
    for name in ("", "acme", "globex"):
        prefix = f"{name}/" if name else ""
        text = (
            f"[[rule]]\nname = '{prefix}r'\nwhen = {{ recipient = '{when}' }}\nthen = [ {then} ]\n"
        )
        (folder / "a.toml").write_text(text if name == by else "")
        rules.append(read_rules(folder))
    operator, *its = rules
    tenants = {
        name: TenantRules(name, frozenset([f"{name}.test"]), found)
        for name, found in zip(("acme", "globex"), its, strict=True)
    }
    return Sending(accounts=People(team=("z@away.test",)), rules=RuleBook(operator, tenants))


async def sent(
    relay: Relay, *to: str, sender: str = ANN, author: str = ANN, origin=UNTRUSTED
) -> NewMessage:
    content = f"From: {author}\r\nSubject: hello\r\n\r\nx\r\n".encode()
    found = await accept(relay, envelope(*to, sender=sender), origin, content)
    assert found.queue_id, found.reply
    return relay.spool.accepted[-1]


def copies(message: NewMessage) -> dict[str, str]:
    """The sender of each copy, "" for that of the message."""
    return {
        one.path.address: entry.extra.sender
        for entry in message.entries
        for one in entry.recipients
    }


def srs(relay: Relay, domain: str, sender: str = ANN) -> str:
    return relay.srs.rewritten(sender, domain, now_us=relay.clock.queue_us())


@pytest.mark.parametrize("action", ["redirect", "cc", "bcc"])
@pytest.mark.parametrize("by", ["", "acme"])
async def test_what_a_rule_sends_outside_has_a_sender_of_the_domain_it_acted_for(
    tmp_path, by, action
):
    relay = relay_with(tmp_path, f"{{ {action} = '{EVE}' }}", by=by)
    message = await sent(relay, BOB, CAROL)
    stays = {} if action == "redirect" else {CAROL: ""}
    assert copies(message) == {BOB: "", EVE: srs(relay, "acme.test")} | stays
    assert {entry.extra.delivered_to for entry in message.entries} == {""}
    report = await sent(relay, srs(relay, "acme.test"), sender="", author="x@evil.test")
    assert copies(report) == {ANN: ""}
    relay.srs = Srs(b"a key for tests", "srs.test")
    assert copies(await sent(relay, CAROL))[EVE].endswith("=far.test=ann@srs.test")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"sender": "", "author": ANN}, ""),
        ({"sender": BOB, "author": BOB, "origin": TRUSTED}, ""),
        ({"sender": BOB, "author": ANN}, "=own.test=bob@acme.test"),  # whom a stranger names
        ({"sender": ANN, "origin": TRUSTED}, "=far.test=ann@acme.test"),
    ],
)
async def test_the_null_sender_and_a_local_one_of_a_trusted_client_stay(tmp_path, more, expected):
    found = copies(await sent(relay_with(tmp_path, f"{{ redirect = '{EVE}' }}"), CAROL, **more))
    assert found[EVE].endswith(expected)
    assert bool(found[EVE]) == bool(expected)


@pytest.mark.parametrize(
    ("to", "more", "domain"),
    [
        (("team@example.test",), {}, "example.test"),  # an alias, which leads outside
        (("x@other.test", BOB), {"origin": TRUSTED}, "own.test"),
        (("x@other.test",), {"origin": TRUSTED}, ""),  # it is not for this relay at all
    ],
)
async def test_the_domain_is_a_local_one(tmp_path, to, more, domain):
    relay = relay_with(tmp_path, f"{{ bcc = '{EVE}' }}", by="", when="*")
    found = copies(await sent(relay, *to, **more))
    assert found[EVE] == (srs(relay, domain) if domain else "")


@pytest.mark.parametrize(
    "author", [BOB, "x@globex.test", f"{CAROL}, {BOB}", f"{ANN}\r\nSender: {BOB}"]
)
async def test_a_tenant_lends_no_name_of_others(tmp_path, author):
    relay = relay_with(tmp_path, f"{{ redirect = '{EVE}' }}")
    content = f"From: {author}\r\nSubject: hello\r\n\r\nx\r\n".encode()
    found = await accept(relay, envelope(CAROL, sender=ANN), UNTRUSTED, content)
    assert found.reply.startswith(LENT)
    assert relay.spool.accepted == []
    assert copies(await sent(relay, CAROL, author=author, origin=TRUSTED))[EVE]
    message = await sent(relay, CAROL, BOB, author=author)
    assert copies(message) == {BOB: ""}
    states = {one.path.address: one.state for one in message.final_recipients}
    assert states == {CAROL: RecipientState.FAILED, EVE: RecipientState.FAILED}


@pytest.mark.parametrize("then", ["cc = '{}'", "bcc = '{}'", "quarantine = '{}'"])
async def test_what_stays_is_delivered_and_the_other_copy_comes_to_the_postmaster(tmp_path, then):
    relay = relay_with(tmp_path, f"{{ {then.format(EVE)} }}")
    message = await sent(relay, CAROL, author=BOB)
    assert copies(message) == ({} if "quarantine" in then else {CAROL: ""})
    failed = message.final_recipients[-1]
    assert (failed.path.address, failed.reply[: len(LENT)]) == (EVE, LENT)
    [letter] = relay.spool.reports
    assert [*copies(letter)] == ["postmaster"]


@pytest.mark.parametrize(
    ("by", "then", "author"),
    [
        ("acme", f"{{ redirect = '{EVE}' }}", CAROL),  # its own name
        ("", f"{{ redirect = '{EVE}' }}", BOB),  # for the operator to decide
        ("acme", "{ redirect = 'x@globex.test' }", BOB),  # it does not leave
    ],
)
async def test_other_names_are_lent(tmp_path, by, then, author):
    message = await sent(relay_with(tmp_path, then, by=by), CAROL, author=author)
    assert not message.final_recipients[1:]
    assert len(copies(message)) == 1


async def test_a_redirect_of_which_a_part_stays_goes_on(tmp_path):
    relay = relay_with(tmp_path, f"{{ redirect = ['x@acme.test', '{EVE}'] }}")
    message = await sent(relay, CAROL, author=BOB)
    assert copies(message) == {"x@acme.test": ""}
    states = {one.path.address: one.state for one in message.final_recipients}
    assert states == {CAROL: RecipientState.REDIRECTED, EVE: RecipientState.FAILED}


async def test_a_name_that_the_rule_itself_writes_counts(tmp_path):
    then = f"{{ set_header = {{ name = 'From', value = '{BOB}' }} }}, {{ redirect = '{EVE}' }}"
    relay = relay_with(tmp_path, then)
    found = await accept(
        relay, envelope(CAROL, sender=ANN), UNTRUSTED, b"From: a@far.test\r\n\r\nx\r\n"
    )
    assert found.reply.startswith(LENT)
