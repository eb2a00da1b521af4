# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guest's clock is right after a restore where its agent can set it, and the restore is done in any case."""

from __future__ import annotations

import time

import pytest

from support import LinuxGuest, gaps
from support.observe import VM, Continuity, wait_until

NAME = f"linux-{VM}"
BEHIND = 7200
PORT = ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=a0,name=org.qemu.guest_agent.0"]


def ports(guest):
    return [device for device in guest.qmp("query-chardev") if device["label"] == "agent0"]


@pytest.fixture
def linux(tmp_path):
    """A Linux guest in which a guest agent runs."""
    guest = LinuxGuest(tmp_path / "linux", NAME, agent=True)
    guest.start()
    wait_until(lambda: any(device["frontend-open"] for device in ports(guest)), 60)
    yield guest
    guest.adopt_restarted()
    guest.close()


def behind(guest):
    """Seconds by which the guest's clock is behind the host's."""
    return time.time() - guest.clock()[0]


def test_clock_after_a_restore(linux, image, save, restore, agent):
    """Left as it is where that is asked for, or where another client has the agent; else right."""
    linux.set_clock(int(time.time()) - BEHIND)
    save(name=NAME, path=str(image))
    assert restore(name=NAME, path=str(image), sync_time="false")["time_sync"] == "off"
    linux.wait_restarted()
    assert BEHIND - 2 < behind(linux) < BEHIND + 60

    save(name=NAME, path=str(image))
    holder = agent(linux.agent_socket)
    result = restore(name=NAME, path=str(image))
    assert holder.connected.is_set()
    assert result["time_sync"].startswith("failed: ")
    assert "client" in result["time_sync"]
    assert not result.get("warnings")
    linux.wait_restarted()
    assert behind(linux) > BEHIND - 2
    holder.close()

    save(name=NAME, path=str(image))
    result = restore(name=NAME, path=str(image))
    assert result["time_sync"] == "done"
    assert not result.get("warnings")
    linux.wait_restarted()
    assert -2 < behind(linux) < 2
    linux.wait_for_counter(linux.counters()[-1] + 2)
    assert linux.boots() == 1
    assert gaps(linux.counters()) == []


def test_agent_that_does_not_answer(linux, image, save, restore):
    """Its process is stopped; its port is still open."""
    linux.command(b"stop-agent\n", r"^agent-stopped\r?$", 15)
    save(name=NAME, path=str(image))
    result = restore(name=NAME, path=str(image), sync_time="true")
    assert result["time_sync"].startswith("failed: the guest's agent did not answer")
    assert "its clock was not set" in str(result["warnings"])
    assert result["vm"]["run_state"] == "running"
    assert not image.exists()
    linux.wait_restarted()
    linux.wait_for_counter(linux.counters()[-1] + 2)


@pytest.mark.parametrize("sync_time", ["auto", "true"])
def test_no_agent_in_the_guest(sync_time, make_guest, tmp_path, image, save, restore):
    """There is a port, at which nobody listens in the guest: nothing is waited for."""
    chardev = f"socket,id=a0,path={tmp_path}/agent.sock,server=on,wait=off"
    continuity = Continuity(make_guest(extra_args=["-chardev", chardev, *PORT]))
    save(name=VM, path=str(image))
    result = restore(name=VM, path=str(image), sync_time=sync_time)
    assert result["time_sync"] == "no agent"
    assert bool(result.get("warnings")) == (sync_time == "true")
    continuity.check()
    save(name=VM, path=str(image))
    assert restore(name=VM, path=str(image), state="paused", sync_time=sync_time)["time_sync"] is None


def test_clock_of_its_own_is_left_alone(make_guest, tmp_path, image, save, restore):
    chardev = f"socket,id=a0,path={tmp_path}/agent.sock,server=on,wait=off"
    continuity = Continuity(make_guest(extra_args=["-rtc", "base=2001-01-01", "-chardev", chardev, *PORT]))
    save(name=VM, path=str(image))
    assert restore(name=VM, path=str(image))["time_sync"].startswith("left alone: its clock began at a time of its own")
    continuity.check()


def test_agents_that_do_not_answer_hold_up_no_other_vm(linux, guest, image, run_module):
    """One at a time: the turn of a VM is over when it runs, not when its clock is set."""
    linux.command(b"stop-agent\n", r"^agent-stopped\r?$", 15)
    continuity = Continuity(guest)
    directory = {"save_dir": str(image.parent), "vms": [NAME, VM]}
    saved = run_module("qemu_managed_save", **directory)
    assert not saved.get("failed"), saved["msg"]
    result = run_module("qemu_managed_restore", parallel=1, order=[[NAME, VM]], **directory)
    assert not result.get("failed"), result["msg"]
    vms = {vm["name"]: vm for vm in result["vms"]}
    assert vms[NAME]["time_sync"].startswith("failed: ")
    assert vms[VM]["time_sync"] == "no agent"
    assert result["duration"] > 4
    assert abs(vms[NAME]["running_at"] - vms[VM]["running_at"]) < 4
    continuity.check()
