"""The metrics of docs/operation-monitor.md, in one registry that is passed in.

Rooms count into it; the API writes it in Prometheus text format 0.0.4. Labels are bounded:
addresses are labels only for the ten busiest accounts. relay_attempts_total, which includes
deferred mail, is counted in relay/delivery/attempt_recorder.py.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from functools import cache, partial
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from relay import __version__, commit

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PICKUP_DEFERRED = "Scheduled sends that wait for their time; not deferred mail."
BOUNDS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    300,
    3600,
)


class RepeatedHistogram(Histogram):
    """A histogram in which a value may be observed several times at once."""

    def observe_times(self, amount: float, times: int) -> None:
        """Observe a value so many times."""
        self._sum.inc(amount * times)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(times)


class Metrics:
    """Every metric that Relay exposes."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        gauge = partial(Gauge, registry=registry)
        counter = partial(Counter, registry=registry)
        histogram = partial(Histogram, registry=registry)
        # `via`: graph, smtp, report
        self.accepted = counter(
            "relay_messages_accepted", "Messages accepted into the spool.", ["via"]
        )
        # `outcome`: delivered, relayed, failed, expired, cancelled, discarded, redirected, expanded
        # and suppressed: failed at acceptance, by the list of dead addresses
        self.recipients = counter(
            "relay_recipients", "Recipients that reached a final state.", ["outcome"]
        )
        # Of the whole spool. Counted after changes on this node, and each hour
        self.suppressed = gauge("relay_suppressed_addresses", "Addresses on the list of dead ones.")
        # `state`: queued, deferred, held, captured; counted each second, a long queue less often
        self.queue_entries = gauge("relay_queue_entries", "Entries in the queue.", ["state"])
        # Or of the oldest deferred one
        self.queue_oldest = gauge("relay_queue_oldest_seconds", "Age of the oldest queued entry.")
        # More than 0 is a defect: `relay storage verify`
        self.queue_unaccounted = gauge(
            "relay_queue_unaccounted",
            "Accepted recipients minus final and live ones; 0 unless one was lost.",
        )
        # No new mail is accepted meanwhile
        self.spool_damaged = gauge(
            "relay_spool_damaged", "1 while a page of the spool cannot be read."
        )
        self.delivery_seconds = RepeatedHistogram(
            "relay_delivery_seconds",
            "From acceptance to a recipient's delivery.",
            buckets=BOUNDS_S,
            registry=registry,
        )
        # `outcome`: delivered, relayed, captured, deferred, failed, indeterminate; `class` of a
        # deferral: dns, connect, tls, auth, protocol, site, recipient, mailbox, content, internal
        self.attempts = counter("relay_attempts", "Attempts by outcome.", ["outcome", "class"])
        self.commit_seconds = histogram(
            "relay_commit_seconds", "Time of one spool commit.", buckets=BOUNDS_S
        )
        self.commit_batch = histogram(
            "relay_commit_batch_size",
            "Writes that shared one commit.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self.commit_waiting = gauge(
            "relay_commit_waiting_seconds", "Of the oldest acceptance that waits; or 0."
        )
        self.lost_commits = counter("relay_spool_lost_commits", "Commits the database has lost.")
        self.takeovers = counter("relay_spool_takeovers", "Claims of dead nodes that it has ended.")
        # `state`: alive, stopped, dead
        self.nodes = gauge("relay_nodes", "Nodes that share the spool.", ["state"])
        self.queue_entries_age = gauge("relay_queue_entries_age_seconds", "Since the last count.")
        self.queue_unread = gauge("relay_queue_unread_seconds", "Since the queue is unread; or 0.")
        # `oauth`: the name of the client; `result`: ok, refused, away
        self.oauth_requests = counter(
            "relay_oauth_requests", "Requests for tokens.", ["oauth", "result"]
        )
        # `kind`: subscription, webhook; `result`: sent, failed (is repeated), dropped
        self.notifications = counter(
            "relay_notifications", "Notices to programs.", ["kind", "result"]
        )
        # `type`: abuse, fraud, opt-out
        self.complaints = counter("relay_complaints", "Complaints about mail.", ["type"])
        self.clock_jump = gauge("relay_clock_jump_seconds", "Of the clock, ahead of queue time.")
        # Also those in progress
        self.pickup_waiting = gauge("relay_pickup_waiting", "Pending submissions.")
        self.pickup_deferred = gauge("relay_pickup_deferred", _PICKUP_DEFERRED)
        # `outcome`: the actions, `defer` beyond a `rate_limit`, `error` if skipped; audit rules too
        self.policy_rules = counter("relay_policy_rule", "Rules that matched.", ["rule", "outcome"])
        self.policy_set_age = gauge(
            "relay_policy_set_age_seconds",
            "Age of a tenant's rules while a fault keeps newer ones out; else 0.",
            ["tenant"],
        )
        self._count_reports_and_smtp(counter, gauge, histogram)
        self._describe_itself(counter, gauge)

    def milter_answered(self, milter: str, answer: str, took_s: float) -> None:
        """Count an answer of a milter."""
        self._milter_seconds.labels(milter).observe(took_s)
        self._milter_answers.labels(milter, answer).inc()

    def expect(self, *, domains: Iterable[str], milters: Iterable[str]) -> None:
        """Set rare counters to zero for signing domains and milters, so that they are exposed."""
        for domain, result in product(domains, ("failed", "ended")):
            self.dkim_signatures_by(domain, result)
        for milter in milters:
            self._milter_answers.labels(milter, "down")

    def keep_rules(self, known: Collection[tuple[str, str]]) -> None:
        """Remove the counts of all (rule, outcome) pairs except those in `known`."""
        counted = {
            (sample.labels["rule"], sample.labels["outcome"])
            for metric in self.policy_rules.collect()
            for sample in metric.samples
        }
        for labels in counted.difference(known):
            self.policy_rules.remove(*labels)

    def _describe_itself(self, counter: "partial[Counter]", gauge: "partial[Gauge]") -> None:
        built = Info("relay_build", "What this was built from.", registry=self.registry)
        built.info({"version": __version__, "commit": commit()})
        # UTC; only at `observe.metrics`, or for clients on this machine without a proxy
        self.account_messages = gauge(
            "relay_account_messages", "To other domains today, of the ten busiest.", ["account"]
        )
        self.reload_successful = gauge("relay_config_last_reload_successful", "0: it had a fault.")
        self.reload_successful.set(1)
        # Since 1970
        self.reload_success_time = gauge(
            "relay_config_last_reload_success_timestamp_seconds", "When the configuration was read."
        )
        # `state`: incoming, outgoing
        self.connections = gauge("relay_connections", "Open connections.", ["state"])
        self.crowded = gauge("relay_smtp_strangers_full", "Listeners: places of strangers are full")
        self.pressure = gauge(
            "relay_pressure_level",
            "0: normal; 1: slow, untrusted clients are refused; 2: new mail is refused.",
        )
        self.pressure_reasons = gauge(
            "relay_pressure_reason", "The level that each reason requires.", ["reason"]
        )
        self._refused: Mapping[str, int] = {}  # as last exposed
        # `bound`: /readyz names those that refused something in the last minute
        self.shares_refused = counter(
            "relay_shares_refused", "Refused: a client or account has its share.", ["bound"]
        )
        # `what`: delivery, accept
        self.paused = gauge("relay_paused", "1 while an operator has stopped it.", ["what"])

    def _count_reports_and_smtp(
        self,
        counter: "partial[Counter]",
        gauge: "partial[Gauge]",
        histogram: "partial[Histogram]",
    ) -> None:
        # `kind`: failure, delayed, held, delivered, relayed, unknown, read, notread, journal,
        # notify, dead-letter, postmaster (strangers' mail, added recipients), dropped
        self.reports = counter("relay_reports", "Reports made.", ["kind"])
        # `policy`: sts, tlsa, requiretls
        self.tls_policy = counter(
            "relay_tls_policy", "Sessions under policies, and their fetches.", ["policy", "result"]
        )
        # `result`: signed, failed (451), ended (sent unsigned)
        self.dkim_signatures = counter(
            "relay_dkim_signatures",
            "DKIM signatures: signed, failed, or ended for a message without a usable key.",
            ["domain", "result"],
        )
        # `reason`: null-sender, size, rate
        self.answers_discarded = counter(
            "relay_answers_discarded", "Answers to reports that were discarded.", ["reason"]
        )
        # `reason`: unrouted, automatic, rate, noticed
        self.reports_left_out = counter(
            "relay_reports_left_out", "Reports that were not sent.", ["reason"]
        )
        # Equal replies to recipients of a transaction count once
        self.refusals = counter(
            "relay_smtp_refusals",
            "SMTP commands, connections and TLS handshakes that were refused.",
            ["reason"],
        )
        # `method`: spf, helo, dkim, dmarc
        self.sender_checks = counter(
            "relay_sender_checks", "SPF, DKIM and DMARC of strangers' mail.", ["method", "result"]
        )
        for result in ("pass", "unable"):  # alerts look for their first increase
            self.sender_checks.labels("dmarc", result)
        # `role`: of the listener
        self.smtp_sessions = counter(
            "relay_smtp_sessions", "SMTP connections, without pickup's.", ["role"]
        )
        self.auth_failures = counter(
            "relay_auth_failures", "Logins by SMTP that failed or were delayed."
        )

        self._milter_seconds = histogram(
            "relay_milter_seconds", "Until a milter's answer.", ["milter"], buckets=BOUNDS_S
        )
        self.milter_down = gauge("relay_milter_down", "1 while a milter is down.", ["milter"])
        # Of a listener, since 1970; 0: clients would reject it
        self.certificate_end = gauge(
            "relay_certificate_end_timestamp_seconds", "When it ends.", ["certificate"]
        )
        # `secret_ends`, or the certificate's end
        self.oauth_secret_expires = gauge(
            "relay_oauth_secret_expires_seconds", "Until it ends; below 0: since.", ["oauth"]
        )
        # `answer`: continue, accept, reject, tempfail, reply, discard, shutdown, down
        self._milter_answers = counter(
            "relay_milter_answers",
            "Milters' refusals, and their decisions about messages.",
            ["milter", "answer"],
        )

        # Prometheus sees an increase only if the counter existed before.
        self.reports.labels("dead-letter")
        for outcome in ("failed", "expired"):
            self.recipients.labels(outcome)

        # Counters per message or recipient: looking up labels takes longer than counting.
        self.accepted_by = cache(self.accepted.labels)
        self.recipients_by = cache(self.recipients.labels)
        self.attempts_by = cache(self.attempts.labels)
        self.dkim_signatures_by = cache(self.dkim_signatures.labels)

    def exposition(self, sent: Mapping[str, int], refused: Mapping[str, int]) -> bytes:
        """Return the text of /metrics, with the messages that these accounts have sent, and what
        the bounds of Shares have refused since the start.
        """
        for bound, count in refused.items():
            self.shares_refused.labels(bound).inc(count - self._refused.get(bound, 0))
        self._refused = dict(refused)
        self.account_messages.clear()
        for account, messages in sent.items():
            self.account_messages.labels(account).set(messages)
        return generate_latest(self.registry)
