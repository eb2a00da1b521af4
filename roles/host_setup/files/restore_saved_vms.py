# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore the saved VMs of this host, without Ansible: what vmops-restore.service runs at boot.

Each complete image in the save directory is restored as vmops.qemu.qemu_restore does it, in groups one after the other,
some at a time. A VM that cannot be restored keeps its image; the others go on, and the exit status is 1.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from ansible_collections.vmops.qemu.plugins.module_utils._errors import VmopsError  # noqa: E402
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import directory_info  # noqa: E402
from ansible_collections.vmops.qemu.plugins.module_utils._restore import (  # noqa: E402
    RestoreOperation,
    RestoreRequest,
)


async def restore(path: str, save_dir: str, free: asyncio.Semaphore) -> bool:
    """Restore one image; whether its VM is back."""
    async with free:
        request = RestoreRequest(name=None, qmp_socket=None, path=path, save_dir=save_dir)
        try:
            result = await RestoreOperation(request).run()
        except VmopsError as error:
            print(f"{path}: {error}", file=sys.stderr, flush=True)
            return False
        print(result["msg"], flush=True)
        for warning in result.get("warnings", ()):
            print(warning, file=sys.stderr, flush=True)
        return True


def group_of(name: str, order: list[list[str]]) -> int:
    """The number of the group to which a VM belongs."""
    for number, patterns in enumerate(order):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            return number
    return len(order)


async def restore_all(settings: dict[str, Any]) -> bool:
    """Restore everything; whether all VMs are back."""
    save_dir, order = settings["save_dir"], settings["order"]
    images = [image for image in directory_info(save_dir) if image["state"] == "complete"]
    free = asyncio.Semaphore(settings["parallel"])
    back: list[bool] = []
    for number in range(len(order) + 1):
        paths = [image["path"] for image in images if group_of(image["name"], order) == number]
        back += await asyncio.gather(*(restore(path, save_dir, free) for path in paths))
    return all(back)


if __name__ == "__main__":
    sys.exit(not asyncio.run(restore_all(json.loads((HERE / "settings.json").read_text(encoding="utf-8")))))
