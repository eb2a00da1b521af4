# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A program in a QEMU's place that shows that it was run, and what a refusal to run it says."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Optional

from .module_run import Result, check_error
from .observe import VM
from .process import find_qemu_pids


@dataclasses.dataclass
class Canary:
    """A program that shows that it was run: by a file, with its words in it."""

    program: Path
    file: Path

    @property
    def words(self) -> list[str]:
        return [os.fsdecode(word) for word in self.file.read_bytes().split(b"\0")[:-1]]

    @property
    def run(self) -> bool:
        return self.file.exists()


def make_canary(directory: Path, name: str = "qemu-system-x86_64") -> Canary:
    directory.mkdir(exist_ok=True)
    canary = Canary(directory / name, directory / "canary")
    canary.program.write_text(
        f"#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done >{canary.file}.new\n"
        f"mv {canary.file}.new {canary.file}\n"
    )
    canary.program.chmod(0o755)
    return canary


def check_refused(result: Result, kind: str, *said: str, image: Path, canary: Optional[Canary] = None) -> None:
    """It was refused in a sentence, and nothing was started."""
    check_error(result, kind, *said)
    assert "unexpected" not in result["msg"]
    assert len(result["msg"]) < 2000
    assert canary is None or not canary.run
    assert find_qemu_pids(VM) == []
    assert image.exists()
