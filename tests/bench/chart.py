# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A chart of the medians as SVG, legible on light and on dark."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from .figures import Figures

_BAR, _LEFT, _WIDTH = 12, 250, 460
_COLOURS = {"save": "#3b82f6", "restore": "#f59e0b"}
_STYLE = "text{font:12px sans-serif;fill:#222}@media(prefers-color-scheme:dark){text{fill:#ddd}}"


def chart(rows: Sequence[Figures], guest: str) -> str:
    """Bars of one guest's saves and restores."""
    shown = [row for row in rows if row.guest == guest and row.median("save") is not None]
    longest = max((row.median(what) or 0.0 for row in shown for what in _COLOURS), default=0.0) or 1.0
    height = 50 + len(shown) * (2 * _BAR + 10)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 80} {height}" role="img">',
        f"<title>{escape(guest)}: seconds, medians</title><style>{_STYLE}</style>",
        f'<text x="10" y="18" font-weight="bold">{escape(guest)}: seconds, medians</text>',
    ]
    for index, (what, colour) in enumerate(_COLOURS.items()):
        parts.append(f'<rect x="{_LEFT + index * 90}" y="26" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + 15 + index * 90}" y="35">{what}</text>')
    y = 46
    for row in shown:
        parts.append(f'<text x="{_LEFT - 8}" y="{y + _BAR + 4}" text-anchor="end">{escape(row.side)}</text>')
        for what, colour in _COLOURS.items():
            median = row.median(what)
            if median is not None:
                width = median / longest * _WIDTH
                parts.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
                parts.append(f'<text x="{_LEFT + width + 5:.1f}" y="{y + _BAR - 2}">{median:.2f}</text>')
            y += _BAR
        y += 10
    return "\n".join([*parts, "</svg>", ""])
