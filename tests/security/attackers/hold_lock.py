# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Take the lock (flock) of what is open as one of this process's descriptors, or of its own directory in /proc.

hold_lock.py DESCRIPTOR|self [orphan]: with "orphan" the process that took it ends, and leaves it to a child.
"""

import fcntl
import os
import sys
import time

what = sys.argv[1]
descriptor = os.open("/proc/self/fd", os.O_RDONLY) if what == "self" else int(what)
fcntl.flock(descriptor, fcntl.LOCK_EX)
if sys.argv[2:3] == ["orphan"] and os.fork():
    os._exit(0)
print("ready", flush=True)
time.sleep(600)
