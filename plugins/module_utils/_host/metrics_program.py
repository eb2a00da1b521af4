# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is saved, restored and at work on this host, as metrics for Prometheus, which ``vmops-metrics.service`` writes.

The file is one for node_exporter's textfile collector, which refuses all of it where a line is not right: a series that
is there twice, a label with a line break. Names of VMs and files are others' words.
"""

from __future__ import annotations

import calendar
import contextlib
import dataclasses
import os
import time
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._durable import write_durably
from ansible_collections.vmops.qemu.plugins.module_utils._errors import (
    ConflictError,
    ImageError,
    UnitError,
    VmopsError,
    one_line,
)
from ansible_collections.vmops.qemu.plugins.module_utils._file_system import mount_points
from ansible_collections.vmops.qemu.plugins.module_utils._host.own_services import (
    BOOT_RESTORE,
    is_installed,
    restore_has_failed,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host.progress import read_host_runs
from ansible_collections.vmops.qemu.plugins.module_utils._host.service import (
    StandardStreams,
    exit_status,
    read_settings,
)
from ansible_collections.vmops.qemu.plugins.module_utils._host.shut_down import has_qemu, still_down, still_on
from ansible_collections.vmops.qemu.plugins.module_utils._image.info import directory_info
from ansible_collections.vmops.qemu.plugins.module_utils._last_run import read_runs
from ansible_collections.vmops.qemu.plugins.module_utils._progress import read_progress
from ansible_collections.vmops.qemu.plugins.module_utils._qemu import systemd
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.process import QemuProcess, list_processes
from ansible_collections.vmops.qemu.plugins.module_utils._shutdown.record import ShutDownVm, read_all

#: Images that are told of one by one, and characters of a label.
_MOST_IMAGES = 1000
_MOST_IN_LABEL = 300

_STATES = ("complete", "partial", "archived", "invalid")


@dataclasses.dataclass(frozen=True)
class MetricsSettings:
    """What is asked for, as it stands in a file."""

    save_dir: str
    #: The file that is written.
    file: str
    #: Where something must be mounted, on which the directory lies; empty where that is not asked for.
    save_mount: str = ""

    @classmethod
    def parse(cls, settings: t.Mapping[str, t.Any]) -> MetricsSettings:
        """Files of older versions have no ``save_mount``.

        :raises KeyError: one is missing. :raises ValueError: one makes no sense.
        """
        mount = str(settings.get("save_mount", ""))
        made = cls(save_dir=str(settings["save_dir"]), file=str(settings["file"]), save_mount=mount)
        if not os.path.isabs(made.file) or not made.file.endswith(".prom"):
            raise ValueError("file is no absolute path that ends in .prom")
        return made


class Exposition:
    """Prometheus' text format."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._seen: set[str] = set()
        self._name = ""

    def gauge(self, name: str, help_text: str) -> None:
        """The samples of this one follow."""
        self._name = name
        self._lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]

    def sample(self, value: float, **labels: str) -> None:
        """A sample of the gauge; one that is there already is left out."""
        named = ",".join(f'{name}="{label_value(value)}"' for name, value in labels.items())
        series = f"{self._name}{{{named}}}" if named else self._name
        if series not in self._seen:
            self._seen.add(series)
            self._lines.append(f"{series} {float(value)!r}" if value != int(value) else f"{series} {int(value)}")

    def text(self) -> str:
        """All of it."""
        return "".join(f"{line}\n" for line in self._lines)


def label_value(text: str) -> str:
    """The words of others between the quotes of a label."""
    shown = one_line(text)
    if len(shown) > _MOST_IN_LABEL:
        shown = f"{shown[: _MOST_IN_LABEL - 1]}…"
    return shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def metrics(
    images: t.Sequence[t.Mapping[str, t.Any]] | None,
    shut_down: t.Sequence[ShutDownVm] | None,
    processes: t.Sequence[QemuProcess],
    boot_restore_failed: bool | None,
) -> str:
    """The file's content.

    :param images: those of the directory, as ``directory_info`` returns them; None where that is not known.
    :param shut_down: the VMs that were shut down and are to be started again; None where that cannot be read.
    :param processes: the QEMUs that run.
    :param boot_restore_failed: of the service that restores VMs at boot; None where there is none.
    """
    out = Exposition()
    out.gauge("vmops_qemu_save_dir_readable", "Whether the directory of the save images could be read.")
    out.sample(images is not None)
    _tell_images(out, list(images or ()), processes)
    out.gauge("vmops_qemu_shut_down_vms_readable", "Whether it could be read which VMs were shut down.")
    out.sample(shut_down is not None)
    out.gauge(
        "vmops_qemu_shut_down_vm_timestamp_seconds",
        "When a VM was shut down that does not run and is to be started again.",
    )
    for vm in still_down(shut_down or (), processes, images or ()):
        out.sample(round(vm.at, 3), vm=vm.name)
    out.gauge(
        "vmops_qemu_shutdown_pending_vm_timestamp_seconds", "When a VM was asked to shut down that has run on since."
    )
    for vm in still_on(shut_down or (), processes):
        out.sample(round(vm.at, 3), vm=vm.name)
    out.gauge("vmops_qemu_last_run_timestamp_seconds", "When a save or a restore last ended so on this host.")
    for (operation, result), moment in read_runs().items():
        out.sample(round(moment, 3), operation=operation, result=result)
    if boot_restore_failed is not None:
        out.gauge(
            "vmops_qemu_boot_restore_failed",
            "Whether the restore at boot has left a VM saved, or an image unused, or was never begun.",
        )
        out.sample(boot_restore_failed)
    running = read_progress()
    out.gauge("vmops_qemu_operations", "Saves and restores of VMs that are at work.")
    for kind in ("save", "restore"):
        out.sample(sum(progress.operation == kind for progress in running), operation=kind)
    out.gauge("vmops_qemu_operation_started_timestamp_seconds", "When a save or a restore that is at work began.")
    for progress in running:
        out.sample(round(progress.started, 3), vm=progress.vm, operation=progress.operation)
    out.gauge("vmops_qemu_host_runs", "Runs over all VMs of the host that are at work.")
    host_runs = read_host_runs()
    for kind in ("save", "restore"):
        out.sample(sum(run.operation == kind for run in host_runs), operation=kind)
    return out.text()


