# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Start and watch a counter guest: tests/support/counter.py for the shell and for playbooks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import CounterGuest, cli


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--block", type=int, default=16, metavar="MIB", help="memory filled and checksummed")
    parser.add_argument("--dirty", type=int, default=0, metavar="MIB", help='memory dirtied after "send d"')
    parser.add_argument("--dirty-rate", type=int, default=0, metavar="MIB/S", help="0: as fast as the CPU can")
    parser.add_argument("--line-ms", type=int, default=120, metavar="MS", help="time between two lines")
    parser.add_argument("--seed", type=int, help="of the block's pattern (default: from the name)")


def _make(options: argparse.Namespace) -> CounterGuest:
    return CounterGuest(
        options.workdir,
        options.name,
        block_mib=options.block,
        dirty_mib=options.dirty,
        dirty_rate_mib=options.dirty_rate,
        line_ms=options.line_ms,
        seed=options.seed,
        **cli.common_config(options),
    )


if __name__ == "__main__":
    sys.exit(cli.main(CounterGuest, _options, _make))
