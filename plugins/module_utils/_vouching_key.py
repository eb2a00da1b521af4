# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The key with which a user of this host vouches for what save images record: a file that nobody else can read.

It is ``vouching.key`` in his state directory (``_state_directory``). It holds 64 hexadecimal digits and a line break.
It is made by the first save, and never shown.
"""

from __future__ import annotations

import os
import re
import secrets
import stat

from ansible_collections.vmops.qemu.plugins.module_utils._durable import write_durably
from ansible_collections.vmops.qemu.plugins.module_utils._errors import VouchingKeyError
from ansible_collections.vmops.qemu.plugins.module_utils._lock import named_lock
from ansible_collections.vmops.qemu.plugins.module_utils._safe_path import why_unsafe
from ansible_collections.vmops.qemu.plugins.module_utils._state_directory import make_state_directory, state_path

_NAME = "vouching.key"

#: Bytes of the key.
_SIZE = 32

#: Seconds for which another run is waited for that is just making it.
_LOCK_TIMEOUT = 10.0

_CURE = (
    "Have it belong to its user, with the mode 0600 and 64 hexadecimal digits in it, below directories that nobody else"
    " can write to; or remove it, and the next save makes another one"
)


def key_path() -> str:
    """Where this user's key is, or would be."""
    return state_path(_NAME)


def read_key() -> bytes | None:
    """This user's key; None where there is none yet.

    :raises VouchingKeyError: what is there cannot be read, or others could know or have written it.
    """
    path = key_path()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _cannot("cannot be opened", error) from error
    try:
        facts = os.fstat(descriptor)
        reason = why_unsafe(path, (0, os.geteuid()))
        if not reason and (
            not stat.S_ISREG(facts.st_mode)
            or facts.st_uid != os.geteuid()
            or stat.S_IMODE(facts.st_mode) & 0o077
            or facts.st_nlink != 1
        ):
            reason = (
                f"it belongs to the user {facts.st_uid}, has the mode {stat.S_IMODE(facts.st_mode):#o} and"
                f" {facts.st_nlink} names"
            )
        if reason:
            raise VouchingKeyError(f"The key {path} is not one that its user alone knows: {reason}", cure=_CURE)
        text = os.read(descriptor, 2 * _SIZE + 2)
    except OSError as error:
        raise _cannot("cannot be read", error) from error
    finally:
        os.close(descriptor)
    if not re.fullmatch(rb"[0-9A-Fa-f]{%d}\n?" % (2 * _SIZE), text):
        raise VouchingKeyError(f"The key {path} is not {2 * _SIZE} hexadecimal digits", cure=_CURE)
    return bytes.fromhex(text.decode("ascii").strip())


def make_key() -> bytes:
    """This user's key, which is made where there is none; on the storage, and the same for all runs.

    :raises VouchingKeyError: it cannot be made, or what is there cannot be used.
    """
    key = read_key()
    if key is not None:
        return key
    try:
        make_state_directory()
        with named_lock("vouching-key", _LOCK_TIMEOUT) as other:
            if other is not None:
                raise VouchingKeyError(f"The key {key_path()} is being made by another run{other}", cure="Run it again")
            if read_key() is None:
                # Another run finds all of it or nothing.
                write_durably(key_path(), f"{secrets.token_bytes(_SIZE).hex()}\n".encode())
    except OSError as error:
        raise _cannot("cannot be made", error) from error
    key = read_key()
    if key is None:
        raise VouchingKeyError(f"The key {key_path()} was removed just now", cure="Run the task again")
    return key


def _cannot(what: str, error: OSError) -> VouchingKeyError:
    return VouchingKeyError(f"The key {key_path()} {what}: {error.strerror}", cure=_CURE)
