# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import asyncio

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import WayBack


class WorkError(Exception):
    pass


def test_what_was_done_last_is_undone_first():
    undone: list[str] = []

    async def work():
        async with WayBack() as way_back:
            way_back.callback(undone.append, "first")
            way_back.callback(undone.append, "last")
            raise WorkError

    with pytest.raises(WorkError):
        asyncio.run(work())
    assert undone == ["last", "first"]


def test_no_undo_hides_the_failure():
    async def work():
        async with WayBack() as way_back:
            way_back.push(lambda *_details: True)
            raise WorkError

    with pytest.raises(WorkError):
        asyncio.run(work())


def test_nothing_is_undone_past_the_point_of_no_return():
    undone: list[str] = []

    async def work():
        async with WayBack() as way_back:
            way_back.callback(undone.append, "first")
            way_back.pop_all()
            raise WorkError

    with pytest.raises(WorkError):
        asyncio.run(work())
    assert not undone


def test_an_undo_that_failed_may_keep_those_before_it_from_being_done():
    undone: list[str] = []

    async def work():
        async with WayBack() as way_back:
            way_back.callback(undone.append, "first")
            way_back.callback(way_back.pop_all)
            raise WorkError

    with pytest.raises(WorkError):
        asyncio.run(work())
    assert not undone


@pytest.mark.parametrize("times", [1, 3])
def test_the_undoing_runs_to_its_end_whatever_cancels_the_task(times):
    undone: list[str] = []

    async def undo(name):
        await asyncio.sleep(0.02)
        undone.append(name)

    async def work():
        async with WayBack() as outer, WayBack() as inner:
            outer.push_async_callback(undo, "outer")
            inner.push_async_callback(undo, "inner")
            await asyncio.sleep(60)

    async def cancel():
        task = asyncio.ensure_future(work())
        for _each in range(times):
            await asyncio.sleep(0.01)
            task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert undone == ["inner", "outer"]
