"""A refusal as one line for people: the terminal of `relay dev`, `relay trace`, the test kit."""

from relay.refusals.refusal import Refusal

_NAMED_MAX = 3  # recipients


def line_of(refusal: Refusal) -> str:
    """Return a line such as `refused 550 5.7.1 app@example.test -> ann@customer.example "Setup"
    (rule "no executables")`. It may have characters that a terminal acts on.
    """
    code, text = _split(refusal.reply)
    why = f'rule "{refusal.rule}"' if refusal.rule else text
    words = ["refused", code, *_who(refusal)]
    if refusal.subject:
        words.append(f'"{refusal.subject}"')
    if why:
        words.append(f"({why})")
    if refusal.times > 1:
        words.append(f"{refusal.times} times")
    return " ".join(filter(None, words))


def _split(reply: str) -> tuple[str, str]:
    """Split a reply into its codes and its text; a failed TLS handshake has no codes."""
    code, _, rest = reply.partition(" ")
    if not (len(code) == 3 and code.isdigit()):
        return "", reply
    status, _, text = rest.partition(" ")
    return (f"{code} {status}", text) if status[:1] == code[:1] else (code, rest)


def _who(refusal: Refusal) -> list[str]:
    """Return who was refused: sender and recipients, the login, or the client."""
    if refusal.command in ("MAIL", "RCPT", "DATA") and (refusal.sender or refusal.recipients):
        sender, named = refusal.sender or "<>", refusal.recipients[:_NAMED_MAX]
        more = refusal.recipient_count - len(named)
        to = ", ".join(named) + (f" and {more} more" if more > 0 else "")
        return [f"{sender} -> {to}" if named else sender]
    if refusal.command == "AUTH" and refusal.account:
        return ["login", refusal.account]
    return [refusal.command, "from", refusal.client] if refusal.client else [refusal.command]