def _tell_images(out: Exposition, images: list[t.Mapping[str, t.Any]], processes: t.Sequence[QemuProcess]) -> None:
    out.gauge("vmops_qemu_images", "Files of save images by state.")
    for state in _STATES:
        out.sample(sum(image["state"] == state for image in images), state=state)
    out.gauge("vmops_qemu_images_superseded", "Save images of VMs of which there is a later one.")
    out.sample(sum(bool(image["superseded_by"]) for image in images))
    out.gauge("vmops_qemu_images_not_restorable", "Complete save images from which no VM can be started as recorded.")
    out.sample(sum(image["state"] == "complete" and image["restorable"] is False for image in images))
    told = images[:_MOST_IMAGES]
    out.gauge("vmops_qemu_image_timestamp_seconds", "When the VM of an image was saved.")
    for image in told:
        moment = _saved_at(image)
        if moment:
            out.sample(round(moment, 3), **_labels(image), state=image["state"])
    out.gauge("vmops_qemu_image_bytes", "Bytes that an image takes on the disk.")
    for image in told:
        out.sample(image["allocated"] or 0, **_labels(image))
    out.gauge(
        "vmops_qemu_saved_vm_timestamp_seconds", "When a VM was saved that does not run and waits for its restore."
    )
    for image in told:
        if _waits(image, processes):
            out.sample(round(_saved_at(image), 3), **_labels(image))


def _labels(image: t.Mapping[str, t.Any]) -> dict[str, str]:
    return {"vm": image["name"] or "", "image": os.path.basename(image["path"])}


def _saved_at(image: t.Mapping[str, t.Any]) -> float:
    """When it was saved, in seconds since the epoch; where that is not recorded, when it was last written.

    0 where neither is known, as of a damaged one.
    """
    try:
        whole, _point, fraction = (image["saved_at"] or "").rstrip("Z").partition(".")
        moment = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
        return moment + float(f"0.{fraction}" if fraction.isdecimal() else 0)
    except (ValueError, OverflowError):
        return float(image["mtime"] or 0)


def _waits(image: t.Mapping[str, t.Any], processes: t.Sequence[QemuProcess]) -> bool:
    """Whether a VM is in an image and nowhere else."""
    if image["state"] != "complete" or image["checkpoint"] or image["superseded_by"] or image["copy_of"]:
        return False
    return not has_qemu(image["name"], (image["launch"] or {}).get("uid"), processes)


async def _write(settings: MetricsSettings) -> bool:
    images: list[dict[str, t.Any]] | None = None
    # Of a file system that is not there the directory may be seen below it, empty, or be missing.
    if not settings.save_mount or os.path.realpath(settings.save_mount) in mount_points():
        with contextlib.suppress(ImageError):
            images = directory_info(settings.save_dir)
    try:
        shut_down: list[ShutDownVm] | None = read_all()
    except ConflictError:
        shut_down = None
    boot_restore_failed = None
    if systemd.is_running():
        with contextlib.suppress(UnitError):
            unit = await systemd.read_unit(BOOT_RESTORE)
            boot_restore_failed = restore_has_failed(unit, images is not None) if is_installed(unit) else None
    text = metrics(images, shut_down, list_processes(), boot_restore_failed)
    try:
        write_durably(settings.file, text.encode("utf-8", "backslashreplace"), 0o644)
    except OSError as error:
        raise VmopsError(
            f"{settings.file} cannot be written: {error.strerror}", cure="See to the file system and that directory"
        ) from error
    return True


def main(settings: str) -> int:
    """Write the metrics of this host.

    :param settings: the path of a JSON file, as :class:`MetricsSettings` takes it.
    :returns: the exit status: 0 where they are written, else 1.
    """

    async def work() -> bool:
        return await _write(read_settings(settings, MetricsSettings.parse))

    return exit_status(work, StandardStreams())
