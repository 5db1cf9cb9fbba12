"""The worker process of sender checks: it can be killed, its limits are low, it opens no socket.

It keeps nothing and waits for no name server. A request has a message and the DNS answers so far.
The reply has the questions that lack an answer, or the results.
"""

import sys

from msgspec import msgpack

from relay.base.message.authentication_results import AuthResult
from relay.base.message.header import Header
from relay.base.process_limits import limit_cpu, limit_this_process
from relay.transport.checks.checker import CheckReply, CheckRequest
from relay.transport.checks.dkim_check import dkim_results
from relay.transport.checks.dmarc import Unanswered, author_of, dmarc_result, walk_questions
from relay.transport.checks.spf_check import spf_result
from relay.transport.checks.workers import LENGTH_BYTES

MEMORY_BYTES_MAX = 200 << 20
_CPU_S = 2  # of a request


def reply_to(request: CheckRequest) -> CheckReply:
    """Return what is lacking, or the results."""
    header = Header.parse(request.header)
    author, fault = author_of(header)
    results = list[AuthResult]()
    lacking = [name for name in walk_questions(author) if name not in request.known]
    for of_helo in (False, True):
        try:
            results.append(spf_result(request, of_helo=of_helo))
        except Unanswered as error:
            lacking += error.args
    try:
        results += dkim_results(header, request, is_ready=not lacking)
        if not lacking:
            # without the body too: a large one is sent when nothing is lacking
            results.append(dmarc_result(author, fault, results, known=request.known))
            return CheckReply((), tuple(results) if request.body is not None else ())
    except Unanswered as error:
        lacking += error.args
    return CheckReply(lacking, early=[(author, "A")] if author else ())


def main() -> None:
    """Answer requests until the input ends."""
    limit_this_process(MEMORY_BYTES_MAX)
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    read_request = msgpack.Decoder(CheckRequest).decode
    while length := int.from_bytes(requests.read(LENGTH_BYTES)):
        request = read_request(requests.read(length))
        limit_cpu(_CPU_S)
        octets = msgpack.encode(reply_to(request))
        replies.write(len(octets).to_bytes(LENGTH_BYTES) + octets)
        replies.flush()


if __name__ == "__main__":
    main()
