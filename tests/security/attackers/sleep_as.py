# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A process that only says that it is a QEMU: sleep_as.py WORDS…. Its words are what a real one would have."""

import signal

print("ready", flush=True)
signal.pause()
