# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a VM is restored."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._restoring
    DOCUMENTATION = r"""
options:
  state:
    description:
      - Whether the guest runs or is paused after the restore. With V(as_saved), the image decides.
      - A guest that slept when it was saved (S3) is not woken. With V(running), it sleeps again, and what wakes it is
        what would have woken it before (C(system_wakeup), its network card, its clock).
    type: str
    choices: [as_saved, running, paused]
    default: as_saved
  launch:
    description:
      - V(recorded) starts QEMU as the image records it. If the VM was the main process of a systemd service, that
        service starts it again, with the service's own user, limits and helpers. Any other VM is started with its
        command line, in a transient unit of its own; without root in one of the task's user's own systemd, where that
        stays when the user logs out (C(loginctl enable-linger)). Where it does not, and on a host that systemd does not
        run, it is started as a daemon.
      - V(recorded) requires that the image, its directory and all directories above belong to root or to the task's
        user, and that nobody else can write to them. It also requires that the task's user vouches for the record, as
        M(vmops.qemu.qemu_save) did on this host. Use O(vmops.qemu.qemu_save_image#module:vouch) to vouch for an image
        from another host.
      - With V(recorded), the files and servers that QEMU needs beside its disks are checked before it is started.
        Missing directories of its sockets on a tmpfs are made again, and the server of an emulated TPM (C(swtpm)) is
        started again.
      - V(command) starts QEMU with O(vmops.qemu.qemu_restore#module:command), also in a transient unit or as a daemon.
      - With V(command) and V(attach), the image may also belong to the user that QEMU runs as.
      - V(attach) expects a QEMU that already waits (C(-incoming defer)), or that someone else starts within
        O(attach_timeout). V(recorded) and V(command) also use a QEMU of this name if one already waits.
      - The options C(-incoming), C(-S), C(-loadvm) and C(-daemonize) of a command line are replaced by those that a
        restore needs. The key C(exit-with-parent) of C(-run-with) is left out.
    type: str
    choices: [recorded, command, attach]
    default: recorded
  attach_timeout:
    description:
      - The number of seconds to wait, with O(launch=attach), for a QEMU that someone else starts. With V(0), the QEMU
        must already wait.
      - A unit that O(vmops.qemu.qemu_save#module:cold_boot_guard) keeps from starting does not start in this time
        either.
    type: float
    default: 0
  verify:
    description:
      - V(structure) checks that the file holds everything that the image promises, without reading the guest's pages.
        Neither this check nor QEMU detects a flipped bit in the guest's memory; only the compressed formats have
        checksums of their own.
      - V(full) also reads the whole image, before QEMU is started, and compares it with the checksum that
        M(vmops.qemu.qemu_save) recorded with O(vmops.qemu.qemu_save#module:checksum=true). An image without a checksum
        is refused.
      - V(none) does neither.
      - The checksum detects damage, not forgery. Anyone who can write to the image can record another checksum.
    type: str
    choices: [full, structure, none]
    default: structure
  remove_image:
    description:
      - Remove the image after the restore. From then on the VM's disks change, so they no longer match the image, which
        must not be restored a second time.
      - The image says so from the moment before the guest runs. If it cannot be written to, the restore is refused.
        With V(false) that is a warning.
    type: bool
    default: true
  disks:
    description:
      - With V(check), the module compares the VM's disks and other media with what the image records of them, including
        every file of a backing chain. It does so before anything is started, and again when QEMU has opened them. A
        disk that was written to since the save, or that is a different one, is refused, because the restored memory
        would destroy its file system.
      - A copy of a disk passes if it keeps size and modification time (C(cp --preserve), C(rsync --times)). Of a
        block device, it is compared which one it is (its WWID, serial number or UUID, else its path), but not whether
        it was written to. Such devices, and network storage, are named in a warning.
      - An image whose guest went on after the save (C(checkpoint) in RV(vmops.qemu.qemu_save_image_info#module:images))
        is restored only if all disks can be compared and are unchanged.
      - An image is refused if the directory holds a later save of the same VM.
      - V(ignore) skips all of these checks. Use it only if you know that the disks are those of the save.
    type: str
    choices: [check, ignore]
    default: check
  memory:
    description:
      - With V(check), a restore for which the host has not enough memory is refused before anything is started, rather
        than that the kernel ends other programs for it. The restore takes what the image holds of the guest's memory.
        If the command line allocates all memory in advance or locks it, the restore takes all of it. Huge pages are
        compared with those that are free, and the limit of the VM's systemd service is considered.
      - What the guest may write to later is not counted.
      - V(ignore) skips this check.
    type: str
    choices: [check, ignore]
    default: check
  cpu:
    description:
      - With V(check), the CPU of the QEMU that shall load the image is compared with the one on which the guest ran,
        before QEMU reads a byte. QEMU does not compare them on x86, and a guest that misses a feature which it found
        when it booted crashes. C(-cpu host) and C(-cpu max) are different ones with another QEMU, kernel, microcode or
        host, and so is any CPU without KVM.
      - A QEMU is refused if its CPU lacks features, or has another vendor, family, model or topology (C(-smp)), or if
        its accelerator is a different one. Features that the guest did not have are named in a warning.
      - QEMU tells the features on x86 only. Elsewhere, the type of the CPU is compared.
      - V(ignore) skips this check.
    type: str
    choices: [check, ignore]
    default: check
  sync_time:
    description:
      - Whether the guest's clock is set to the host's time when the guest runs again. Without that, it is as late as
        the guest was stopped, unless the guest corrects it itself.
      - This needs the QEMU guest agent in the guest. V(auto) sets the clock if the agent answers, and is silent
        otherwise. V(true) does the same, but warns if the clock was not set. V(false) leaves the clock as it is.
      - With V(auto), a guest whose clock is not meant to be the host's (C(-rtc base=) with a time, C(-rtc clock=vm)) is
        left alone.
      - The restore never fails because of the clock. RV(ignore:time_sync) says what became of it. An agent that does
        not answer takes ten seconds at most.
    type: str
    choices: [auto, "true", "false"]
    default: auto
"""
