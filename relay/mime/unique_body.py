"""The part of a body that is of its message alone: what stands above the message that it quotes.

The quotation begins where common mail programs mark it: Outlook, Gmail, Apple Mail, Thunderbird,
and Relay. Without such a mark all of the body is returned.
"""

import re

_HTML = re.compile(
    r"<hr tabindex=\"-1\"|<blockquote[^<>]{0,200}?type=\"?cite"
    r"|<div[^<>]{0,200}?(?:id=\"(?:x_)?(?:divRplyFwdMsg|appendonsend|mail-editor-reference-message)"
    r"|class=\"(?:gmail_quote|moz-cite-prefix|moz-forward-container|yahoo_quoted|protonmail_quote)"
    r"|border-top: ?solid #(?:E1E1E1|B5C4DF) 1\.0pt)",
    re.IGNORECASE,
)
_TEXT = re.compile(
    r"^(?:[ \t]*+-{2,20} ?(?:Original|Forwarded|Urspr\u00fcngliche|Weitergeleitete) [^\n]{1,40}-"
    r"|_{20,}+[ \t]*+\r?\n(?=[^\n:]{2,40}:)"
    r"|(?:On|Am|Le|El|Il|Op|Den) [^\n]{5,200}(?:\n[^\n]{0,80})?:[ \t]*+\r?\n\s*+>)",
    re.MULTILINE,
)


def unique_body(body: str, body_type: str) -> str:
    """Return a body without the message that it quotes."""
    is_html = body_type == "html"
    found = (_HTML if is_html else _TEXT).search(body)
    if found is None:
        return body
    above = body[: found.start()].rstrip()
    return f"{above}</body></html>" if is_html else above
