"""SRS: addresses there and back, other case, forgeries, age, and lengths."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from relay.base.message.address import AddressError, parse_mailbox, to_ascii_domain
from relay.base.message.srs import Srs, SrsError, is_srs
from tests.support.tables import each_row

DAY_US = 86_400_000_000
NOW_US = 20_779 * DAY_US + 5
HERE = "relay.test"
SRS = Srs(b"a key for tests")
OTHER = Srs(b"the key of another forwarder")

_ATOM = "abcXYZ019!#$%&'*+/=?^_`{|}~-"
_atoms = st.text(_ATOM, min_size=1, max_size=20)
_dotted = st.lists(_atoms, min_size=1, max_size=3).map(".".join)
_quoted = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
_hosts = st.sampled_from(
    ["example.org", "a.b.example.co.test", "[192.0.2.1]", "[IPv6:2001:db8::1]", "x"]
)


def sender_of(local_part: str, host: str) -> str:
    """Return a sender as MAIL FROM has it."""
    if '"' in local_part or "\\" in local_part:
        local_part = local_part.replace("\\", "\\\\").replace('"', '\\"')
    try:
        return parse_mailbox(f'"{local_part}"@{host}')
    except AddressError:
        assume(False)
        raise


senders = st.builds(sender_of, st.one_of(_dotted, _quoted), _hosts)


def there(sender: str, *, srs: Srs = SRS, domain: str = HERE, now_us: int = NOW_US) -> str:
    return srs.rewritten(sender, domain, now_us=now_us)


def back(address: str, *, srs: Srs = SRS, now_us: int = NOW_US) -> str:
    return srs.original(address, now_us=now_us)


def test_srs0_has_hash_day_domain_and_local_part() -> None:
    address = there("Ann@example.org")
    tag, found, stamp, host, rest = address.split("=")
    assert (tag, stamp, host, rest) == ("SRS0", "JL", "example.org", f"Ann@{HERE}")
    assert len(found) == 10
    assert set(found) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")


def test_srs1_keeps_the_address_of_the_first_forwarder_and_names_it() -> None:
    first = there("ann@example.org", srs=OTHER, domain="first.test")
    second = there(first)
    tag, found, rest = second.split("=", 2)
    assert (tag, len(found)) == ("SRS1", 10)
    assert rest == f"first.test={first.removeprefix('SRS0').removesuffix('@first.test')}@{HERE}"
    third = Srs(b"third").rewritten(second, "third.test", now_us=NOW_US)
    assert third.split("=", 2)[2] == rest.replace(HERE, "third.test")  # it does not grow
    assert back(second) == first
    assert Srs(b"third").original(third, now_us=NOW_US) == first
    assert back(first, srs=OTHER) == "ann@example.org"


@pytest.mark.parametrize("separator", ["+", "-", "="])
def test_what_other_programs_write_becomes_srs1(separator: str) -> None:
    first = f"srs0{separator}Hs7q=3X=example.org=ann@first.test"
    assert there(first).startswith("SRS1=")
    assert back(there(first)) == first.replace("srs0", "SRS0")
    next_one = f"SRS1{separator}abcd=first.test={separator}Hs7q=3X=example.org=ann@second.test"
    assert back(there(next_one)) == f"SRS0{separator}Hs7q=3X=example.org=ann@first.test"


@pytest.mark.parametrize(
    "sender",
    ["SRS1=a@b.test", "SRS1=a=b.test=c@d.test", '"SRS1=a=b..test==c"@d.test', "SRS2=a@b.test"],
)
def test_what_only_resembles_an_address_of_a_forwarder_is_a_sender_like_any_other(
    sender: str,
) -> None:
    assert there(sender).startswith(("SRS0=", '"SRS0='))
    assert back(there(sender)) == sender


@given(senders)
@example('"a b"@example.org')
@example('""@example.org')
@example(r'"\"\\"@example.org')
@example("a=b+c@example.org")
def test_an_address_leads_back_to_its_sender(sender: str) -> None:
    address = there(sender)
    assert is_srs(address)
    assert parse_mailbox(address) == address
    assert back(address) == sender
    if not is_srs(sender):
        assert back(address.lower()).lower() == sender.lower()
        assert back(address.upper()).lower() == sender.lower()


@given(senders, st.sampled_from(["first.test", "a.b.test"]))
def test_the_address_of_another_forwarder_leads_back_to_it(sender: str, domain: str) -> None:
    first = there(sender, srs=OTHER, domain=domain)
    second = there(first)
    assert parse_mailbox(second) == second
    for written in (second, second.lower(), second.upper()):
        found = back(written)
        assert found.lower() == first.lower()
        assert back(found, srs=OTHER).lower() == sender.lower()


@pytest.mark.parametrize("sender", ["jürgen@example.org", "ann@bücher.example", "用户@例え.テスト"])
def test_a_sender_beyond_ascii_is_rewritten_with_the_domain_of_the_dns(sender: str) -> None:
    address = there(sender)
    local_part, _, domain = sender.rpartition("@")
    assert back(address) == f"{local_part}@{to_ascii_domain(domain)}"
    assert there("ann@bücher.example").isascii()


@given(senders, st.data())
def test_one_other_character_is_refused(sender: str, data: st.DataObject) -> None:
    address = there(data.draw(st.sampled_from([sender, there(sender, srs=OTHER, domain="b.test")])))
    position = data.draw(st.integers(0, len(address) - 1))
    other = data.draw(
        st.characters(min_codepoint=33, max_codepoint=126) | st.sampled_from("\u212a\u017f\u0130ß")
    )
    assume(other.lower() != address[position].lower() or not other.isascii())
    changed = address[:position] + other + address[position + 1 :]
    try:
        changed = parse_mailbox(changed, smtputf8=True)
    except AddressError:
        return
    if is_srs(changed) and changed != address:
        with pytest.raises(SrsError, match="forged"):
            back(changed)


@each_row("cut", ["SRS0=", "SRS0=A=B=c", "SRS1=", "SRS1=ABCDEFGHIJ", "SRS1=A=b.test"])
def test_too_few_parts_are_refused(cut: str) -> None:
    with pytest.raises(SrsError, match="forged"):
        back(f"{cut}@{HERE}")


def test_a_cut_hash_is_refused() -> None:
    for sender in ("ann@example.org", there("ann@example.org", srs=OTHER, domain="b.test")):
        tag, found, rest = there(sender).split("=", 2)
        for length in range(10):
            with pytest.raises(SrsError, match="forged"):
                back(f"{tag}={found[:length]}={rest}")


def test_the_address_of_another_key_or_domain_is_refused() -> None:
    address = there("ann@example.org")
    for forged in (there("ann@example.org", srs=OTHER), address.replace(HERE, "other.test")):
        with pytest.raises(SrsError, match="forged"):
            back(forged)


@pytest.mark.parametrize("first", [NOW_US, 1023 * DAY_US, 1024 * DAY_US])
def test_an_address_is_valid_for_21_days_and_a_clock_may_be_set_back_by_one(first: int) -> None:
    other = there("ann@example.org", srs=OTHER, domain="b.test")
    for sender in ("ann@example.org", other):
        address = there(sender, now_us=first)
        for days in range(-1, 22):
            assert back(address, now_us=first + days * DAY_US) == sender
        for days in (-2, 22, 23, 500, 1000):
            with pytest.raises(SrsError, match="older than 21 days"):
                back(address, now_us=first + days * DAY_US)


def test_a_path_never_becomes_longer_than_256_octets() -> None:
    domain = ".".join(["d" * 48] * 3) + ".test"
    for length in range(1, 65):
        sender = f"{'a' * length}@{domain}"
        address = there(sender)
        assert len(address) <= 254
        assert parse_mailbox(address) == address
        if address != sender:
            assert back(address) == sender
    assert there(sender) != sender
    assert there(sender, domain=f"{'e' * 60}.{HERE}") == sender
    assert there("postmaster") == "postmaster"
