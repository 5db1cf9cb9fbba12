"""What the log says about mail, as JSON or as logfmt: what was accepted, and what became of it."""

import re
from collections import defaultdict
from collections.abc import Iterable

LEFT = ("relayed", "delivered")  # outcomes after which a repetition is a second copy
# A field of either form. What is quoted is skipped as a whole: it may be a host's text.
_FIELD = re.compile(r'"?(\w++)"?[=:](?:"((?:[^"\\]|\\.)*+)(?:"|\Z)|([^\s,}]*+))')


def read_log(lines: Iterable[bytes]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the senders of what was accepted, by queue id, and the last status of each recipient,
    by queue id and address. The lines are those of a log, or of the logs of all nodes.
    """
    senders: dict[str, str] = {}
    results: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for line in lines:
        if b"accepted" in line or b"recipient" in line:
            pairs = _FIELD.findall(line.decode("utf-8", "replace"))
            fields = defaultdict(str, {name: quoted or plain for name, quoted, plain in pairs})
            queue_id, to = fields["qid"], fields["to"]
            if fields["event"] == "accepted":
                senders[queue_id] = fields["sender"]
            elif fields["event"] == "recipient" and results[queue_id].get(to) not in LEFT:
                results[queue_id][to] = fields["status"]
    return senders, results
