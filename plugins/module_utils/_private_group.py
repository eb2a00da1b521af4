# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Users' private groups: where each user has a group of his own, what it may write, he alone may write.

Debian 13 and Fedora give such users the umask 0002, so that all that they make may be written by their group.

Sources: useradd(8) (USERGROUPS_ENAB), pam_umask(8) (usergroups), acl(5).
"""

from __future__ import annotations

import errno
import functools
import grp
import os
import pwd

#: Where the kernel keeps a POSIX ACL. With one, the mode's bits of the group are those of others, too.
_ACL = "system.posix_acl_access"


def may_write_by_group(place: str, facts: os.stat_result) -> bool:
    """Whether the mode's bits of the group give others than the owner the right to write; also where it is not known.

    :param place: the file or directory itself, no symbolic link. :param facts: of it.
    """
    return not is_private(facts.st_gid, facts.st_uid) or _has_acl(place)


@functools.lru_cache(maxsize=64)
def is_private(gid: int, uid: int) -> bool:
    """Whether a group is this user's alone, as useradd makes it; never root's, whose groups have other members."""
    if uid == 0:
        return False
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return (
        (user.pw_gid, user.pw_name) == (gid, group.gr_name)
        and set(group.gr_mem) <= {user.pw_name}
        and all(other.pw_uid == uid for other in pwd.getpwall() if other.pw_gid == gid)
    )


def _has_acl(place: str) -> bool:
    try:
        os.getxattr(place, _ACL, follow_symlinks=False)
    except OSError as error:
        return error.errno not in (errno.ENODATA, errno.ENOTSUP)
    return True
