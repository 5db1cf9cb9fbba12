"""What the relay was given of the policy of STRICT, by which a host knows what mail may come to it.

Times are queue time. Mail is under a policy that was in force at some time from the beginning of
the look-up of its hosts, which may have begun before its claim, to its final dot. See RFC 8461
3.3, 5.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.simulation.network import GOOD, TlsSession
from tests.simulation.scenario import Published

_NEVER = 1 << 62
_AFTER_US = 5_000_000  # how long after its end a look-up may count: its records come later
_WRITTEN_US = 5_000_000  # how long a policy may not be in its file


@dataclass
class _Given:
    published: Published
    from_us: int
    may_be_lost: bool = False  # with the process that it was given to

    @property
    def ends_us(self) -> int:
        return self.from_us + self.published.max_age_s * 1_000_000


class GivenPolicies:
    """The policies that the web server gave; each holds until its end, or until the next one."""

    def __init__(self) -> None:
        self._given: list[_Given] = []
        self._look_ups: list[list[int]] = []  # their beginnings and ends, the last ones

    @contextmanager
    def look_up(self, now_us: Callable[[], int]) -> Iterator[None]:
        """The hosts are looked up in this block."""
        look_up = [now_us(), _NEVER]
        self._look_ups.append(look_up)
        yield
        look_up[1] = now_us()

    def look_up_us(self, *, now_us: int) -> int:
        """When the look-up that counts for a claim may have begun."""
        self._look_ups = [one for one in self._look_ups if one[1] > now_us - _AFTER_US]
        return min((one[0] for one in self._look_ups), default=now_us)

    def __bool__(self) -> bool:
        return bool(self._given)

    def gave(self, published: Published, *, now_us: int) -> None:
        self._given.append(_Given(published, now_us))

    def died(self, *, now_us: int) -> None:
        """The process has ended: it may not have written down what it has just got."""
        self._look_ups.clear()
        for one in self._given[-1:]:
            one.may_be_lost |= now_us < one.from_us + _WRITTEN_US

    def resumed(self, *, now_us: int) -> None:
        """Time goes on from here: none was given later."""
        for one in self._given:
            one.from_us = min(one.from_us, now_us)

    def in_force(self, from_us: int, until_us: int) -> set[Published | None]:
        """All that may have been in force at some moment; None is no policy."""
        changes = {us for one in self._given for us in (one.from_us - 1, one.from_us, one.ends_us)}
        moments = {from_us, until_us, *(us for us in changes if from_us < us < until_us)}
        return {one for us in moments for one in self._at(us)}

    def _at(self, us: int) -> set[Published | None]:
        found: set[Published | None] = set()
        for one in reversed([one for one in self._given if one.from_us <= us]):
            found.add(one.published if us < one.ends_us else None)
            if not one.may_be_lost:
                return found
        return found | {None}


def demands_tls(published: Published | None) -> bool:
    """Whether mail under a policy waits rather than leaving below it."""
    return published is not None and published.mode == "enforce"


def allows(published: Published | None, host: str, tls: TlsSession | None) -> bool:
    """Whether mail under a policy may come to a host in this session."""
    if published is None or published.mode != "enforce":
        return True
    is_listed = published.mx in (host, f"*.{host.partition('.')[2]}")
    is_verified = tls is not None and tls.is_verified and tls.certificate == GOOD
    return is_listed and is_verified
