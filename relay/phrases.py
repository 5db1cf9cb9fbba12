"""How values and numbers are written in messages to people."""

_SHOWN_LENGTH_MAX = 80


def shown(value: object) -> str:
    """Return a value as a message shows it: one line of at most 80 characters."""
    match value:
        case bool():
            text = str(value).lower()
        case str():
            text = ascii(value) if not value.isprintable() else f'"{value}"'
        case None:
            return "nothing"
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            text = str(value)
    return text if len(text) <= _SHOWN_LENGTH_MAX else f"{text[:_SHOWN_LENGTH_MAX]}…"


def counted(number: int, noun: str) -> str:
    """Return "1 entry", "2 entries": a number and its noun, which is given in the singular."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}{'es' if noun.endswith('x') else 's'}"
