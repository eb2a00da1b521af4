# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What somebody else is doing with a VM's disks just now, which ends with its QEMU, or keeps it from being saved.

The kinds: ``block_job_fatal`` (the save would fail when all is written, or kill the guest; no option may override it),
``block_filter`` (the same of a node that was put above a disk), ``block_job`` (it would be lost without a word),
``export`` (its clients would lose it), and, without blocking, ``finished_job`` (a result that nobody has fetched) and
``dirty_bitmap`` (the next backup is a full one).
"""

from __future__ import annotations

import asyncio

from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.block_graph import (
    BlockAnswers,
    BlockGraph,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.verdict import Problem

#: The one job that bears a save. With a backup or a commit, in whatever state, QEMU (7.2 to 10.0) cannot give up its
#: disks when the migration completes: it fails with "Bad address"; with a paused backup it may hang. With a stream it
#: gives them up, and dies of SIGABRT when the job writes the next time: the image may not be complete yet then.
_BEARABLE_JOBS = frozenset(("mirror",))

#: Nodes with which it is the same as with these jobs (measured: "Bad address") where the guest writes through them,
#: from the start or put in later.
_FATAL_FILTERS = frozenset(("copy-before-write",))

#: States (``JobStatus``) of a job that does nothing any more.
_FINISHED = frozenset(("concluded", "aborting", "null"))


async def job_problems(monitor: Monitor, block: BlockAnswers) -> list[Problem]:
    """The jobs, exports and dirty bitmaps that a save would break or lose, in one round trip.

    :param block: what QEMU has answered about its nodes.
    :raises MonitorError: QEMU was lost, or refused.
    """
    jobs, exports = await asyncio.gather(
        monitor.execute("query-jobs"),
        monitor.execute_if_known("query-block-exports"),  # not before QEMU 5.2
    )
    problems = [_job_problem(job["id"], job["type"], job["status"]) for job in jobs]
    if not problems:  # the filters of jobs go with them
        problems += _filter_problems(block.graph)
    for export in exports or ():
        what = f"the {export['type']} export {export['id']} gives others a disk of it ({export['node-name']})"
        problems.append(Problem("export", what, "Let its clients finish, and end it (block-export-del)"))
    bitmaps = (bitmap for node in block.nodes for bitmap in node.get("dirty-bitmaps", ()))
    # Those without a name are the jobs' own.
    names = sorted({bitmap["name"] for bitmap in bitmaps if bitmap.get("name") and not bitmap["persistent"]})
    if names:
        what = f"the dirty bitmap {', '.join(names)} is kept in memory alone and ends with its QEMU"
        problems.append(Problem("dirty_bitmap", what, "Make the next backup a full one", blocks=False))
    return problems


def _filter_problems(graph: BlockGraph) -> list[Problem]:
    below = {node.name: node for drive in graph.drives if not drive.read_only for node in graph.below(drive.node)}
    cure = "Take it out (blockdev-del), as what has put it in does at its end, or start the VM without it"
    return [
        Problem(
            "block_filter",
            f"a disk is written to through the {node.driver} node {node.name}, and QEMU cannot be saved meanwhile",
            cure,
            fails_save=True,
        )
        for node in below.values()
        if node.driver in _FATAL_FILTERS
    ]


def _job_problem(name: str, kind: str, status: str) -> Problem:
    shown = f"the {kind} job {name}"
    if status in _FINISHED:
        what = f"{shown} has finished, and nobody has asked how"
        return Problem("finished_job", what, "Ask (query-jobs) and dismiss it (job-dismiss)", blocks=False)
    if kind not in _BEARABLE_JOBS:
        what = f"{shown} is under way ({status}), and QEMU cannot be saved meanwhile"
        cure = "Wait for its end, or cancel it (job-cancel, block-job-cancel)"
        return Problem("block_job_fatal", what, cure, fails_save=True)
    what = f"{shown} is under way ({status}) and would be lost"
    return Problem("block_job", what, "Wait for its end, complete it (job-complete), or cancel it (job-cancel)")
