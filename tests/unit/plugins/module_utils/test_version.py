# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

from ansible_collections.vmops.qemu.plugins.module_utils._version import COLLECTION_VERSION

GALAXY = Path(__file__).resolve().parents[4] / "galaxy.yml"


def test_the_version_is_that_of_galaxy_yml():
    versions = [line.split()[1] for line in GALAXY.read_text().splitlines() if line.startswith("version:")]
    assert versions == [COLLECTION_VERSION]
