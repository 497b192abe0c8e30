"""What the features say about the data: label errors, copies, outliers, shortcuts, and which images to label next."""

from featx.audit.audit import audit
from featx.audit.confusion import ConfusedPair
from featx.audit.findings import Audit, Finding, shortcut_reason, split_warnings
from featx.audit.label_errors import LabelErrors
from featx.audit.labelling import ToLabel, next_to_label
from featx.audit.outliers import Outlier
from featx.audit.selections import audit_selection
from featx.audit.shift import Shift
from featx.audit.shortcuts import Shortcut, Stratum
from featx.naming import publish

__all__ = [
    "Audit",
    "ConfusedPair",
    "Finding",
    "LabelErrors",
    "Outlier",
    "Shift",
    "Shortcut",
    "Stratum",
    "ToLabel",
    "audit",
    "audit_selection",
    "next_to_label",
    "shortcut_reason",
    "split_warnings",
]

publish([globals()[_name] for _name in __all__], __name__)
