# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Spoil images and look at them as the product does: a process of its own, bounded in memory, and in time for each.

    python worker.py CONFIGURATION FIRST STEP

CONFIGURATION is a JSON file (see corpus.run); the cases FIRST, FIRST + STEP ... are done. For each a line of JSON says
that it begins, and one what was found: a process that dies, or that the alarm kills, has thus said which case it was.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ansible_collections.vmops.qemu.plugins.module_utils._errors import VmopsError
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressed_head import read_compressed_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.compressor import COMPRESSORS
from ansible_collections.vmops.qemu.plugins.module_utils._image.image_file import read_image_head
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import describe, image_info
from ansible_collections.vmops.qemu.plugins.module_utils._image.stream import MappedRamBlock, read_stream
from ansible_collections.vmops.qemu.plugins.module_utils._image.verify import structure_problems
from ansible_collections.vmops.qemu.plugins.module_utils._restore.operation import RestoreOperation
from ansible_collections.vmops.qemu.plugins.module_utils._restore.request import RestoreRequest

from corpus.digest import HAS_DIGEST
from corpus.images import SpoiltImage
from corpus.layout import read_layout
from corpus.mutations import case

#: Bytes of address space that the cases may take beyond what the process has after its start.
MEMORY_LIMIT = 512 * 1024 * 1024
#: Seconds of CPU that a case may take; and of the clock, which runs on while this machine does other things.
CPU_LIMIT = 20
CLOCK_LIMIT = 600

Facts = dict[str, Any]


def facts_of(path: str) -> Facts:
    """All that a restore reads of an image, flat; raises VmopsError."""
    head = read_image_head(path)
    facts: Facts = {f"header.{name}": str(value) for name, value in dataclasses.asdict(head.header).items()}
    facts["head.cookie"] = head.cookie
    facts["domain.xml"] = head.xml
    domain = head.domain()
    facts.update({f"domain.{field.name}": repr(getattr(domain, field.name)) for field in dataclasses.fields(domain)})
    stream = read_stream(path, head.header) or read_compressed_head(path, head.header)
    assert stream is not None
    facts["stream.machine"] = stream.machine
    facts["stream.capabilities"] = stream.capabilities
    facts["stream.ram_blocks"] = [(block.name, block.used_length) for block in stream.ram_blocks]
    facts["stream.pages"] = [
        (block.page_size, block.bitmap_offset, block.pages_offset, block.present_pages)
        for block in stream.ram_blocks
        if isinstance(block, MappedRamBlock)
    ]
    facts["stream.sections"] = repr(stream.sections)
    return facts


def restore_error(path: str, options: dict[str, Any]) -> str:
    """What a restore says before it would start anything, or the empty string where it would go on."""
    request = RestoreRequest(qmp_socket=None, path=path, save_dir="/", check_mode=True, **options)
    try:
        asyncio.run(RestoreOperation(request).run())
    except VmopsError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def expand(path: str) -> str:
    """A digest of what a compressed stream expands to, or the empty string where its tool finds it broken."""
    header = read_image_head(path).header
    with open(path, "rb") as image:
        image.seek(header.stream_offset)
        os.lseek(image.fileno(), header.stream_offset, os.SEEK_SET)
        command = COMPRESSORS[header.format].expand_command()
        done = subprocess.run(command, stdin=image, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return hashlib.sha256(done.stdout).hexdigest() if done.returncode == 0 else ""


def look_at(path: str, options: dict[str, Any], good: Optional[Facts], good_stream: str, compressed: bool) -> Facts:
    """Everything that the product says of an image, and what of it is not as in the good one."""
    found: Facts = {"problems": structure_problems(path)}
    info = image_info(path, stream=True, verify=True)
    found["state"], found["info_problems"] = info["state"], info["problems"]
    json.dumps(info)
    found["described"] = bool(describe(info))
    found["restore"] = restore_error(path, options)
    if HAS_DIGEST and not found["restore"] and info["checksum"]:
        found["digest"] = restore_error(path, {**options, "verify": "full"})
    found["changed"] = []
    if not found["problems"]:
        try:
            facts = facts_of(path)
        except VmopsError as error:
            found["facts_error"] = str(error)
        else:
            found["changed"] = sorted(key for key in facts if good is not None and facts[key] != good[key])
        if compressed:
            stream = expand(path)
            found["expanded"] = "broken" if not stream else "same" if stream == good_stream else "other"
    return found


def cpu_seconds() -> float:
    """Of this process and the tools that it ran."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def most_memory() -> int:
    """Bytes of memory that this process has held at most; ru_maxrss would count what its parent held, too."""
    with open("/proc/self/status", encoding="ascii") as status:
        (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main(configuration: dict[str, Any], first: int, step: int) -> None:
    """Do the cases."""
    layouts = {name: read_layout(Path(path)) for name, path in configuration["images"].items()}
    options = configuration["restore"]
    place = Path(configuration["place"]) / f"worker-{first % step}"
    place.mkdir(mode=0o700, exist_ok=True)
    spoilt = {name: SpoiltImage(layout, place / f"{name}.save") for name, layout in layouts.items()}
    good = {name: facts_of(str(image.path)) for name, image in spoilt.items()}
    streams = {name: expand(str(spoilt[name].path)) for name, layout in layouts.items() if layout.compressed}
    for name, image in spoilt.items():
        look_at(str(image.path), options[name], None, "", False)
    with open("/proc/self/statm", encoding="ascii") as statm:
        held = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_LIMIT, held + MEMORY_LIMIT))
    for number in range(first, configuration["count"], step):
        kind, name, mutation = case(configuration["seed"], number, layouts)
        found: Facts = {"case": number, "kind": kind.name, "image": name}
        print(json.dumps({**found, "begins": True}), flush=True)
        path = spoilt[name].spoil(mutation)
        started = cpu_seconds()
        # Not caught: a call that hangs in C would not come back to a handler.
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
        signal.alarm(CLOCK_LIMIT)
        try:
            found.update(look_at(str(path), options[name], good[name], streams.get(name, ""), layouts[name].compressed))
        except BaseException:  # whatever it is, it is a bug: the parent says of which case
            found["traceback"] = traceback.format_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        found["seconds"] = cpu_seconds() - started
        found["peak"] = most_memory()
        print(json.dumps(found), flush=True)
        spoilt[name].mend()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3]))
