"""Compare the results of two rule books for one message after the other, for `relay policy diff`.

Results differ if their documents differ. The names of rules and the counts against rate limits are
not compared. No message is kept, only counts. An error has the verdict that acceptance gives it.
"""

from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from relay.base.message.content import blocks
from relay.base.message.header import Header, ParsedContent
from relay.base.message.verdict import ExaminedMessage, Verdict
from relay.transport.policy.explanation import outcome_document
from relay.transport.policy.message_parts import TooManyPartsError
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rules import OverallVerdict, Rule

_DIGEST_LENGTH = 16


class Difference(Struct, frozen=True):
    """The results of two rule books for a message. `content` in them is a digest, "" for the
    content of the file.
    """

    rules: tuple[str, ...]  # that cause the difference, as far as it is known
    old: dict[str, Any]
    new: dict[str, Any]
    contents: dict[str, list[str]]  # by recipient, the names of the fields, and "body", that differ


class RuleComparison:
    """Compares messages, and counts how many each rule matches."""

    def __init__(self, old: RuleBook, new: RuleBook) -> None:
        self._books = books = {"old": old, "new": new}
        self._rules = {name: dict(_rules_of(book)) for name, book in books.items()}
        self._matched = {name: Counter[str]() for name in books}

    def compare(self, message: ExaminedMessage) -> Difference | None:
        """Return how the results differ, None if they do not. Raises OSError."""
        contents = {"": message.content}
        results = {name: _result(book, message, contents) for name, book in self._books.items()}
        hits = {
            name: {hit.rule: hit.recipients for hit in verdict.hits if not hit.error}
            for name, (_, verdict) in results.items()
        }
        for name, matched in hits.items():
            self._matched[name].update(matched.keys())
        old, new = results["old"][0], results["new"][0]
        if _without_rules(old) == _without_rules(new):
            return None
        names = hits["new"] | hits["old"]
        causes = [
            rule
            for rule in names
            if any(both["old"].get(rule) != both["new"].get(rule) for both in (hits, self._rules))
        ]
        before = {copy["address"]: copy["content"] for copy in _copies(old)}
        changed = {
            address: _changed_parts(contents[before[address]], contents[copy["content"]])
            for copy in _copies(new)
            if before.get(address := copy["address"], copy["content"]) != copy["content"]
        }
        # without causes, the rules have another order
        return Difference(tuple(causes or names), old, new, changed)

    def counts(self) -> list[dict[str, Any]]:
        """Return all rules, those of the new book first, each with the number of messages that it
        matched in each book; None if the book does not have the rule.
        """
        return [
            {"rule": rule}
            | {
                name: self._matched[name][rule] if rule in rules else None
                for name, rules in self._rules.items()
            }
            for rule in self._rules["new"] | self._rules["old"]
        ]


def _rules_of(book: RuleBook) -> Iterator[tuple[str, Rule]]:
    """Yield all rules by name, without their places."""
    for rules in (book.operator, *(tenant.rules for tenant in book.tenants.values())):
        for rule in rules.rules if rules else ():
            yield rule.name, structs.replace(rule, file=Path(), line=0)


def _result(
    book: RuleBook, message: ExaminedMessage, contents: dict[str, ParsedContent]
) -> tuple[dict[str, Any], Verdict]:
    """Return the result as a document and as a verdict. Its contents are added by digest."""
    nothing = Verdict((), (), (), ())
    try:
        verdict = book.evaluate(message)
    except OSError:
        raise
    except TooManyPartsError as error:
        return {"verdict": str(OverallVerdict.REJECT), "error": str(error)}, nothing
    except Exception as error:  # noqa: BLE001 - acceptance answers 451
        return {"verdict": str(OverallVerdict.DEFER), "error": repr(error)}, nothing
    digests = ["", *map(_digest, verdict.contents[1:])]  # the first content is that of the file
    contents |= dict(zip(digests[1:], verdict.contents[1:], strict=True))
    document = outcome_document(verdict)
    del document["charges"], document["subjects"]  # subjects are part of the contents
    for copy in _copies(document):
        copy["content"] = digests[copy["content"]]
    return document, verdict


def _copies(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [*document.get("recipients", ()), *document.get("added", ())]


def _digest(content: ParsedContent) -> str:
    digest = sha256()
    for block in blocks(content.joined()):
        digest.update(block)
    return digest.hexdigest()[:_DIGEST_LENGTH]


def _without_rules(value: Any) -> Any:
    """Return a document without the names of rules."""
    if isinstance(value, dict):
        return {key: _without_rules(part) for key, part in value.items() if key != "rule"}
    return [_without_rules(part) for part in value] if isinstance(value, list) else value


def _changed_parts(old: ParsedContent, new: ParsedContent) -> list[str]:
    names = dict.fromkeys((*old.header.names(), *new.header.names()))
    changed = [name for name in names if old.header.values(name) != new.header.values(name)]
    bodies = {_digest(ParsedContent(Header(), content.rest)) for content in (old, new)}
    return [*changed, *(["body"] if len(bodies) > 1 else ())] or ["the order of the fields"]
