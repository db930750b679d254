"""This machine's clock against that of the MLflow server."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

from cnn_jobs.doctor.finding import Finding, failed, ok, skipped, warning
from cnn_jobs.doctor.server import Contact

# A clock that is off makes a run's times wrong; at 5 minutes tokens, at 15 S3's signatures are refused.
CLOCK_WARNING_S, CLOCK_FAILED_S = 5.0, 300.0


def check_clock(contact: Contact) -> Finding:
    """This machine's clock against the server's; HTTP tells it in whole seconds."""
    health = contact.health
    try:
        server = parsedate_to_datetime(health.date).timestamp() + 0.5
    except (TypeError, ValueError):
        return skipped("the server does not tell its time")
    ahead = (health.sent_s + health.received_s) / 2 - server
    unsure = 0.5 + (health.received_s - health.sent_s) / 2
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's, to within {unsure:.1f} s"
    advice = "set the clocks by NTP (timedatectl set-ntp true), on the machine that is wrong"
    if abs(ahead) - unsure > CLOCK_FAILED_S:
        return failed(f"{found}: logins and S3 signatures are refused", advice)
    if abs(ahead) - unsure > CLOCK_WARNING_S:
        return warning(f"{found}: times of runs will be wrong", advice)
    return ok(f"agrees with the server's to within {max(1.0, abs(ahead) + unsure):.0f} s")
