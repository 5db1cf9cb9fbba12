"""How urgent a header says that a message is."""

import pytest

from relay.mime.priority import Priority, priority_of


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("Subject: the importance of priority", Priority.NORMAL),
        ("Importance: high", Priority.HIGH),
        ("IMPORTANCE : High", Priority.HIGH),
        ("Importance: normal", Priority.NORMAL),
        ("Importance: low", Priority.LOW),
        ("Importance:", Priority.NORMAL),
        ("Importance: highest", Priority.NORMAL),
        ("Priority: urgent", Priority.HIGH),
        ("Priority: non-urgent", Priority.LOW),
        ("Priority: normal", Priority.NORMAL),
        ("X-Priority: 1 (Highest)", Priority.HIGH),
        ("X-Priority:\r\n 2", Priority.HIGH),
        ("X-Priority: 3", Priority.NORMAL),
        ("X-Priority: 5", Priority.NORMAL),
        ("X-MSMail-Priority: High", Priority.NORMAL),
        ("Precedence: bulk", Priority.LOW),
        ("Precedence: List", Priority.LOW),
        ("Precedence: junk", Priority.LOW),
        ("Precedence: first-class", Priority.NORMAL),
        ("List-Unsubscribe: <https://a.test/>", Priority.LOW),
        # what goes to many is not urgent because it says so
        ("Importance: high\r\nPrecedence: bulk", Priority.LOW),
        ("X-Priority: 1\r\nList-Unsubscribe: <https://a.test/>", Priority.LOW),
        # the clearer word wins over the older field
        ("X-Priority: 1\r\nImportance: low", Priority.LOW),
        ("X-Priority: " + "1" * 100_000, Priority.NORMAL),
    ],
)
def test_the_header_says_how_urgent_it_is(fields: str, expected: Priority) -> None:
    assert priority_of(f"From: a@a.test\r\n{fields}\r\n\r\nbody".encode()) is expected


@pytest.mark.parametrize(
    "content",
    [b"", b"\r\nImportance: high\r\n", b"From: a\r\n\r\nImportance: high\r\n", b"\xff: \0"],
)
def test_only_the_header_counts(content: bytes) -> None:
    assert priority_of(content) is Priority.NORMAL
