"""Step 7: who hears that a message failed, and the report itself, already routed.

Touches nothing: it makes values, which go into the spool in one transaction with the failure.
Promises: one report a message however many recipients failed; none about a report, to the null
reverse-path, to strangers, or against NOTIFY; what can reach no sender reaches the postmaster.
"""

from relay.reports.bounces import Reporter, ReportPlan

__all__ = ["ReportPlan", "Reporter"]
