# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a VM has to do with the network of the namespace in which its QEMU runs."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._qemu import command_line

#: Options, and parts of others' arguments, by which a VM has to do with the network beside its network cards.
_NETWORK_DISK = re.compile(
    r"(?:^|[=:,\"'])(?:nbd|iscsi|https?|ftps?|ssh|sftp|rbd|gluster|nfs|ceph)(?:\+\w+)?(?::|\"|$|,)"
)
_NETWORK_SERVER = re.compile(r"(?:^|[,:])(?:tcp|telnet|websocket|tn3270|udp):|(?:^|[,.])(?:host|port|tls-port)=")


def has_network(argv: t.Sequence[str]) -> bool:
    """Whether the guest, or a disk of its, reaches a network: also by the card that QEMU gives it by itself."""
    default = True
    for option in command_line.options(argv):
        argument = option.argument or ""
        if option.name in ("nic", "net"):
            default = False
            kind = command_line.parse_option_string(argument, "type").get("type", "")
            # A card of -net is on no network before another -net says of which.
            if kind != "none" and (option.name, kind) != ("net", "nic"):
                return True
        elif option.name == "netdev":
            return True
        elif option.name == "nodefaults":
            default = False
        elif option.name == "readconfig":
            return True  # what is in that file is not known
        elif _NETWORK_DISK.search(argument) and option.name in ("drive", "blockdev", "cdrom", "hda", "hdb"):
            return True
    return default


def serves_network(argv: t.Sequence[str]) -> bool:
    """Whether QEMU itself is a server on a network, or a client of one."""
    return any(_is_on_network(option) for option in command_line.options(argv))


def _is_on_network(option: command_line.CommandOption) -> bool:
    """Whether an option is for a server on the network, or for a client of one."""
    argument = option.argument or ""
    if option.name == "vnc":
        return ":" in argument and not argument.startswith("unix:")
    return option.name not in ("name", "append") and _NETWORK_SERVER.search(argument) is not None
