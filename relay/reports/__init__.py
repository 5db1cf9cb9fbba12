"""Step 7: bounces and other reports about failed messages.

Reports are values that go into the spool in one transaction with the failure. There is one report
per message, however many recipients failed; none about a report, to the null reverse-path, to
strangers, or against NOTIFY. Failures that no sender may be told of go to the postmaster.
"""

from relay.reports.bounces import Reporter, ReportPlan

__all__ = ["ReportPlan", "Reporter"]
