"""The page of a report: one that this relay wrote, and one of anybody."""

import email
import email.policy

from tests.support.sample_reports import report
from tests.unit.front_door.pages.test_inbox import keys_by_subject, mail, send

HEADING = '<h2 id="report-heading">{}</h2>'


async def test_a_report_is_that_of_a_host_unless_the_spool_knows_that_relay_wrote_it(pages):
    forged = email.message_from_bytes(report(), policy=email.policy.default)
    del forged["To"]
    forged["To"] = "bob@example.test"
    await send(pages, mail("Invoice", to="gone+550@customer.test"), forged)
    keys = keys_by_subject(await pages.text("/"))
    journey = await pages.relay.daemon.base.journeys.journey(keys["Invoice"], account=None)
    [own] = [one.detail["report_id"] for one in journey.steps if "report_id" in one.detail]
    assert HEADING.format("Delivery report") in await pages.text(f"/messages/{own}")
    other = await pages.text(f"/messages/{keys['Undeliverable: Quarterly report']}")
    assert HEADING.format("A report from relay.example.com") in other
