"""kill -9 of a relay whose queue is on a server."""

import pytest

from relay.base.crashpoints import CrashPoint
from tests.crash import test_crash_points
from tests.crash.conftest import HeldRemote, held, relay  # noqa: F401 - fixtures
from tests.crash.test_storm import *  # noqa: F403
from tests.support.long_tests import long

pytestmark = pytest.mark.crash

COMMITS = (CrashPoint.SPOOL_BEFORE_COMMIT, CrashPoint.SPOOL_COMMITTED)
# A content is a row, unless it is over 1 MiB.
OTHERS = set(test_crash_points.SENT) - {*COMMITS, CrashPoint.SPOOL_BODY_SYNCED}


@pytest.mark.parametrize(
    "point", [*COMMITS, *(pytest.param(one, marks=long) for one in sorted(OTHERS))]
)
def test_a_kill_at_each_point_sends_once_or_never(
    held: HeldRemote,  # noqa: F811 - the fixture
    point: CrashPoint,
) -> None:
    test_crash_points.test_a_kill_at_each_point_sends_once_or_never(held, point)
