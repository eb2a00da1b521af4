# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time

from ansible_collections.vmops.qemu.plugins.module_utils._qemu.vm import RamBlock, RunningVm, parse_ram_blocks
from hypothesis import given
from hypothesis import strategies as st

MIB = 1024 * 1024

# As QEMU 10.0.2 answered: a q35 with a DIMM that was plugged in.
QEMU_10 = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000004000000 0x0000000008000000 0x0000000008000000 0x00007f2e0fe00000  rw
                 hot-1.0    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007f2e1ffff000  rw
   0000:00:01.0/vga.vram    4 KiB  0x000000000c080000 0x0000000001000000 0x0000000001000000 0x00007f2e1ec00000  rw
    /rom@etc/acpi/tables    4 KiB  0x000000000d100000 0x0000000000020000 0x0000000000200000 0x00007f2e1e800000  ro
                 pc.bios    4 KiB  0x000000000c000000 0x0000000000040000 0x0000000000040000 0x00007f2e68a00000  ro
 0000:00:02.0/e1000e.rom    4 KiB  0x000000000d0c0000 0x0000000000040000 0x0000000000040000 0x00007f2e68400000  ro
                  pc.rom    4 KiB  0x000000000c040000 0x0000000000020000 0x0000000000020000 0x00007f2e68800000  ro
    0000:00:01.0/vga.rom    4 KiB  0x000000000d080000 0x0000000000010000 0x0000000000010000 0x00007f2e68600000  ro
   /rom@etc/table-loader    4 KiB  0x000000000d300000 0x0000000000001000 0x0000000000010000 0x00007f2e68200000  ro
      /rom@etc/acpi/rsdp    4 KiB  0x000000000d340000 0x0000000000001000 0x0000000000001000 0x00007f2e1fe00000  ro
"""

# As QEMU 7.2 answered: an option ROM with a space in its name, and no column for the host's address.
QEMU_7 = """\
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000
    /rom@etc/acpi/tables    4 KiB  0x0000000008100000 0x0000000000002000 0x0000000000200000
/rom@genroms/kvmvapic.bin    4 KiB  0x00000000080c0000 0x0000000000003000 0x0000000000003000
 /rom@genroms/my rom.bin    4 KiB  0x0000000008080000 0x0000000000001000 0x0000000000001000
"""


def test_ram_block_rows():
    assert parse_ram_blocks(QEMU_10) == [
        RamBlock("pc.ram", 128 * MIB, 128 * MIB),
        RamBlock("hot-1.0", 64 * MIB, 64 * MIB),
        RamBlock("0000:00:01.0/vga.vram", 16 * MIB, 16 * MIB),
        RamBlock("/rom@etc/acpi/tables", 0x20000, 2 * MIB),
        RamBlock("pc.bios", 0x40000, 0x40000),
        RamBlock("0000:00:02.0/e1000e.rom", 0x40000, 0x40000),
        RamBlock("pc.rom", 0x20000, 0x20000),
        RamBlock("0000:00:01.0/vga.rom", 0x10000, 0x10000),
        RamBlock("/rom@etc/table-loader", 0x1000, 0x10000),
        RamBlock("/rom@etc/acpi/rsdp", 0x1000, 0x1000),
    ]


def test_ram_block_rows_of_an_old_qemu():
    assert parse_ram_blocks(QEMU_7) == [
        RamBlock("pc.ram", 128 * MIB, 128 * MIB),
        RamBlock("/rom@etc/acpi/tables", 0x2000, 2 * MIB),
        RamBlock("/rom@genroms/kvmvapic.bin", 0x3000, 0x3000),
        RamBlock("/rom@genroms/my rom.bin", 0x1000, 0x1000),
    ]


def test_ram_block_rows_with_huge_pages():
    row = "    mem0    2 MiB  0x0000000000000000 0x0000000040000000 0x0000000040000000 0x00007f0000000000  rw"
    assert parse_ram_blocks(row) == parse_ram_blocks(row.replace("2 MiB", "1 GiB")) == [RamBlock("mem0", 2**30, 2**30)]


def test_ram_block_row_of_what_does_not_migrate():
    # As QEMU 10.0.2 answered: the memory of a virtio-pmem device has no name.
    row = f"{'':24}    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007f23c7fff000  rw"
    assert parse_ram_blocks(row) == [RamBlock("", 64 * MIB, 64 * MIB)]


def test_addresses_of_ram_blocks():
    assert parse_ram_blocks(QEMU_10)[0].address == 0x7F2E0FE00000
    assert parse_ram_blocks(QEMU_7)[0].address == 0


def test_no_ram_block_rows():
    assert parse_ram_blocks("") == []
    assert parse_ram_blocks(QEMU_10.splitlines()[0]) == []


def test_the_result_has_all_keys():
    vm = RunningVm("web1", "", "paused", 2**30, 2, "pc-q35-10.0", "x86_64", "tcg", None)
    assert vm.as_result() == {
        "name": "web1",
        "uuid": "",
        "run_state": "paused",
        "memory": 2**30,
        "vcpus": 2,
        "machine": "pc-q35-10.0",
        "pid": None,
    }


ROW_NAME = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=40)
LENGTH = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(ROW_NAME, LENGTH, LENGTH), max_size=5), st.booleans())
def test_any_ram_block_rows(rows, with_address):
    more = " 0x00007f2e0fe00000  rw" if with_address else ""
    text = "Block Name    PSize              Offset               Used              Total\n" + "".join(
        f"{name:>24}    4 KiB  {0:#018x} {used:#018x} {maximum:#018x}{more}\n" for name, used, maximum in rows
    )
    assert parse_ram_blocks(text) == [RamBlock(*row) for row in rows]


@given(st.text(alphabet="0x1af KiB4pc.ram\n\r\t\u2028é", max_size=200))
def test_any_text_has_ram_blocks_or_none(text):
    parse_ram_blocks(text)


def test_reading_ram_blocks_takes_time_in_proportion():
    started = time.process_time()
    parse_ram_blocks("a " * 100_000 + "4 KiB " + "0x1 " * 100_000)
    parse_ram_blocks(" " * 100_000)
    assert time.process_time() - started < 5
