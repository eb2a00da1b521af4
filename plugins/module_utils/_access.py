# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How QEMU reaches an image: by how many channels, and whether past the page cache. One rule for both directions."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import RequestError
from ansible_collections.vmops.qemu.plugins.module_utils._image.header import ImageFormat


@dataclasses.dataclass(frozen=True)
class Access:
    """What was chosen; the reasons go into the result, by the option's name."""

    parallel_channels: int | None
    bypass_cache: bool
    reasons: dict[str, str]


def require_possible_access(
    image_format: ImageFormat, parallel_channels: int | None, bypass_cache: bool | None, image: str = ""
) -> None:
    """Refuse what a format cannot have, or QEMU.

    :param parallel_channels: and ``bypass_cache``: the options.
    :param image: the path of the image that is in this format; empty where it is yet to be made, in one that is asked
        for.
    :raises RequestError: they ask for it.
    """
    if parallel_channels is not None and not 1 <= parallel_channels <= 255:
        raise RequestError(
            f"parallel_channels is {parallel_channels}, but QEMU takes 1 to 255", cure="Leave it out for the default"
        )
    if image_format is ImageFormat.SPARSE:
        return
    what = f"{image} is {image_format.label}, a stream" if image else f"the {image_format.label} format is a stream"
    for option, given in (("parallel_channels", parallel_channels is not None), ("bypass_cache", bypass_cache)):
        if given:
            raise RequestError(
                f"{option} needs the sparse format: {what}",
                cure=f"Leave {option} out" + ("" if image else ", or use format sparse"),
            )


def choose_access(
    path: str,
    image_format: ImageFormat,
    parallel_channels: int | None,
    bypass_cache: bool | None,
    why_not_direct: t.Callable[[], str | None],
) -> Access:
    """Choose where the options leave it open.

    :param path: the image's, for messages.
    :param parallel_channels: and ``bypass_cache``: the options.
    :param why_not_direct: why its file system takes no O_DIRECT; nothing where it does.
    :raises RequestError: the file system cannot do what they ask for.
    """
    if image_format is not ImageFormat.SPARSE:
        reason = f"the {image_format.label} format is a stream, which goes through the page cache"
        return Access(None, False, {"bypass_cache": reason})
    reasons: dict[str, str] = {}
    direct = bypass_cache is not False
    if direct:
        problem = why_not_direct()
        if problem and bypass_cache:
            raise RequestError(
                f"bypass_cache is not possible for {path}: {problem}",
                cure="Leave bypass_cache out, or choose a file system that takes O_DIRECT",
            )
        direct = not problem
        reasons["bypass_cache"] = problem or "the file system takes O_DIRECT"
    if parallel_channels is None:
        parallel_channels = max(2, min(8, 2 * (os.cpu_count() or 1)))
        reasons["parallel_channels"] = f"two for each of {os.cpu_count()} CPUs, from 2 to 8"
    return Access(parallel_channels, direct, reasons)
