"""What an audit says about the data, in words."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from featx.report.audits import audit_checks
from featx.report.page.sections import Bullets, Section, Text

if TYPE_CHECKING:
    from featx.audit import Audit


def data_section(audit: Audit, note: str = "") -> Section:
    """The checks of an audit, how many findings there are of each kind, and a note behind that."""
    counts = Counter(finding.kind for finding in audit.findings())
    found = ", ".join(f"{kind} {n:,}" for kind, n in counts.items()) or "none"
    text = (
        f"{len(audit.store):,} images of {audit.store.path.name}, audited by {', '.join(audit.layers)} in "
        f"{audit.seconds:.0f} s. Findings: {found}.{note}"
    )
    return Section("data", "What the data say", [Text(text), Bullets(list(audit_checks(audit)))])
