"""The locator agrees with tomllib on every key path, and with the eye on every line."""

import tomllib
from typing import Any

from relay.base.settings.document import locate
from tests.support.tables import each_row

TEXT = '''\
# a comment = "no key"
hostname = "a"  # behind it
"quoted key" = 1
'lit.eral' = 2
site . "b.c".d = true

[http]
listen = [
  "one",   # ] not the end
  'two]',
  ["nested", { x = 1 }],
]
long = """
[not.a.table]
key = "no" \\""" still ""quoted"""""
raw = \'\'\'
[[neither]]
\'\'\'
when = 1979-05-27 07:32:00

[[smtp]]
listen = "a"
tls = { certificate = "c", "ke\\u0079" = "k", deep.er = { z = [1, 2] } }
[[smtp]]
[smtp.tls]
key = "k"
[[smtp.user]]
name = "x"
[[smtp.user]]
name = "y"
[a.b.c]
empty = []
none = {}
'''


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    children: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    found = {path} if path else set()
    for name, child in children:
        found |= paths(child, (*path, name))
    return found


def test_every_path_of_tomllib_has_a_line_and_no_other_path_has():
    located = set(locate(TEXT))
    expected = paths(tomllib.loads(TEXT))
    assert located - expected == set()
    # a super-table that no line names is the only thing without a place
    assert expected - located == {("a",), ("a", "b")}


@each_row("text", ["", "\n\n", "# only a comment", "[table]", "a=1", "a=[]"])
def test_texts_that_end_early(text):
    assert set(locate(text)) == paths(tomllib.loads(text))
