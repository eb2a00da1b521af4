# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Let tests import the tree as the collection that it is: ``ansible_collections.vmops.qemu...``.

Whichever way pytest is started, the staged copy is first made what the tree is, so that a test never sees old code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
COLLECTIONS = ROOT / "build" / "collections"

subprocess.run([sys.executable, str(ROOT / "scripts" / "stage.py")], check=True, stdout=subprocess.DEVNULL)
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(COLLECTIONS))
# Debian 13's /tmp is in memory: too small for all that the tests save, and an image there is one that a save warns of.
if os.path.ismount("/tmp"):
    os.environ.setdefault("TMPDIR", "/var/tmp")
    tempfile.tempdir = None  # pytest has asked for it already
# For playbooks and ad-hoc commands that a test runs.
os.environ["ANSIBLE_COLLECTIONS_PATH"] = str(COLLECTIONS)
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
