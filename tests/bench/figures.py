# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the benchmark has measured: rounds, their statistics, and the table made of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

BEGIN = "<!-- begin of the measured figures -->"
END = "<!-- end of the measured figures -->"


@dataclass
class Figures:
    """One side on one guest: seconds of each round, by what was measured ("save", "restore", "pause", "removal")."""

    guest: str
    side: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_kib: int = 0

    def add(self, what: str, seconds: float) -> None:
        """One more round of it."""
        self.seconds.setdefault(what, []).append(seconds)

    def median(self, what: str) -> Optional[float]:
        """The median in seconds; None where it was not measured."""
        rounds = self.seconds.get(what)
        return statistics.median(rounds) if rounds else None

    def shown(self, what: str) -> str:
        """The median with the smallest and the greatest."""
        rounds = self.seconds.get(what)
        if not rounds:
            return ""
        return f"{statistics.median(rounds):.2f} ({min(rounds):.2f} to {max(rounds):.2f})"


def best(rows: Iterable[Figures], guest: str, what: str, prefix: str) -> Optional[float]:
    """The smallest median among the sides whose name begins so."""
    medians = [row.median(what) for row in rows if row.guest == guest and row.side.startswith(prefix)]
    return min((median for median in medians if median is not None), default=None)


def _ratio(value: Optional[float], base: Optional[float]) -> str:
    return f"{value / base:.2f}" if value is not None and base else ""


def table(rows: Sequence[Figures]) -> str:
    """Markdown, a section for each guest."""
    lines: list[str] = []
    for guest in dict.fromkeys(row.guest for row in rows):
        lines += [f"### {guest}", ""]
        lines.append(
            "| Side | Save (s) | of the disk | of libvirt | Restore (s) | of the disk | of libvirt | Pause (s) |"
            " Removal (s) | Peak (MiB) |"
        )
        lines.append("|" + " --- |" * 10)
        for row in (row for row in rows if row.guest == guest):
            cells = [row.side]
            for what in ("save", "restore"):
                cells.append(row.shown(what))
                for prefix in ("disk", "virsh"):
                    cells.append(_ratio(row.median(what), best(rows, guest, what, prefix)))
            cells += [row.shown("pause"), row.shown("removal"), f"{row.peak_kib / 1024:.0f}" if row.peak_kib else ""]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def as_json(rows: Iterable[Figures]) -> list[dict[str, Any]]:
    """For a file that from_json() reads."""
    return [asdict(row) for row in rows]


def from_json(rows: Iterable[dict[str, Any]]) -> list[Figures]:
    """What as_json() gave."""
    return [Figures(**row) for row in rows]


def between_markers(document: str, text: str) -> str:
    """The document with this text between its markers. Raises ValueError where they are not there."""
    before, marker, rest = document.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not marker or not end:
        raise ValueError("the document has no markers")
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"
