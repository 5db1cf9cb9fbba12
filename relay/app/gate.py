"""Build the gate (relay.gate) of a relay, or none: its settings, as the child gets them."""

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from relay.app.foundation import Foundation
from relay.base.certificates import ServerCertificate
from relay.gate.keeper import GateKeeper
from relay.gate.wire import ListenerSetup, LoadState, Setup
from relay.ingress.smtp_server import offers_auth_in_clear
from relay.settings.tree import Settings, SmtpListener


def why_in_process(settings: Settings) -> str:
    """Return why `relay serve` has the SMTP sessions in its own process; "" if it has not."""
    if not settings.smtp:
        return "there is no [[smtp]]"
    if settings.smtp_gate == "on":
        return ""
    if settings.smtp_gate == "off":
        return 'smtp_gate is "off"'
    if settings.milter:
        return "there are milters"
    if sys.platform != "linux":
        return "this is not Linux"
    return "" if len(os.sched_getaffinity(0)) > 1 else "there is one processor"


def build_gate(base: Foundation) -> GateKeeper | None:
    """Return the gate, not started; None if the sessions are in this process."""
    words = base.sources.gate_words
    if words is None or why_in_process(base.given):
        return None

    def setup() -> Setup:
        shown = base.certificates.smtp
        return setup_of(base.settings.hostname, zip(base.settings.smtp, shown, strict=True))

    return GateKeeper(
        words=words, setup=setup,
        load=lambda: LoadState(base.pressure.state, base.pressure.paused()),
        on_change=partial(setattr, base.readiness, "gate"),
    )  # fmt: skip


def setup_of(
    hostname: str, listeners: Iterable[tuple[SmtpListener, ServerCertificate | None]]
) -> Setup:
    """Return what the child gets of listeners and their certificates."""
    return Setup(
        hostname,
        [
            ListenerSetup(
                replace(one, tls=None, trusted_networks=(), proxy_networks=()),
                [pair.pem for pair in shown.pairs] if shown is not None else [],
                requires_tls=one.tls is not None and one.tls.require,
                offers_auth_in_clear=offers_auth_in_clear(one),
            )
            for one, shown in listeners
        ],
    )
