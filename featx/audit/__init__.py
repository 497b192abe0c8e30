"""What the features say about the data: label errors, copies, outliers, shortcuts, and which images to label next."""

from featx.naming import publish

__all__: list[str] = []

publish([globals()[_name] for _name in __all__], __name__)
