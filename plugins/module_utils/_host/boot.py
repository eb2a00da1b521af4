# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restoring the saved VMs of this host when it boots.

Each VM is restored once, from its last save in the directory, as ``qemu_restore`` does it, in groups one after the
other, some at a time. Older saves, checkpoints and archives are named and left alone. An image that cannot be restored
(it is damaged or partial, or its QEMU does not start) is named and kept, and the others go on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import BusyError, ImageNotFoundError, VmopsError
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import directory_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.last_save import why_left_alone
from ansible_collections.vmops.qemu.plugins.module_utils._names import group_of
from ansible_collections.vmops.qemu.plugins.module_utils._restore.operation import RestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest

#: Seconds between two tries where another run (a controller's, usually) works on the same image or VM.
BUSY_INTERVAL = 2.0


@dataclasses.dataclass(frozen=True)
class BootRestoreRequest:
    """What a restore at boot is asked for."""

    save_dir: str
    #: The groups, each as the shell patterns of its VMs' names; VMs that match none come last, together.
    order: list[list[str]]
    #: How many VMs of a group are restored at a time.
    parallel: int
    #: Seconds for each VM, after which its restore is given up.
    timeout: float

    @classmethod
    def of(cls, settings: t.Mapping[str, t.Any]) -> BootRestoreRequest:
        """What settings, as they stand in a file, ask for.

        :raises ValueError: a setting is missing, or has a value of another type.
        """
        try:
            return cls(
                save_dir=str(settings["save_dir"]),
                order=[[str(pattern) for pattern in patterns] for patterns in settings["order"]],
                parallel=int(settings["parallel"]),
                timeout=float(settings["timeout"]),
            )
        except KeyError as exc:
            raise ValueError(f"{exc.args[0]} is missing") from exc
        except TypeError as exc:
            raise ValueError(str(exc)) from exc


class Journal(t.Protocol):
    """Where a restore at boot tells, line by line, what becomes of each image."""

    def say(self, text: str) -> None:
        """Tell what was done, or left alone."""

    def complain(self, text: str) -> None:
        """Tell what went wrong."""


class BootRestoreOperation:
    """All restores of one boot. It must be made inside the event loop (a semaphore of Python 3.9 belongs to one)."""

    def __init__(self, request: BootRestoreRequest, journal: Journal) -> None:
        self._request = request
        self._journal = journal
        self._free = asyncio.Semaphore(request.parallel)
        self._working: set[asyncio.Task[dict[str, t.Any]]] = set()
        self._stopped = ""

    async def run(self) -> bool:
        """Restore everything.

        :returns: whether nothing is left that should have been restored.
        :raises ImageAccessError: the directory cannot be read.
        """
        try:
            images = directory_info(self._request.save_dir)
        except ImageNotFoundError:
            self._journal.say(f"there is no directory {self._request.save_dir}: nothing to restore")
            return True
        groups: list[list[str]] = [[] for _group in range(len(self._request.order) + 1)]
        good = True
        for image in images:
            left_alone = "it is an archive" if image["state"] == "archived" else why_left_alone(image)
            if left_alone:
                self._journal.say(f"{image['path']}: left alone, {left_alone}")
            elif image["state"] == "complete":
                groups[group_of(image["name"] or "", self._request.order)].append(image["path"])
            else:
                good = False
                problems = "; ".join(image["problems"])
                self._journal.complain(f"{image['path']}: not restored, {image['state']}: {problems}")
        for group in groups:
            good = all(await asyncio.gather(*(self._restore(path) for path in group))) and good
        return good

    def stop(self, why: str) -> None:
        """Give up what is at work, as the modules do, and begin no further restore.

        No QEMU with half a guest stays, and the images are kept. A second call does nothing: it must not cut the way
        back short.

        :param why: the name of the signal that asks for it.
        """
        if not self._stopped:
            self._stopped = why
            for task in self._working:
                task.cancel()

    async def _restore(self, path: str) -> bool:
        """Restore one image when its turn comes; whether its VM is back."""
        async with self._free:
            try:
                return await self._restore_when_free(path)
            except VmopsError as error:
                self._journal.complain(f"{path}: {error}")
            except Exception as error:  # a bug of ours is no reason to leave the others saved
                name = type(error).__name__
                self._journal.complain(f"{path}: unexpected error, please report it: {name}: {error}")
            return False

    async def _restore_when_free(self, path: str) -> bool:
        """Restore one image, after another run that works on it or its VM.

        :raises VmopsError: it failed; :class:`BusyError` where the other run takes longer than the time allows.
        """
        deadline = asyncio.get_running_loop().time() + self._request.timeout
        while not self._stopped:
            try:
                result = await self._restore_until(path, deadline)
            except BusyError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            else:
                self._journal.say(result["msg"])
                for warning in result.get("warnings", ()):
                    self._journal.complain(warning)
                return True
            await asyncio.sleep(BUSY_INTERVAL)
            if not os.path.exists(path):
                self._journal.say(f"{path}: another run has restored it")
                return True
        self._journal.complain(f"{path}: not begun, {self._stopped} came before")
        return False

    async def _restore_until(self, path: str, deadline: float) -> dict[str, t.Any]:
        """One restore, ended by its deadline (of the event loop's clock) or by :meth:`stop`.

        :raises VmopsError: it failed, or was given up; the guest is then as the error says.
        """
        request = RestoreRequest(name=None, qmp_socket=None, path=path, save_dir=self._request.save_dir)
        operation = RestoreOperation(request)
        task = asyncio.ensure_future(operation.run())
        self._working.add(task)
        try:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            done, _pending = await asyncio.wait({task}, timeout=left)
            if not done:
                task.cancel()
            return await task
        except asyncio.CancelledError:
            late = f"not done within {self._request.timeout:g} seconds"
            raise VmopsError(
                f"The restore was {f'interrupted by {self._stopped}' if self._stopped else late}",
                situation=operation.situation,
                cure="Restore it with qemu_restore",
            ) from None
        finally:
            self._working.discard(task)
