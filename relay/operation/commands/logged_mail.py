"""What the log says about mail, as JSON or as logfmt: what was accepted, and what became of it."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from relay.base.message.address import own_mailbox

Results = dict[str, str]  # the status of each recipient, by address
LEFT = ("relayed", "delivered")  # outcomes after which a repetition is a second copy
# A field of either form. What is quoted is skipped as a whole: it may be a host's text.
_FIELD = re.compile(r'"?(\w++)"?[=:](?:"((?:[^"\\]|\\.)*+)(?:"|\Z)|([^\s,}]*+))')


def read_log(lines: Iterable[bytes]) -> tuple[dict[str, tuple[str, int]], dict[str, Results]]:
    """Return the sender and the number of recipients of what was accepted, by queue id, and the
    last status of each recipient. The lines are those of a log, or of the logs of all nodes.
    """
    accepted: dict[str, tuple[str, int]] = {}
    results: defaultdict[str, Results] = defaultdict(dict)
    for line in lines:
        if b"accepted" in line or b"recipient" in line:
            pairs = _FIELD.findall(line.decode("utf-8", "replace"))
            fields = defaultdict(str, {name: quoted or plain for name, quoted, plain in pairs})
            queue_id, to = fields["qid"], fields["to"]
            if fields["event"] == "accepted":
                number = fields["recipients"]
                accepted[queue_id] = (fields["sender"], int(number) if number.isdecimal() else 0)
            elif fields["event"] == "recipient" and results[queue_id].get(to) not in LEFT:
                results[queue_id][to] = fields["status"]
    return accepted, results


def what_became(results: Results, *, named: Sequence[str], number: int) -> str:
    """Return the results, and who has none: of `number` recipients, 0 if that is unknown, `named`
    are those that the client named. They may be aliases of those that the results name.
    """
    texts = [f"{status} {to}" for to, status in results.items()]
    if not 0 < number <= len(texts):
        has = set(map(own_mailbox, results))
        without = [to for to in named if own_mailbox(to) not in has]
        rest = number - len(texts) - len(without)
        texts += [f"no result {to}" for to in without]
        texts += [f"no result of {rest}"] if rest > 0 else []
    return ", ".join(texts) or "no result"
