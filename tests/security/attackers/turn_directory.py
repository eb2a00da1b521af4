# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Put a link to another directory in the place of an image's as soon as the image's header is changed.

turn_directory.py IMAGE OTHER: runs as the attacker, whose directory it is.
"""

import os
import sys

image, other = sys.argv[1:]
directory = os.path.dirname(image)
descriptor = os.open(image, os.O_RDONLY)
before = os.pread(descriptor, 92, 0)
print("ready", flush=True)
while os.pread(descriptor, 92, 0) == before:
    pass
os.rename(directory, f"{directory}.away")
os.symlink(other, directory)
print("turned", flush=True)
