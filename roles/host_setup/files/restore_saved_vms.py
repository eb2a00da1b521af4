# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore the saved VMs of this host, without Ansible: what vmops-restore.service runs at boot.

Each VM is restored once, from its last save in the directory, as vmops.qemu.qemu_restore does it, in groups one after
the other, some at a time. Older saves, checkpoints and archives are named and left alone. What cannot be restored (a
damaged image, a partial one, a QEMU that does not start) keeps its image and is named; the others go on, and the exit
status is 1. A restore that hangs is given up after the settings' timeout. SIGTERM and SIGINT give up what is at work,
as the modules do: no QEMU with half a guest stays, and the images are kept.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import signal
import sys
from typing import Any

from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    BusyError,
    ImageNotFoundError,
    VmopsError,
    one_line,
)
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import directory_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import why_left_alone
from ansible_collections.vmops.qemu.plugins.module_utils._restore.operation import RestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe

#: Seconds between two tries where another run (a controller's, usually) works on the same image or VM.
BUSY_INTERVAL = 2.0


class Restorer:
    """All restores of one run."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """:param settings: C(save_dir), C(order), C(parallel), and C(timeout) in seconds for each VM."""
        self.save_dir = str(settings["save_dir"])
        self.order: list[list[str]] = settings["order"]
        self.timeout = float(settings["timeout"])
        self.free = asyncio.Semaphore(int(settings["parallel"]))
        #: What is at work, to be cancelled by a signal; no further one begins after it.
        self.working: set[asyncio.Task[dict[str, Any]]] = set()
        self.stopped = ""

    async def run(self) -> bool:
        """Restore everything; whether nothing is left that should have been."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop, number)
        try:
            images = directory_info(self.save_dir)
        except ImageNotFoundError:
            say(f"there is no directory {self.save_dir}: nothing to restore")
            return True
        good = True
        complete = []
        for image in images:
            left_alone = "it is an archive" if image["state"] == "archived" else why_left_alone(image)
            if left_alone:
                say(f"{image['path']}: left alone, {left_alone}")
            elif image["state"] == "complete":
                complete.append(image)
            else:
                good = False
                complain(f"{image['path']}: not restored, {image['state']}: {'; '.join(image['problems'])}")
        for number in range(len(self.order) + 1):
            group = [image["path"] for image in complete if self.group_of(image["name"] or "") == number]
            good = all(await asyncio.gather(*(self.restore(path) for path in group))) and good
        return good

    def stop(self, number: signal.Signals) -> None:
        """Give up what is at work, and begin no further one. Once: a second signal must not cut the way back short."""
        if not self.stopped:
            self.stopped = signal.Signals(number).name
            for task in self.working:
                task.cancel()

    def group_of(self, name: str) -> int:
        """The number of the group to which a VM belongs."""
        for number, patterns in enumerate(self.order):
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                return number
        return len(self.order)

    async def restore(self, path: str) -> bool:
        """Restore one image; whether its VM is back."""
        async with self.free:
            deadline = asyncio.get_running_loop().time() + self.timeout
            while not self.stopped:
                try:
                    result = await self.bounded(path, deadline)
                except BusyError as error:
                    if asyncio.get_running_loop().time() > deadline:
                        return complain(f"{path}: {error}")
                    await asyncio.sleep(BUSY_INTERVAL)
                    if not os.path.exists(path):
                        say(f"{path}: another run has restored it")
                        return True
                except VmopsError as error:
                    return complain(f"{path}: {error}")
                except Exception as error:  # a bug of ours is no reason to leave the others saved
                    return complain(f"{path}: unexpected error, please report it: {type(error).__name__}: {error}")
                else:
                    say(result["msg"])
                    for warning in result.get("warnings", ()):
                        complain(warning)
                    return True
            return complain(f"{path}: not begun, {self.stopped} came before")

    async def bounded(self, path: str, deadline: float) -> dict[str, Any]:
        """One restore, ended by its deadline or a signal.

        :raises VmopsError: it failed, or was given up; the guest is then as the error says.
        """
        operation = RestoreOperation(RestoreRequest(name=None, qmp_socket=None, path=path, save_dir=self.save_dir))
        task = asyncio.ensure_future(operation.run())
        self.working.add(task)
        try:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            done, _pending = await asyncio.wait({task}, timeout=left)
            if not done:
                task.cancel()
            return await task
        except asyncio.CancelledError:
            why = f"interrupted by {self.stopped}" if self.stopped else f"not done within {self.timeout:g} seconds"
            raise VmopsError(
                f"The restore was {why}", situation=operation.situation, cure="Restore it with qemu_restore"
            ) from None
        finally:
            self.working.discard(task)


def say(text: str) -> None:
    """A line for the journal."""
    print(one_line(text), flush=True)


def complain(text: str) -> bool:
    """A line for the journal about what went wrong, as an error (sd-daemon(3)); False."""
    print(f"<3>{one_line(text)}", file=sys.stderr, flush=True)
    return False


def read_settings(path: str) -> dict[str, Any]:
    """The settings; what others could have written is not followed.

    :raises VmopsError: they cannot be read, or are not safe.
    """
    try:
        reason = why_unsafe(path, {0, os.geteuid()})
        if reason:
            raise VmopsError(f"{path} is not safe: {reason}")
        with open(path, encoding="utf-8") as handle:
            settings: dict[str, Any] = json.load(handle)
        return settings
    except (OSError, ValueError) as error:
        raise VmopsError(f"The settings {path} cannot be read: {error}") from error


def main(settings: str) -> int:
    """The exit status: 0 where nothing is left that should have been restored."""

    async def run() -> bool:
        # Made inside the loop: a semaphore of Python 3.9 belongs to the loop in which it was made.
        return await Restorer(read_settings(settings)).run()

    try:
        return int(not asyncio.run(run()))
    except VmopsError as error:
        complain(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
