# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Start and watch a Linux guest: tests/support/linux.py for the shell and for playbooks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import LinuxGuest, cli


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--block", type=int, default=16, metavar="MIB", help="random memory to be checksummed")
    parser.add_argument("--disk", type=int, default=64, metavar="MIB", help="size of the disk, when it is made")


def _make(options: argparse.Namespace) -> LinuxGuest:
    return LinuxGuest(
        options.workdir,
        options.name,
        block_mib=options.block,
        disk_mib=options.disk,
        **cli.common_config(options),
    )


if __name__ == "__main__":
    sys.exit(cli.main(LinuxGuest, _options, _make))
