# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A directory with images that others could have made is listed with bounds."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

MAP_ENTRIES = 20_000_000


def test_archive_with_a_map_of_millions_of_ranges(tmp_path: Path, run_bounded: Any) -> None:
    directory = tmp_path / "save"
    directory.mkdir(mode=0o700)
    size = 2 * MAP_ENTRIES + 2
    member = tarfile.TarInfo("GNUSparseFile.0/web1.save")
    entries = b"".join(f"{2 * number}\n1\n".encode() for number in range(1000))
    whole = f"{MAP_ENTRIES}\n".encode()
    member.size = 1 << 30
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "web1.save",
        "GNU.sparse.realsize": str(size),
    }
    with (directory / "web1.save.tar.zst").open("wb") as file:
        packer = subprocess.Popen(["zstd", "-qc"], stdin=subprocess.PIPE, stdout=file)
        assert packer.stdin is not None
        packer.stdin.write(member.tobuf(tarfile.PAX_FORMAT) + whole + entries)
        position = 2000
        while position < size - 2:
            piece = range(position, min(position + 200_000, size - 2), 2)
            packer.stdin.write(b"".join(b"%d\n1\n" % number for number in piece))
            position = piece[-1] + 2
        packer.stdin.close()
        assert packer.wait() == 0
    result, seconds = run_bounded("qemu_save_image_info", path=str(directory))
    assert not result.get("failed"), result["msg"]
    assert seconds < 40
