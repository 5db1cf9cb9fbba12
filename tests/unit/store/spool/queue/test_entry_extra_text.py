"""The JSON text of EntryExtra in a row, as a change of some of its fields leaves it."""

from relay.store.spool.shared.entry_notes import RELEASED, changed_extra
from tests.support.tables import each_row


@each_row(
    "text, fields, changed",
    [
        ("", {"reason": "r", "rule": ""}, '{"reason":"r"}'),
        ('{"reason":"r"}', {"reason": ""}, ""),
        ('{"sender":"a","reason":"r","rule":"x"}', RELEASED, '{"sender":"a","released":true}'),
        ('{"later":[ 1, 2.0e3],"chosen":true}', {"chosen": False}, '{"later":[ 1, 2.0e3]}'),
        ("{", {"reason": "r"}, "{"),
        ('["reason"]', {"reason": "r"}, '["reason"]'),
        ('{"later":nothing}', {"reason": "r"}, '{"later":nothing}'),
    ],
)
def test_fields_that_are_not_known_and_what_is_no_json_stay(text, fields, changed) -> None:
    assert changed_extra(text, **fields) == changed
