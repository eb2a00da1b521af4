# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write so many MiB behind what is in a file, and keep it open: write_more.py DESCRIPTOR MIB."""

import os
import sys
import time

descriptor, mebibytes = int(sys.argv[1]), int(sys.argv[2])
start = os.fstat(descriptor).st_size + (64 << 20)
for number in range(mebibytes):
    os.pwrite(descriptor, b"x" * (1 << 20), start + (number << 20))
print("ready", flush=True)
time.sleep(600)
