# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The operator's own check of a VM that was restored: a command on this host that must succeed in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from ansible_collections.vmops.qemu.plugins.module_utils._cancellation import within

#: Seconds between two tries.
_INTERVAL = 2.0

#: What stands for the VM's name in the command's words.
_NAME = "{name}"


async def why_check_fails(command: list[str], name: str, timeout: float) -> str:
    """Run the check again and again until it succeeds; why it did not, as a clause, or the empty string.

    :param command: its words, in which ``{name}`` stands for the VM's name.
    :param timeout: seconds for all tries.
    """
    # A VM may be named -oProxyCommand=..., which ssh would run.
    if name.startswith("-") and any(_NAME in word for word in command):
        return "the VM's name would be an option of the check"
    words = [word.replace(_NAME, name) for word in command]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        reason = await _why_try_fails(words, max(0.1, deadline - loop.time()))
        if not reason or loop.time() + _INTERVAL > deadline:
            return reason
        await asyncio.sleep(_INTERVAL)


async def _why_try_fails(words: list[str], timeout: float) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return f"it cannot be run: {error}"
    try:
        status = await within(timeout, process.wait())
    except asyncio.TimeoutError:
        return "it did not end in time"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                # With all that it has started.
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return f"its exit status is {status}" if status else ""
