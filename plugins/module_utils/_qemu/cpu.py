# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest sees of its CPUs, as far as QEMU tells it: it asks once, when it boots, and goes on with that.

A stream holds what is in the CPUs, and on x86 not what they are: QEMU loads it into others and reports success, and the
guest comes to an instruction that is none any more. What they are depends on more than the command line: on ``-cpu
host`` and ``max`` QEMU, kernel and microcode decide, and ``-accel kvm:tcg`` takes what there is. On other architectures
QEMU does not tell the features.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._errors import CommandError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.cpu_features import feature_names
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.monitor import Monitor

_X86 = frozenset(("x86_64", "i386"))

#: Bits that a guest sees with several CPUs, whether the word has them or not: QEMU 10.0 began to set them there.
_OF_TOPOLOGY = {"1.edx": 1 << 28, "80000001.ecx": 1 << 1}

#: What of ``-smp`` there is more than one of; ``cpus`` is a matter of hot-plug, and compared elsewhere.
_LEVELS = ("drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads", "maxcpus")

#: What Windows and others see of Hyper-V, where QEMU pretends to be that; it does so with KVM alone.
_HYPERV = (
    *("hv-relaxed", "hv-vapic", "hv-time", "hv-crash", "hv-reset", "hv-vpindex", "hv-runtime", "hv-synic", "hv-stimer"),
    *("hv-frequencies", "hv-reenlightenment", "hv-tlbflush", "hv-evmcs", "hv-ipi", "hv-stimer-direct", "hv-avic"),
    *("hv-passthrough", "hv-emsr-bitmap", "hv-tlbflush-ext", "hv-tlbflush-direct", "hv-xmm-input", "hv-syndbg"),
)

#: What is read of a record at most.
_MAX_RECORD = 64 * 1024
_MAX_VALUES = 512
_MAX_TEXT = 256
_MOST = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Cpu:
    """The CPUs of a VM; all but ``accelerator`` is empty, or None, where it is not known."""

    #: ``kvm`` or ``tcg``.
    accelerator: str
    #: The QOM type of the first one, such as ``max-x86_64-cpu``.
    type: str = ""
    #: How many of what there are, by the words of ``-smp``, those of which there is one left out.
    topology: dict[str, int] | None = None
    #: On x86: what CPUID says of it; ``physical_bits`` is how many an address of memory has.
    vendor: str = ""
    model_name: str = ""
    family: int | None = None
    model: int | None = None
    stepping: int | None = None
    physical_bits: int | None = None
    #: On x86: the bits of CPUID, by leaf, subleaf and register (``7.0.ebx``).
    features: dict[str, int] | None = None
    #: On x86 with KVM: what QEMU pretends of Hyper-V, by the names of ``-cpu``.
    hyperv: list[str] | None = None

    def as_result(self) -> dict[str, t.Any]:
        """The ``cpu`` of an image, as ``qemu_save_image_info`` returns it."""
        values = {name: None if value == "" else value for name, value in dataclasses.asdict(self).items()}
        if self.features is not None:
            names = (name for word in sorted(self.features.items()) for name in feature_names(*word))
            values["features"] = list(dict.fromkeys(names))
        return values

    def dump(self) -> str:
        """The text for an image."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, "")}
        return json.dumps(values, separators=(",", ":"), sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> Cpu:
        """Read such a text; what a later version added is left out, and what is not there is not known.

        :raises ValueError: it is none.
        """
        if len(text) > _MAX_RECORD:
            raise ValueError("it is too long")
        try:
            value = json.loads(text)
        except RecursionError as exc:
            raise ValueError("it has too many levels") from exc
        if not isinstance(value, dict):
            raise ValueError("it is no object")
        found: dict[str, t.Any] = {"accelerator": ""}
        for name, check in _CHECKS.items():
            if name in value:
                if not check(value[name]):
                    raise ValueError(f"its {name} is not what it should be")
                found[name] = value[name]
        return cls(**found)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT and "\0" not in value


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _are_numbers(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MAX_VALUES
        and all(_is_text(key) and _is_number(number) for key, number in value.items())
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_VALUES and all(map(_is_text, value))


_CHECKS: dict[str, t.Callable[[object], bool]] = {
    **dict.fromkeys(("accelerator", "type", "vendor", "model_name"), _is_text),
    **dict.fromkeys(("family", "model", "stepping", "physical_bits"), _is_number),
    **dict.fromkeys(("topology", "features"), _are_numbers),
    "hyperv": _are_texts,
}


async def read_cpu(monitor: Monitor, architecture: str, accelerator: str) -> Cpu:
    """Ask QEMU for its CPUs, which are there from its start on.

    :param architecture: and ``accelerator``: the VM's, as ``RunningVm`` has them.
    :raises MonitorError: it cannot be asked.
    """
    cpus = await monitor.execute("query-cpus-fast")
    if not cpus:
        return Cpu(accelerator)
    path = cpus[0]["qom-path"]
    is_x86 = architecture in _X86
    names = ["type", *(("vendor", "model-id", "family", "model", "stepping", "phys-bits") if is_x86 else ())]
    flags = _HYPERV if is_x86 and accelerator != "tcg" else ()
    values, states, words, topology = await asyncio.gather(
        asyncio.gather(*(_get(monitor, path, name) for name in names)),
        asyncio.gather(*(_get(monitor, path, name) for name in flags)),
        _get(monitor, path, "feature-words") if is_x86 else _nothing(),
        _get(monitor, "/machine", "smp"),  # not before QEMU 6.2
    )
    told = dict(zip(names, values))
    return Cpu(
        accelerator,
        type=_text(told["type"]),
        topology={name: topology[name] for name in _LEVELS if topology.get(name, 1) != 1}
        if _are_numbers(topology)
        else None,
        vendor=_text(told.get("vendor")),
        model_name=_text(told.get("model-id")),
        family=_number(told.get("family")),
        model=_number(told.get("model")),
        stepping=_number(told.get("stepping")),
        physical_bits=_number(told.get("phys-bits")),
        features=_features(words) if isinstance(words, list) else None,
        hyperv=[name for name, state in zip(flags, states) if state is True] if flags else None,
    )


async def _get(monitor: Monitor, path: str, name: str) -> t.Any:
    """A property; None where there is no such."""
    try:
        return await monitor.execute("qom-get", {"path": path, "property": name})
    except CommandError:
        return None


async def _nothing() -> None:
    return None


def _text(value: object) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and _is_number(value) else None


def _features(words: list[dict[str, t.Any]]) -> dict[str, int]:
    found = {}
    for word in words[:_MAX_VALUES]:
        subleaf = f".{word['cpuid-input-ecx']}" if "cpuid-input-ecx" in word else ""
        register = f"{word['cpuid-input-eax']:x}{subleaf}.{word['cpuid-register'].lower()}"
        bits = word["features"] & ~_OF_TOPOLOGY.get(register, 0)
        if bits:
            found[register] = bits
    return found
