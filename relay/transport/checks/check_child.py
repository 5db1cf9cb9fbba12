"""The worker process of sender checks: it can be killed, its limits are low, it opens no socket.

It keeps nothing and waits for no name server. A request has a message and the DNS answers so far.
The reply has the questions that lack an answer, or the results.
"""

import sys

from msgspec import msgpack

from relay.base.message.authentication_results import AuthResult
from relay.base.process_limits import limit_cpu, limit_this_process
from relay.transport.checks.checker import CheckReply, CheckRequest
from relay.transport.checks.dkim_check import signature_result, signatures_of
from relay.transport.checks.dmarc import Unanswered
from relay.transport.checks.spf_check import spf_result
from relay.transport.checks.workers import LENGTH_BYTES
from relay.transport.routing.dns_cache import DnsQuestion

MEMORY_BYTES_MAX = 200 << 20
_CPU_S = 2  # of a request


def reply_to(request: CheckRequest) -> CheckReply:
    """Return what is lacking, or the results."""
    known = dict(request.known)
    lacking, results = list[DnsQuestion](), list[AuthResult]()
    for of_helo in (False, True):
        try:
            results.append(spf_result(request.question, known, of_helo=of_helo))
        except Unanswered as error:
            lacking += error.args
    message, signatures = signatures_of(request.header)
    wanted = [] if request.is_large else [key.question for key in signatures if not key.fault]
    lacking += [question for question in wanted if question not in known]
    if lacking or request.body is None:
        return CheckReply(lacking)
    message.body = request.body
    of_signatures = [signature_result(message, signature, known) for signature in signatures]
    return CheckReply([], results + (of_signatures or [AuthResult("dkim", "none", "no signature")]))


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
