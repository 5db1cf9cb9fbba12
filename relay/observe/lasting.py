"""A fault that lasts, told once.

On the path: wherever something is asked again and again until it succeeds.
Holds: pure; however often and by how many it is asked, one line of the log for one fault.
Fails: never.
Standards: none.
"""


class LastingFault:
    """What the last try said; a try that succeeds ends it."""

    def __init__(self) -> None:
        self._told = ""

    def is_news(self, error: Exception) -> bool:
        """Whether this error is another than the last one; it is the last one then."""
        told = f"{type(error).__name__}: {error}"
        is_news = told != self._told
        self._told = told
        return is_news

    def is_over(self) -> None:
        """It was asked again, and there was no error: the next one is news."""
        self._told = ""
