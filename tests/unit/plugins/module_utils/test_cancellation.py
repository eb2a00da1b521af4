# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import asyncio

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import WayBack, to_its_end


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


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_step_is_done_to_its_end_and_then_one_is_cancelled(times):
    done = []

    async def step():
        await asyncio.sleep(0.05)
        done.append("step")
        return "result"

    async def run():
        task = asyncio.ensure_future(to_its_end(step()))
        for _time in range(times):
            await asyncio.sleep(0.005)
            task.cancel()
        return await task

    if times:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(run())
    else:
        assert asyncio.run(run()) == "result"
    assert done == ["step"]


def test_the_failure_of_such_a_step_is_not_lost():
    async def step():
        await asyncio.sleep(0.01)
        raise ValueError("its own")

    async def run():
        task = asyncio.ensure_future(to_its_end(step()))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(ValueError, match="its own"):
        asyncio.run(run())


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
