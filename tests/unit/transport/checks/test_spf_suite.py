"""The public test suite of SPF, as pyspf ships it: rfc7208-tests.json has its source and its licence."""

import json
from pathlib import Path

from relay.transport.checks.checker import KnownAnswer, SenderQuestion
from relay.transport.checks.dmarc import Answers
from relay.transport.checks.spf_check import spf_result

SUITE = json.loads((Path(__file__).parent / "rfc7208-tests.json").read_text())


class Zone(dict[tuple[str, str], KnownAnswer]):
    """All questions have an answer."""

    def __init__(self, zone: dict[str, dict[str, list[str] | str]]) -> None:
        super().__init__()
        self.zone = zone

    def __contains__(self, question: object) -> bool:
        return True

    def __missing__(self, question: tuple[str, str]) -> KnownAnswer:
        name, kind = question
        records = self.zone.get(name, {})
        values = records.get(kind, records.get("*", ()))
        if values == "TIMEOUT" or name.startswith("error."):
            return KnownAnswer(failure="time-out")
        if not values and "CNAME" in records:
            return self[records["CNAME"][0].lower(), kind]
        return KnownAnswer([value.encode("latin-1") for value in values])


def test_each_case_of_the_public_suite_has_its_result() -> None:
    found = {}
    for scenario in SUITE["scenarios"]:
        known = Zone(scenario["zone"])
        for name, (ip, helo, sender, results) in scenario["tests"].items():
            question = SenderQuestion(ip, helo or "", sender or "", "receiver.example")
            result = spf_result(question, Answers(known), of_helo=False)
            if result.result not in results:
                found[name] = f"{result.result} {result.reason}, expected {results}"
    assert found == {}
