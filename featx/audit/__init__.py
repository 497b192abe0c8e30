"""What the features say about the data: label errors, copies, outliers, shortcuts, and which images to label next."""

from featx.audit.labelling import ToLabel, next_to_label
from featx.naming import publish

__all__ = ["ToLabel", "next_to_label"]

publish([globals()[_name] for _name in __all__], __name__)
