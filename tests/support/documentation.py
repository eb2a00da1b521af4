# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The examples in the documentation: blocks of code, and code within sentences."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import textwrap
from collections.abc import Iterator

from .guest import SOURCES


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code."""

    #: The page, relative to the tree, and the line on which it begins.
    page: str
    line: int
    #: As the fence says it; empty where it says nothing, and for an indented block.
    language: str
    text: str
    #: The last line of text before it.
    before: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """All pages of the repository, by their paths in it."""
    found = [*SOURCES.glob("*.md"), *SOURCES.glob("docs/**/*.md"), *SOURCES.glob("roles/*/README.md")]
    found += SOURCES.glob("extensions/molecule/*.md")
    return sorted(str(path.relative_to(SOURCES)) for path in found)


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in its order."""
    return list(_blocks(page, (SOURCES / page).read_text(encoding="utf-8").splitlines()))


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    before, number = "", 0
    while number < len(lines):
        line = lines[number]
        fence = re.match(r"( *)```(.*)$", line)
        if fence:
            end = number + 1 + [each.strip() for each in lines[number + 1 :]].index("```")
            text = [each[len(fence[1]) :] for each in lines[number + 1 : end]]
            yield Block(page, number + 1, fence[2].strip(), "\n".join(text) + "\n", before)
            number = end + 1
            continue
        # An indented one stands between blank lines, also that of an item, which is indented itself.
        if line.startswith("    ") and number and not lines[number - 1]:
            end = number
            while end < len(lines) and (not lines[end] or lines[end].startswith("    ")):
                end += 1
            text = textwrap.dedent("\n".join(lines[number:end])).rstrip().splitlines()
            yield Block(page, number + 1, "", "\n".join(text) + "\n", before)
            number = end
            continue
        before = line or before
        number += 1


def file_of(block: Block) -> str:
    """The file that a block is, as its first line says in a comment; the empty string where it is none."""
    name = re.match(r"# (/?[\w@./-]+\.\w+)\n", block.text)
    return name[1] if name else ""


def spans(page: str) -> list[tuple[str, str]]:
    """Code within the sentences of a page: where it is, and what."""
    text = (SOURCES / page).read_text(encoding="utf-8")
    # What is in blocks is no sentence.
    text = re.sub(r"(?ms)^( *)```.*?^\1```$", lambda block: "\n" * block[0].count("\n"), text)
    found = []
    for span in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        found.append((f"{page}:{text.count(chr(10), 0, span.start()) + 1}", re.sub(r"\s+", " ", span[1])))
    return found


def commands(text: str) -> list[str]:
    """The lines of a shell's block, each whole, without prompts and comments."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    return [command for line in lines if (command := line.strip().removeprefix("$ "))]


def check_syntax(text: str) -> str:
    """What a shell finds wrong with a text; the empty string where that is nothing."""
    return subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False).stderr
