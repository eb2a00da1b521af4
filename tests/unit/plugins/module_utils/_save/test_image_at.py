# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import types

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils._errors import DiskMismatchError
from ansible_collections.vmops.qemu.plugins.module_utils._image.record import SaveFacts
from ansible_collections.vmops.qemu.plugins.module_utils._save.image_at import require_not_gone_on_elsewhere
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.record import Surroundings

NONE = Surroundings((), ()).dump()


def head(checkpoint, surroundings):
    facts = None if surroundings is None else SaveFacts("1.0.0", "10.0.2", "", surroundings=surroundings)
    domain = types.SimpleNamespace(save_facts=facts)
    header = types.SimpleNamespace(checkpoint=checkpoint, complete=True)
    return types.SimpleNamespace(path="/s/web1.save", header=header, domain=lambda: domain)


@pytest.mark.parametrize("surroundings", [None, "", "{", '{"version": 999}'])
def test_checkpoint_that_does_not_record_its_disks(surroundings):
    with pytest.raises(DiskMismatchError, match="does not record them") as caught:
        require_not_gone_on_elsewhere(head(True, surroundings), "web1")
    assert caught.value.cure
    require_not_gone_on_elsewhere(head(False, surroundings), "web1")


def test_checkpoint_of_a_vm_without_disks():
    require_not_gone_on_elsewhere(head(True, NONE), "web1")
