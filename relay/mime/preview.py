"""The words of a body, without its marks: for a line that shows how it begins, and for searching.

On the path: graph shows the line; the index of a mailbox takes the words.
Holds: pure, in one pass whatever the text is like.
Fails: never.
Standards: Graph's bodyPreview.
"""

from relay.mime.htmltext import unescaped

_PREVIEW_CHARACTERS = 255
_PREVIEW_SOURCE_CHARACTERS = 16_000
_UNSEEN_ELEMENTS = ("head", "script", "style", "title")


def preview(text: str, body_type: str) -> str:
    """Return the beginning of a body as one line of plain text."""
    source = text[:_PREVIEW_SOURCE_CHARACTERS]
    if body_type == "html":
        source = without_tags(source)
    return " ".join(source.split())[:_PREVIEW_CHARACTERS]


def without_tags(source: str) -> str:
    """Return the text between tags."""
    pieces: list[str] = []
    position = 0
    unseen = ""
    while (start := source.find("<", position)) >= 0 and (end := source.find(">", start)) >= 0:
        if not unseen:
            pieces.append(source[position:start])
        tag = source[start + 1 : end].split(maxsplit=1)
        name = tag[0].lower() if tag else ""
        if not unseen and name in _UNSEEN_ELEMENTS:
            unseen = name
        elif name == f"/{unseen}":
            unseen = ""
        position = end + 1
    if not unseen:
        pieces.append(source[position:])
    return unescaped(" ".join(pieces))
