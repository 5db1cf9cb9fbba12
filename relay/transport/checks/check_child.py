"""The worker process of sender checks: it can be killed, its limits are low, it is in the sandbox.

It keeps nothing and asks no name server. A request has a message and the DNS answers so far.
The reply has the questions that lack an answer, or the results.
"""

import sys

from msgspec import msgpack

from relay.base.message.authentication_results import domain_shown, may_be_aligned
from relay.base.message.header import Header
from relay.base.process_limits import limit_cpu, limit_this_process
from relay.base.sandbox import enter_sandbox, load_codecs
from relay.transport.checks.checker import CheckReply, CheckRequest, is_asked
from relay.transport.checks.dkim_check import dkim_results
from relay.transport.checks.dmarc import Answers, author_of, dmarc_result, walk_questions
from relay.transport.checks.spf_check import spf_result
from relay.transport.checks.workers import LENGTH_BYTES

MEMORY_BYTES_MAX = 200 << 20
_CPU_S = 2  # of a request


def reply_to(request: CheckRequest) -> CheckReply:
    """Return the results by what is known, and what is lacking."""
    header = Header.parse(request.header)
    author, fault = author_of(header)
    if not all(is_asked(octets) for name, octets in header.fields if name == b"from"):
        author, fault = "", "From is too long"
    answers = Answers(request.known, author)
    for question in walk_questions(author):
        answers.of(question, author)
    results = [spf_result(request.question, answers, of_helo=of_helo) for of_helo in (False, True)]
    is_ready = request.is_last or not answers.lacking
    results += dkim_results(header, request, answers, is_ready=is_ready)
    names = [name for name in map(domain_shown, results) if may_be_aligned(name, author)]
    results.append(dmarc_result(fault, results, answers))
    walks = [question for name in names for question in walk_questions(name)]
    return CheckReply(
        sorted(answers.lacking, key=lambda question: not answers.lacking[question]),
        tuple(results),
        kept=sum(answers.lacking.values()),
        early=[(author, "A"), *walks] if author else (),
    )


def main() -> None:
    """Answer requests until the input ends."""
    limit_this_process(MEMORY_BYTES_MAX)
    load_codecs()
    enter_sandbox()
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
