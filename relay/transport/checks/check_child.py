"""The worker process of sender checks: it can be killed, its limits are low, it opens no socket.

It keeps nothing and never waits for a name server. A request has a message and the DNS answers so
far. The reply has the questions that lack an answer or, once there are none, the results.
"""

import sys

import dkim

from relay.base.message.authentication_results import AuthResult
from relay.base.process_limits import limit_cpu, limit_this_process, tune_garbage_collector
from relay.transport.checks.dkim_check import signature_result, signatures_of
from relay.transport.checks.spf_check import MissingAnswer, helo_result, sender_result
from relay.transport.checks.wire import LENGTH_BYTES, READY, Reply, Request, framed, read_request
from relay.transport.routing.dns_cache import DnsQuestion

MEMORY_BYTES_MAX = 200 << 20
CPU_S = 5  # of a request


def reply_to(request: Request) -> Reply:
    """Return what is lacking, or the results."""
    known = dict(request.known)
    lacking, results = list[DnsQuestion](), list[AuthResult]()
    for check in (sender_result, helo_result):
        try:
            results.append(check(request, known))
        except MissingAnswer as missing:
            lacking.append(missing.question)
    try:
        message = dkim.DKIM(request.header)
    except (dkim.DKIMException, IndexError):  # a first line that continues a field
        results.append(AuthResult("dkim", "permerror", "the header has a line that is no field"))
    else:
        signatures = signatures_of(message)
        if not request.is_large:
            questions = [signature.question for signature in signatures if not signature.fault]
            lacking += [question for question in questions if question not in known]
        if not lacking and request.body is not None:
            message.body = request.body
            for signature in signatures:
                results.append(
                    signature.result("none", "not checked: the message is larger than 10 MB")
                    if request.is_large
                    else signature_result(message, signature, known)
                )
        if not signatures:
            results.append(AuthResult("dkim", "none", "no signature"))
    if lacking or request.body is None:
        return Reply(tuple(dict.fromkeys(lacking)))
    return Reply((), tuple(results))


def main() -> None:
    """Answer requests until the input ends."""
    limit_this_process(MEMORY_BYTES_MAX)
    tune_garbage_collector()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    replies.write(READY)
    replies.flush()
    while length := int.from_bytes(requests.read(LENGTH_BYTES)):
        request = read_request(requests.read(length))
        limit_cpu(CPU_S)
        replies.write(framed(reply_to(request)))
        replies.flush()


if __name__ == "__main__":
    main()
