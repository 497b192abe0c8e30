"""Draws flow.svg, the picture of the flow: `python docs/flow.py`."""

from __future__ import annotations

from pathlib import Path

BLUE, GREEN, GREY, INK = "#dbe9f6", "#dff0dc", "#f2f2f2", "#222"


def text(x: float, y: float, words: str, size: int = 13, weight: str = "normal", anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" stroke="{INK}"/>'


def arrow(x: float, y: float, end_x: float, end_y: float) -> str:
    return f'<path d="M{x} {y} L{end_x} {end_y}" stroke="{INK}" fill="none" marker-end="url(#head)"/>'


def flow() -> str:
    parts = [
        text(190, 24, "once", 14, "bold"),
        text(705, 24, "as often as you like, in seconds", 14, "bold"),
        *(box(20 + 8 * i, 88 + 8 * i, 70, 60, GREY) for i in range(3)),
        text(71, 138, "images"),
        arrow(112, 128, 138, 128),
    ]
    for i, height in enumerate((120, 96, 72, 48)):  # the layers of a network, three of them stored
        x, top = 144 + 42 * i, 128 - height / 2
        parts.append(box(x, top, 28, height, BLUE))
        if i:
            parts.append(f'<path d="M{x + 14} {top + height} V{206 + 16 * (3 - i)} H352" stroke="{INK}" fill="none"/>')
            parts.append(arrow(340, 206 + 16 * (3 - i), 366, 206 + 16 * (3 - i)))
    parts += [
        text(221, 56, "pretrained network"),
        box(370, 60, 120, 200, GREEN),
        text(430, 84, "one HDF5 file", 13, "bold"),
        *(text(430, 112 + 22 * i, words, 12) for i, words in enumerate(("recipe", "keys, labels, ids", "checksums"))),
        *(text(430, 210 + 16 * i, words, 12) for i, words in enumerate(("penultimate", "layer4", "layer3"))),
        arrow(490, 128, 530, 128),
        text(510, 118, "keys", 11),
        box(536, 84, 190, 88, BLUE),
        text(631, 108, "scikit-learn pipeline", 13, "bold"),
        text(631, 130, "StoredFeatures(layer)", 12),
        text(631, 150, "StandardScaler, SVC(C) ...", 12),
        arrow(631, 196, 631, 176),
        box(536, 200, 190, 44, GREY),
        text(631, 219, "search over layers and C,", 12),
        text(631, 235, "honest cross-validation", 12),
        arrow(726, 112, 766, 92),
        arrow(726, 144, 766, 164),
        box(770, 66, 116, 50, GREEN),
        text(828, 88, "report", 13, "bold"),
        text(828, 106, "score, interval", 12),
        box(770, 140, 116, 50, GREEN),
        text(828, 162, "model file", 13, "bold"),
        text(828, 180, "labels new images", 12),
    ]
    size = 'markerWidth="8" markerHeight="8" refX="7" refY="3"'
    head = f'<marker id="head" {size} orient="auto"><path d="M0 0 L7 3 L0 6 Z" fill="{INK}"/></marker>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 906 276" font-family="Helvetica, Arial, sans-serif" '
        f'fill="{INK}"><title>Images, network, one file, scikit-learn, report and model</title><defs>{head}</defs>'
        f'<rect width="906" height="276" fill="white"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    (Path(__file__).parent / "flow.svg").write_text(flow())
