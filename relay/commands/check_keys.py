"""What `relay check` warns of in keys that sign mail, and in their records in the DNS."""

from collections.abc import Iterator, Sequence

from relay.routing.dns_client import look_up
from relay.routing.mx_hosts import Answer, NoAnswer, Records
from relay.settings.document import Document, Fault
from relay.settings.tree import Address
from relay.signing.keys import RSA_BITS_ADVISED, KeyRing, SigningKey
from relay.signing.record import RecordVerdict, compare_record


def key_warnings(ring: KeyRing, place: Document, *, now_us: int) -> Iterator[Fault]:
    """Yield what is not as it should be; `ring` has the keys of `place` in their order."""
    ending = {key.name for key in ring.ending(now_us)}
    for number, key in enumerate(ring.keys):
        if key.private.kind == "rsa" and key.private.bits < RSA_BITS_ADVISED:
            found = f"{key.file}: found an RSA key of {key.private.bits} bits"
            text = f"{found}, expected {RSA_BITS_ADVISED} or more: receivers may not accept it"
            yield place.fault(("dkim", number, "key"), text)
        if key.name in ending:
            does = "goes out unsigned" if not key.is_usable(now_us) else "then goes out unsigned"
            text = (
                f"found {key.last_day}, after which no key of {key.domain} signs: its mail {does}"
            )
            yield place.fault(("dkim", number, "until"), text)


async def record_warnings(
    ring: KeyRing,
    place: Document,
    nameservers: Sequence[Address],
    *,
    now_us: int,
    timeout_s: float,
) -> list[Fault]:
    """Ask the DNS for the record of each key that signs; return what is wrong with it."""
    usable = {number: key for number, key in enumerate(ring.keys) if key.is_usable(now_us)}
    questions = [(key.name, "TXT") for key in usable.values()]
    answers = await look_up(nameservers, questions, timeout_s=timeout_s)
    return [
        place.fault(("dkim", number, "selector"), f"{key.name}: {text}")
        for number, key in usable.items()
        for text in _record_faults(key, answers[key.name, "TXT"])
    ]


def _record_faults(key: SigningKey, answer: Answer) -> list[str]:
    if isinstance(answer, NoAnswer):
        return [f"the record cannot be compared: {answer.text}"]
    texts = answer.values if isinstance(answer, Records) else ()
    compared = compare_record(texts, key.private)
    if compared.verdict is RecordVerdict.MISSING:
        return ["found no record, expected that of the key: no receiver can verify its signatures"]
    return [str(fault) for fault in compared.faults]
