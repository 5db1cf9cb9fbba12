"""The Authentication-Results field has the results that are read from it."""

from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.authentication_results import AuthResult, clipped, read_results
from relay.transport.checks.field import results_field

TEXTS = st.text(st.characters(codec="ascii"), max_size=80).map(clipped)
PROPERTIES = st.dictionaries(
    st.sampled_from(["smtp.mailfrom", "smtp.helo", "header.d", "header.from"]), TEXTS
)
REASONS = TEXTS.map(lambda text: " ".join(text.split()))
RESULTS = st.builds(
    AuthResult, st.sampled_from(["spf", "dkim"]), st.just("pass"), REASONS, PROPERTIES
)


@given(st.lists(RESULTS, max_size=4))
def test_results_are_read_as_they_were_written(results: list[AuthResult]) -> None:
    field = results_field("relay.test", results)
    name, _, value = field.partition(b":")
    assert (name, field[-2:]) == (b"Authentication-Results", b"\r\n")
    assert read_results([value.replace(b"\r\n", b"")]) == tuple(results)


def test_a_field_without_results_says_so() -> None:
    assert results_field("relay.test", []) == b"Authentication-Results: relay.test; none\r\n"


def test_a_domain_is_never_cut_and_the_field_is_ascii() -> None:
    sender = f'"{"a" * 180}@victim.test"@{"b" * 60}.attacker.test'
    result = AuthResult("spf", "pass", "é", {"smtp.mailfrom": sender})
    field = results_field("relay.test", [result])
    [read] = read_results([field.partition(b":")[2].replace(b"\r\n", b"")])
    assert (read.domain("smtp.mailfrom"), read.reason) == (f"{'b' * 60}.attacker.test", "?")


def test_no_line_is_longer_than_the_next_host_takes() -> None:
    field = results_field("relay.test", [AuthResult("dkim", "fail", "", {"header.d": '"' * 2000})])
    assert max(map(len, field.split(b"\r\n"))) <= 998
