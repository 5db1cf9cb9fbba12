"""Build the gate (relay.gate) of a relay, or none: its settings, as the child gets them."""

import os
import sys
from collections.abc import Iterable
from dataclasses import replace

from relay.app.foundation import Foundation
from relay.base.certificates import ServerCertificate
from relay.gate.keeper import GateKeeper
from relay.gate.wire import ListenerSetup, LoadState, Setup
from relay.ingress.smtp_server import offers_auth_in_clear
from relay.settings.tree import Settings, SmtpListener


def has_gate(settings: Settings) -> bool:
    """Return whether SMTP sessions are in a process of their own in `relay serve`."""
    if settings.smtp_gate != "auto":
        return settings.smtp_gate == "on"
    is_possible = sys.platform == "linux" and not settings.milter and bool(settings.smtp)
    return is_possible and len(os.sched_getaffinity(0)) > 1


def build_gate(base: Foundation) -> GateKeeper | None:
    """Return the gate, not started; None if the sessions are in this process."""
    words = base.sources.gate_words
    if words is None or not has_gate(base.given):
        return None

    def on_change(reason: str) -> None:
        base.readiness.gate = reason

    def setup() -> Setup:
        shown = base.certificates.smtp
        return setup_of(base.settings.hostname, zip(base.settings.smtp, shown, strict=True))

    return GateKeeper(
        words=words, setup=setup,
        load=lambda: LoadState(base.pressure.state, bool(base.pressure.paused())),
        on_change=on_change,
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
