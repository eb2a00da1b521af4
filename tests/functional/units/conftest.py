# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests as services of the host's systemd, or of this user's own."""

from __future__ import annotations

import os

import pytest

from support.units import Service


@pytest.fixture
def make_service(make_guest):
    """Make guests that a unit of their own runs: ``make_service(service=..., unit=..., command=..., guest={})``."""
    services = []

    def make(*, start=True, guest=None, **options):
        described = make_guest(start=False, observer=True, **(guest or {}))
        # Whoever the unit's user is.
        for place in described.workdir, *described.workdir.parents[:3]:
            if place.is_dir() and place.stat().st_uid == os.geteuid():
                place.chmod(0o755)
        services.append(Service(described, **options))
        if start:
            services[-1].start()
        return services[-1]

    yield make
    for service in services:
        service.close()
