# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Words of any kind arrive in a unit as they were."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch import Launch
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.manager import starter
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.unit_launch import LaunchedTransientUnit

from support.units import UNAVAILABLE, UNITS, systemctl

pytestmark = pytest.mark.skipif(bool(UNAVAILABLE), reason=UNAVAILABLE)

_DUMP = "import json, os, sys; json.dump([os.fsencode(w).hex() for w in sys.argv[1:]], open(sys.argv[1], 'w'))"


def odd_words(count: int, binary: bool) -> list[str]:
    """Words of what means something to somebody; with ``binary`` of all bytes but NUL."""
    rng = random.Random(4711)
    special = ["%", "$", '"', "'", "\\", ";", "#", "{", "}", "[", "]", "@", "!", "-", "|", "=", " ", "\t", "\n", "\r"]
    special += ["\x01", "\x7f", "\x85", "\xa0", "é☃", "%i", "$HOME", "${A}", "\\x41", "$$", "%%"]
    special += [bytes([byte]).decode("utf-8", "surrogateescape") for byte in range(0x80, 0x100)] if binary else []
    words = ["", ";", "%", "$", "$$", "${A}", "\\", "%%", "-", "#", " ", "a;b", "\\;", "\\x41", "~", "a" * 5000]
    for _number in range(count):
        pieces = [
            rng.choice(special) if rng.random() < 0.7 else chr(rng.randrange(1, 128)) for _n in range(rng.randrange(12))
        ]
        # As an argument of a command would be read.
        words.append(os.fsdecode(os.fsencode("".join(pieces))))
    return words


def test_quoted_words_arrive_in_a_unit(tmp_path):
    words = odd_words(400, binary=True)
    name = f"vmops-test-{os.getpid()}-quote.service"
    path = UNITS / name
    UNITS.mkdir(parents=True, exist_ok=True)
    result = tmp_path / "words"
    command = " ".join(systemd.quote_word(word) for word in [sys.executable, "-c", _DUMP, str(result), *words])
    path.write_text(f"[Service]\nType=oneshot\nExecStart={command}\n")
    try:
        systemctl("daemon-reload")
        systemctl("start", name)
    finally:
        path.unlink()
        systemctl("daemon-reload")
    arrived = json.loads(result.read_text())[1:]
    assert arrived == [word.encode("utf-8", "surrogateescape").hex() for word in words]
    print(f"{len(words)} words arrived")


def test_words_arrive_in_a_transient_unit(tmp_path):
    words = odd_words(400, binary=False)
    result = tmp_path / "words"
    how = Launch(argv=(sys.executable, "-c", _DUMP, str(result), *words), cwd=str(tmp_path))

    async def run() -> None:
        found = starter()
        assert found
        launched = LaunchedTransientUnit(how, f"vmops test {os.getpid()}", *found)
        await launched.start()
        deadline = time.monotonic() + 20
        while not await launched.ended():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert await launched.stderr() == ""
        await launched.end()

    asyncio.run(run())
    arrived = json.loads(result.read_text())[1:]
    assert arrived == [word.encode("utf-8", "surrogateescape").hex() for word in words]
