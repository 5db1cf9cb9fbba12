"""The worker process of sender checks: it can be killed, its limits are low, it is in the sandbox.

It keeps nothing and asks no name server. A request has a message and the DNS answers so far.
The reply has the questions that lack an answer, or the results.
"""

from collections.abc import Sequence

from relay.base.child_process import ChildTask
from relay.base.message.authentication_results import domain_shown, may_be_aligned
from relay.base.message.header import Header
from relay.transport.checks.checker import CheckReply, CheckRequest, is_asked
from relay.transport.checks.dkim_check import dkim_results
from relay.transport.checks.dmarc import Answers, author_of, dmarc_result, walk_questions
from relay.transport.checks.spf_check import spf_result

MEMORY_BYTES_MAX = 200 << 20


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


def task(_words: Sequence[str] = ()) -> ChildTask:
    """Return what the process does."""
    return ChildTask(CheckRequest, reply_to, MEMORY_BYTES_MAX)
