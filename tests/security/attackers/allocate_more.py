# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Have so many MiB set aside behind a file's end, which do not count as its size: allocate_more.py DESCRIPTOR MIB."""

import ctypes
import os
import sys
import time

descriptor, mebibytes = int(sys.argv[1]), int(sys.argv[2])
library = ctypes.CDLL(None, use_errno=True)
keep_size = 1
end = ctypes.c_int64(os.fstat(descriptor).st_size)
result = library.fallocate(descriptor, keep_size, end, ctypes.c_int64(mebibytes << 20))
print("ready" if result == 0 else os.strerror(ctypes.get_errno()), flush=True)
time.sleep(600)
