# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bridges and network interfaces (taps) of the tests', as root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from typing import Optional


def new_name(prefix: str) -> str:
    """A name of an interface that no other run of the tests has."""
    return f"{prefix}{os.getpid() % 100000}{os.urandom(1).hex()}"


@contextlib.contextmanager
def new_bridge() -> Iterator[Optional[str]]:
    """The name of a new bridge, or None where none can be made; it is removed if it is still there."""
    name = new_name("vmb")
    made: Optional[str] = name
    try:
        try:
            make_bridge(name)
        except (OSError, subprocess.CalledProcessError):
            made = None
        yield made
    finally:
        if exists(name):
            delete(name)


def make_bridge(name: str) -> None:
    """As the host's configuration does at boot."""
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True, capture_output=True)


def put(name: str, bridge: str) -> None:
    """As somebody does by hand after QEMU's start."""
    subprocess.run(["ip", "link", "set", "dev", name, "master", bridge], check=True)


def delete(name: str) -> None:
    """As a reboot does."""
    subprocess.run(["ip", "link", "delete", name], check=True)


def exists(name: str) -> bool:
    """Whether there is such an interface, in this network namespace."""
    return os.path.exists(f"/sys/class/net/{name}")


def master_of(name: str) -> str:
    """The bridge that an interface is in; empty for none."""
    try:
        return os.path.basename(os.readlink(f"/sys/class/net/{name}/master"))
    except FileNotFoundError:
        return ""


def tap_words(name: str) -> list[str]:
    """A virtio-net whose tap QEMU makes under this name, and nobody puts anywhere."""
    return [
        *("-netdev", f"tap,id=n0,ifname={name},script=no,downscript=no"),
        *("-device", "virtio-net-pci,netdev=n0,romfile="),
    ]
