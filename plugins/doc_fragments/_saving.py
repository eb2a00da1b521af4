# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a VM is saved."""

from __future__ import annotations


class ModuleDocFragment:
    # extends_documentation_fragment: vmops.qemu._saving
    DOCUMENTATION = r"""
options:
  format:
    description:
      - V(sparse) stores the guest's pages at fixed places, with holes for zero pages. It needs QEMU 9.1 or later.
      - V(raw) is QEMU's plain stream.
      - V(gzip), V(bzip2), V(xz), V(lzop) and V(zstd) compress that stream with the tool of the same name while QEMU
        writes it; V(xz) and V(zstd) use all CPUs. The tool must be installed on the host of the VM.
      - The default is V(sparse) if QEMU supports it, else V(raw) with a warning. With O(image_version=2) the default is
        V(raw), as in libvirt.
    type: str
    choices: [sparse, raw, gzip, bzip2, xz, lzop, zstd]
  live:
    description:
      - Let the guest run while its memory is written, so that it is paused only at the end of the save.
      - Pages that the guest changes in the meantime are written again.
    type: bool
    default: false
  live_timeout:
    description:
      - A guest that changes its memory faster than the memory can be written would keep a save with O(live=true) from
        ever ending. After this number of seconds, the guest is paused so that the save can end.
    type: float
    default: 60
  after_save:
    description:
      - What happens to the VM. When the image is complete, V(quit) ends QEMU, and V(pause) leaves the guest paused.
        V(resume) lets the guest run on, if it ran before, as soon as QEMU has written, while the image is completed.
      - After V(resume), the VM's disks change while the image does not. Restore such an image only together with disks
        of the same moment.
      - A guest that sleeps (S3) is saved with V(quit) only, as QEMU cannot let it go on after that.
    type: str
    choices: [quit, pause, resume]
    default: quit
  cold_boot_guard:
    description:
      - While the image exists, keep the VM's systemd service from starting the VM from its disks. This also holds after
        a reboot of the host, and if the service restarts by itself (C(Restart=always)). After such a start, the saved
        memory would no longer match the disks.
      - The guard is a file in C(/etc/systemd/system), for a service of a user's own systemd in that user's
        C(~/.config/systemd/user), with a condition on the image. M(vmops.qemu.qemu_restore) removes it; without the
        image it has no effect.
      - Only a service whose main process is QEMU can be guarded. With O(after_save=resume) nothing is guarded.
      - The guard can only be set up by root, that of a service of a user's own systemd by that user alone. With
        V(false), make sure yourself that nothing starts the VM.
    type: bool
    default: true
  require_restorable:
    description:
      - Refuse the save, before the guest is touched, if M(vmops.qemu.qemu_restore) with
        O(vmops.qemu.qemu_restore#module:launch=recorded) could not restore its image, or would restore a different
        machine. RV(vmops.qemu.qemu_save#module:problems) has the reasons.
      - With V(false), these reasons are only warnings. Use it only if you know how the VM will be restored. The module
        still refuses what would make the save itself fail, or lose what the guest has written.
    type: bool
    default: true
  force:
    description:
      - Replace a complete image although its VM runs, or replace an image of another VM.
    type: bool
    default: false
  bandwidth:
    description:
      - The maximum amount of data to write per second, such as V(200M) or V(1G) (powers of 1024, at least V(1M)).
      - QEMU enforces it only roughly. With several channels, the actual rate can exceed a low value by three quarters.
      - By default, there is no limit.
    type: str
  checksum:
    description:
      - Record a checksum of the QEMU stream in the image. With the checksum,
        O(vmops.qemu.qemu_restore#module:verify=full) and O(vmops.qemu.qemu_save_image_info#module:verify=true) detect
        any later change of the guest's memory and device state in the image, even of a single bit.
      - To compute it, the module reads everything that was written again, bypassing the page cache if the save did.
        This makes the save take longer, see RV(vmops.qemu.qemu_save#module:checksum_ms). The VM's QEMU does not quit
        before everything could be read; a guest that goes on after the save does not wait for it.
      - A checksum is not added to an image that is already complete.
    type: bool
    default: false
  mode:
    description:
      - The image's permission bits, as a quoted octal number. The image holds the guest's memory, so other users must
        not have any permissions.
    type: raw
    default: "0600"
  owner:
    description:
      - The user who owns the image.
    type: str
  group:
    description:
      - The group that owns the image.
    type: str
"""
