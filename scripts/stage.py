# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy the working tree to build/collections/ansible_collections/vmops/qemu, where Ansible's tools want it.

What git tracks and what it would (untracked, not ignored) is copied; what is not there any more goes from the copy
too. Files that did not change keep their time stamps, so that caches beside them stay good. Prints the copy's path.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "build" / "collections" / "ansible_collections" / "vmops" / "qemu"
# Made by the tools in the copy, and of use to the next run.
KEEP = (".git", "tests/output")
CACHES = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


def source_files() -> set[str]:
    """The paths, relative to the repository, of all files that belong to the collection."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    names = {os.fsdecode(name) for name in listed.stdout.split(b"\0") if name}
    return {name for name in names if os.path.lexists(ROOT / name)}


def same(one: Path, other: Path) -> bool:
    """Whether the two are the same link, or files of the same content and mode."""
    if not os.path.lexists(other) or one.is_symlink() != other.is_symlink():
        return False
    if one.is_symlink():
        return os.readlink(one) == os.readlink(other)
    mode, other_mode = (stat.S_IMODE(path.stat().st_mode) for path in (one, other))
    return other.is_file() and mode == other_mode and filecmp.cmp(one, other, shallow=True)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def prune(names: set[str]) -> None:
    """Remove from the copy what is not in the tree."""
    directories = {str(parent) for name in names for parent in Path(name).parents}
    for here, below, files in os.walk(STAGE):
        relative = os.path.relpath(here, STAGE)
        for name in list(below):
            path = os.path.normpath(os.path.join(relative, name))
            if path in KEEP or path in names or (name in CACHES and relative in directories):
                below.remove(name)
            elif path not in directories and not any(keep.startswith(f"{path}/") for keep in KEEP):
                below.remove(name)
                remove(Path(here, name))
        for name in files:
            if os.path.normpath(os.path.join(relative, name)) not in names:
                remove(Path(here, name))


def main() -> None:
    """Make the copy what the tree is."""
    names = source_files()
    STAGE.mkdir(parents=True, exist_ok=True)
    if not (STAGE / ".git").exists():
        # The tools ask git for a collection's files; the repository around this one would say that it ignores them all.
        subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(STAGE)], check=True)
    prune(names)
    for name in sorted(names):
        source, target = ROOT / name, STAGE / name
        if same(source, target):
            continue
        if target.is_dir() and not target.is_symlink():
            remove(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        # A test that runs at the same time sees the old file or the new one, never half of one.
        fresh = target.with_name(f"{target.name}.{os.getpid()}.new")
        shutil.copy2(source, fresh, follow_symlinks=False)
        fresh.replace(target)
    print(STAGE)


if __name__ == "__main__":
    main()
