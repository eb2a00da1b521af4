# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the bits of CPUID are called on a command line of QEMU (``-cpu MODEL,+NAME``), for messages."""

from __future__ import annotations

import functools

#: By leaf, subleaf and register, as ``Cpu.features`` has them: the names of the bits from the lowest one on, ``-`` for
#: one without. Read from QEMU 10.0, which sets one bit for each, but for those of KVM, which are from its source.
_NAMES = {
    "1.ecx": (
        "sse3 pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm - pcid dca sse4.1 "
        "sse4.2 x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand hypervisor"
    ),
    "1.edx": (
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi mmx fxsr "
        "sse sse2 ss ht tm ia64 pbe"
    ),
    "6.eax": "- - arat",
    "7.0.ebx": (
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm - zero-fcs-fds mpx - "
        "avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd "
        "sha-ni avx512bw avx512vl"
    ),
    "7.0.ecx": (
        "- avx512vbmi umip pku - waitpkg avx512vbmi2 - gfni vaes vpclmulqdq avx512vnni avx512bitalg - "
        "avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b - - pks"
    ),
    "7.0.edx": (
        "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - tsx-ldtrk - "
        "- arch-lbr - - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp flush-l1d arch-capabilities "
        "core-capability ssbd"
    ),
    "7.1.eax": (
        "sha512 sm3 sm4 - avx-vnni avx512-bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - - lkgs wrmsrns - amx-fp16 - "
        "avx-ifma - - lam"
    ),
    "7.1.edx": "- - - - avx-vnni-int8 avx-ne-convert - - amx-complex - avx-vnni-int16 - - - prefetchiti",
    "7.2.edx": "intel-psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no",
    "d.1.eax": "xsaveopt xsavec xgetbv1 xsaves xfd",
    "40000001.eax": (
        "kvmclock kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt - "
        "kvm-pv-tlb-flush kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int "
        "kvm-msi-ext-dest-id - - - - - - - - kvmclock-stable-bit"
    ),
    "40000001.edx": "kvm-hint-dedicated",
    "80000001.ecx": (
        "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - "
        "lwp fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb"
    ),
    "80000001.edx": (
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - - nx - mmxext mmx fxsr "
        "fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow"
    ),
    "80000007.ebx": "overflow-recov succor",
    "80000007.edx": "- - - - - - - - invtsc",
    "80000008.ebx": (
        "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp - stibp-always-on - - - - - - "
        "amd-ssbd virt-ssbd amd-no-ssb - amd-psfd"
    ),
    "8000000a.edx": (
        "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists - - pause-filter - "
        "pfthreshold avic - v-vmsave-vmload vgif - - - - - - - - vnmi - - svme-addr-chk"
    ),
    "80000021.eax": (
        "no-nested-data-bp - lfence-always-serializing - - - null-sel-clr-base - auto-ibrs - - - - - - - - - - - "
        "- - - - eraps - - sbpb ibpb-brtype srso-no srso-user-kernel-no"
    ),
    "80000022.eax": "perfmon-v2",
    "c0000001.edx": "- - xstore xstore-en - - xcrypt xcrypt-en ace2 ace2-en phe phe-en pmm pmm-en",
}


@functools.cache
def _names(register: str) -> tuple[str, ...]:
    return tuple(_NAMES.get(register, "").split())


def feature_names(register: str, bits: int) -> list[str]:
    """The names of the bits that are set; of one without a name, where it is (``CPUID 7.0.ebx bit 12``).

    :param register: the leaf in hexadecimal, the subleaf where there are several, and the register, with dots.
    """
    names = _names(register)
    found = []
    for bit in range(bits.bit_length()):
        if bits >> bit & 1:
            name = names[bit] if bit < len(names) else "-"
            found.append(f"CPUID {register} bit {bit}" if name == "-" else name)
    return found
