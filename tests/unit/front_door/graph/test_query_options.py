"""The Prefer header."""

from hypothesis import given
from hypothesis import strategies as st

from relay.front_door.graph.query_options import preferences
from tests.support.tables import each_row


@each_row(
    "lines, expected",
    [
        ([], {}),
        ([""], {}),
        (["respond-async"], {"respond-async": ""}),
        (["odata.maxpagesize=50"], {"odata.maxpagesize": "50"}),
        (["OData.MaxPageSize = 50"], {"odata.maxpagesize": "50"}),
        (
            ['IdType="ImmutableId", outlook.body-content-type="text"'],
            {"idtype": "ImmutableId", "outlook.body-content-type": "text"},
        ),
        (["a=1, b=2", "c=3"], {"a": "1", "b": "2", "c": "3"}),
        (["a=1, A=2", "a=3"], {"a": "1"}),
        (['a="x, y=\\"z\\"", b'], {"a": 'x, y="z"', "b": ""}),
        (['a=1; foo="x,y"; bar, b=2'], {"a": "1", "b": "2"}),
        ([" , ,a=1,,"], {"a": "1"}),
        (["=1, b=2"], {}),
        (["relay.sent-folder=AAMk-_=="], {"relay.sent-folder": "AAMk-_=="}),
    ],
)
def test_preferences(lines: list[str], expected: dict[str, str]) -> None:
    assert preferences(lines) == expected


@given(st.text(st.sampled_from('a;,="\\ \t\r\x00é'), max_size=60))
def test_any_line(line: str) -> None:
    found = preferences([line])
    assert all(name == name.lower() and name for name in found)


def test_a_long_line_takes_no_time() -> None:
    for line in ('"' * 60_000, "a=" + '"\\' * 30_000, ", " * 30_000, "a;" * 30_000):
        preferences([line])
