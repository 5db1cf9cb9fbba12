"""The stores of the tests of mailboxes: an outbox has a store."""

from tests.unit.mailbox.conftest import draft, place, store  # noqa: F401 - fixtures
