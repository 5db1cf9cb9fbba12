"""A fault that lasts is told once, and anew when it changes or comes back."""

from relay.observe.lasting import LastingFault


def test_a_fault_is_news_until_it_was_told() -> None:
    fault, full, gone = LastingFault(), OSError("full"), OSError("gone")
    told = [fault.is_news(error) for error in (full, full, OSError("full"), gone, gone, full)]
    assert told == [True, False, False, True, False, True]
    assert fault.is_news(ValueError("full")), "of another kind"


def test_a_fault_that_was_over_is_news_again() -> None:
    fault = LastingFault()
    assert fault.is_news(OSError("full"))
    fault.is_over()
    assert fault.is_news(OSError("full"))
