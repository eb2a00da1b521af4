# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a command that runs beside a VM changes one of its disks: makes an overlay anew, removes it, rolls it back.

Nothing is run. A command is judged by its words, a script by its text; where neither tells, nothing is known of it.
"""

from __future__ import annotations

import dataclasses
import enum
import fnmatch
import os
import re
import typing as t

from ansible_collections.vmops.qemu.plugins.module_utils._bounded_read import read_bounded
from ansible_collections.vmops.qemu.plugins.module_utils._shell_text import (
    SHELLS,
    WRAPPERS,
    assignments,
    command_text,
    is_readable,
    split_commands,
    split_words,
)
from ansible_collections.vmops.qemu.plugins.module_utils._surroundings.media import Medium

#: Programs that change the files which they are given.
_WRITERS = frozenset(
    (
        *("cp", "mv", "rm", "dd", "truncate", "ln", "rsync", "install", "tee", "tar", "shred", "wipefs", "fallocate"),
        *("lvcreate", "lvremove", "lvconvert", "lvresize", "zfs", "btrfs", "mkswap", "unlink", "rename", "scp", "wget"),
        *(
            "curl",
            "qemu-nbd",
            "virt-customize",
            "virt-sysprep",
            "virt-resize",
            "guestfish",
            "debugfs",
            "e2fsck",
            "fsck",
        ),
        *(
            "blkdiscard",
            "sgdisk",
            "parted",
            "sfdisk",
            "fdisk",
            "gzip",
            "gunzip",
            "xz",
            "unxz",
            "zstd",
            "unzstd",
            "find",
        ),
        *("genisoimage", "mkisofs", "xorriso", "cloud-localds", "rbd", "cpio", "unzip", "sed", "xargs"),
    )
)

#: Programs, and words of the shell's own, that change no disk, whatever they are given.
_HARMLESS = frozenset(
    (
        *(
            "mkdir",
            "rmdir",
            "ip",
            "bridge",
            "brctl",
            "ovs-vsctl",
            "tunctl",
            "sleep",
            "test",
            "[",
            "[[",
            "chown",
            "chmod",
        ),
        *("chgrp", "setfacl", "modprobe", "swtpm", "swtpm_setup", "swtpm_ioctl", "virtiofsd", "sysctl", "nft", "tc"),
        *("iptables", "ip6tables", "ethtool", "logger", "echo", "printf", "true", "false", ":", "cat", "ls", "stat"),
        *("grep", "awk", "cut", "head", "tail", "wc", "sort", "uniq", "tr", "basename", "dirname", "realpath", "date"),
        *("readlink", "id", "hostname", "uname", "touch", "mkfifo", "kill", "pkill", "killall", "socat", "nc", "ncat"),
        *("systemctl", "systemd-notify", "systemd-tmpfiles", "journalctl", "udevadm", "umount", "mountpoint", "lsblk"),
        *("findmnt", "lvchange", "vgchange", "blockdev", "blkid", "sync", "pwd", "which", "type", "hash", "trap"),
        *("for", "do", "done", "if", "then", "fi", "else", "elif", "while", "until", "case", "esac", "exit", "set"),
        *("cd", "export", "local", "return", "umask", "shift", "read", "break", "continue", "wait", "ulimit", "unset"),
        *("function", "{", "}", "(", ")", "in", "select", "declare", "readonly", "getopts", "pgrep", "pidof", "ps"),
        *("cmp", "sha256sum", "md5sum", "seq", "timedatectl", "ping", "flock", "lsof", "fuser", "restorecon", "chcon"),
    )
)

#: Programs that may also only look, and what on their command line shows that they change something.
_CHANGING = {
    "sed": r"\s-\w*i|--in-place",
    "find": r"-delete\b|-exec|-ok",
    "curl": r"\s-[oO]\b|--output",
    "xargs": r"\b(?:rm|mv|cp|truncate|dd|qemu-img|shred)\b",
    "zfs": r"\b(?:rollback|destroy|receive|recv|promote|rename|create|clone)\b",
    "btrfs": r"\b(?:delete|snapshot|receive|create)\b",
    "rbd": r"\b(?:rollback|rm|remove|create|clone|import|resize|revert|rename|mv|cp|flatten)\b",
}

#: Programs whose words are names of volumes rather than paths.
_VOLUMES = re.compile(r"zfs|rbd|lv\w+")

#: Programs that are harmless unless they are given a disk: they may mount it.
_HARMLESS_WITHOUT_A_DISK = frozenset(("mount", "losetup", "kpartx", "partprobe"))

#: Programs that only read all that they are given but the last.
_COPIERS = frozenset(("cp", "install", "ln", "scp", "rsync"))

#: Options of ``qemu-img`` that take a value.
_QEMU_IMG_VALUES = frozenset(("-f", "-F", "-b", "-B", "-o", "-O", "-S", "-t", "-T", "-m", "-s", "-l", "-r", "--object"))

_INTERPRETERS = re.compile(r"(?:python|pypy|perl|ruby|node|lua|php|tclsh)[\d.]*")

#: What ``qemu-img`` does without a change of what is in the disk.
_LOOKING = frozenset(("info", "check", "map", "measure", "compare", "--version", "--help", "-V", "-h"))

_MAX_SCRIPT = 256 * 1024

#: Scripts that run scripts; and wrappers, variables and options before a program.
_MAX_DEPTH = 3
_MAX_WRAPPERS = 32

_EXISTS = r"-[efsrwbL]\s+(?P<file>\S+?)\s*\]{0,2}\s*"
#: A disk that is made only where there is none yet.
_MADE_WHERE_MISSING = (
    re.compile(rf"(?:\btest|\[\[?)\s+{_EXISTS}\|\|(?P<body>[^;&|\n}}]*)"),
    re.compile(rf"(?:\btest|\[\[?)\s+!\s+{_EXISTS}&&(?P<body>[^;&|\n}}]*)"),
    re.compile(
        rf"\bif\s+(?:!\s+(?:test|\[\[?)|(?:test|\[\[?)\s+!)\s+{_EXISTS};?\s*then\b"
        r"(?P<body>(?:(?!\b(?:else|elif|if|fi)\b).){0,4000})\bfi\b",
        re.DOTALL,
    ),
)

_REDIRECTION = re.compile(r"(?<![<&=-])\d?>{1,2}\|?\s*(?![&(])(\"[^\"]*\"|'[^']*'|[^\s;&|)]+)")


class Effect(enum.Enum):
    """What a command does to the disks."""

    NONE = "none"
    UNKNOWN = "unknown"
    TOUCHES = "touches"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What can be told of a command, and where it touches a disk, the file, and whether the guest may write to it."""

    effect: Effect
    file: str = ""
    writable: bool = True

    def _rank(self) -> tuple[bool, bool, bool]:
        return (self.effect is Effect.TOUCHES and self.writable, self.effect is Effect.TOUCHES, self.effect is _UNKNOWN)

    def worse(self, other: Judgement) -> Judgement:
        """The one of the two that counts."""
        return max(self, other, key=Judgement._rank)


_UNKNOWN = Effect.UNKNOWN
_NONE = Judgement(Effect.NONE)


class DiskFiles:
    """The files of a VM's media, and what names them."""

    def __init__(self, media: t.Sequence[Medium]) -> None:
        #: Whether the guest may write to each, by its path.
        self.files = {
            file.path: not medium.read_only for medium in media for file in medium.files if file.path.startswith("/")
        }
        self._by_real_path = {os.path.realpath(path): path for path in self.files}
        self._by_name = {os.path.basename(path): path for path in self.files}

    def named(self, word: str, directory: str = "", within: bool = True) -> str:
        """The file that a word of a command names, or the empty string.

        :param directory: where the command runs; a relative name counts from there, or, where that is not known, as
            one in any directory.
        :param within: whether a directory names the files in it.
        """
        for part in {word, *re.split(r"[=,]", word)}:
            name = part.strip("\"'")
            if not name or name in (".", "/"):
                continue
            if not is_literal(name):
                found = self._by_name.get(os.path.basename(name), "") or self._matching(name)
            elif os.path.isabs(name) or directory:
                path = os.path.normpath(os.path.join(directory, name))
                found = path if path in self.files else self._by_real_path.get(os.path.realpath(path), "")
                found = found or (self._within(path) if within else "")
            else:
                found = self._by_name.get(os.path.basename(name), "")
            if found:
                return found
        return ""

    def _within(self, directory: str) -> str:
        """A file in this directory, or below it."""
        return next((path for path in self.files if directory != "/" and path.startswith(f"{directory}/")), "")

    def _matching(self, pattern: str) -> str:
        """A file that a pattern of the shell's may mean, or a name with variables in the file's directory."""
        if re.search(r"[$`]", pattern):
            place = os.path.dirname(pattern)
            known = place if is_literal(place) else ""
            return next((path for path in self.files if known not in ("", "/") and os.path.dirname(path) == known), "")
        return next((path for path in self.files if fnmatch.fnmatchcase(path, pattern)), "")

    def on_volume(self, name: str) -> str:
        """A file that is this volume (``vg/lv``, ``pool/dataset``), or on it where it is mounted by its name; or ""."""
        inner = f"/{name.strip('/')}"
        return next((path for path in self.files if "/" in name and f"{inner}/" in f"{path}/"), "")

    def mentioned(self, text: str) -> str:
        """The file that a text has something to do with: by its path, its name, or its directory; or ""."""
        for path in self.files:
            directory = os.path.dirname(path)
            names = [path, os.path.basename(path), *([directory] if directory != "/" else [])]
            if any(re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", text) for name in names):
                return path
        return ""

    def judged(self, path: str) -> Judgement:
        """That a command touches this file."""
        return Judgement(Effect.TOUCHES, path, self.files.get(path, True))


def is_literal(word: str) -> bool:
    """Whether a word means what it says: no variable, and no pattern."""
    return re.search(r"[$`*?]|\[.*\]", word) is None


def judge_command(text: str, disks: DiskFiles, directory: str = "", depth: int = 0) -> Judgement:
    """What a command does to the disks.

    :param text: its words, joined by blanks.
    :param directory: where it runs; empty where that is not known.
    """
    words = _without_wrappers(split_words(text))
    if not words:
        return _NONE
    program = os.path.basename(words[0])
    arguments = words[1:]
    if program in SHELLS:
        inner = re.match(r"\s*\S+\s+(?:-\S+\s+)*?-\w*c\s+(.*)", text[text.find(words[0]) :], re.DOTALL)
        if inner:
            if depth >= _MAX_DEPTH:
                return Judgement(_UNKNOWN)
            return judge_script(inner.group(1), disks, directory, depth=depth + 1, of_unit=depth == 0)
        _text, script = command_text(words)
        return _judge_file(script, words, disks, directory, depth) if script else Judgement(_UNKNOWN)
    if _INTERPRETERS.fullmatch(program):
        given = [word for word in arguments if not word.startswith("-")]
        if {"-c", "-e"} & set(arguments) or not given:
            mentioned = disks.mentioned(text)
            return disks.judged(mentioned) if mentioned else Judgement(_UNKNOWN)
        return _judge_file(given[0], words, disks, directory, depth)
    if program == "qemu-img":
        return _judge_qemu_img(arguments, disks, directory)
    if program == "install" and "-d" in arguments:
        return _NONE
    if program in _WRITERS or program.startswith(("mkfs", "mke2fs")):
        if program in _CHANGING and not re.search(_CHANGING[program], text):
            return _NONE
        return _judge_writer(program, arguments, disks, directory)
    if program in _HARMLESS_WITHOUT_A_DISK:
        named = _named_among(arguments, disks, directory)
        return named if named.effect is Effect.TOUCHES else _NONE
    if program in _HARMLESS or program.startswith("#"):
        return _NONE
    if os.path.isabs(words[0]) or (directory and "/" in words[0]):
        return _judge_file(words[0], words, disks, directory, depth)
    return _named_among(arguments, disks, directory)


def _without_wrappers(words: list[str]) -> list[str]:
    """The words from the program on that is run at last."""
    for _time in range(_MAX_WRAPPERS):
        program = os.path.basename(words[0]) if words else ""
        if not words:
            break
        if re.match(r"\w+=", words[0]):
            words = words[1:]
        elif words[:3] == ["ip", "netns", "exec"] or (program == "ip" and words[1:3] == ["netns", "exec"]):
            words = words[4:]
        elif program in WRAPPERS and program not in _HARMLESS:
            # After the wrapper's own options, and their values.
            rest = words[1:]
            known = [number for number, word in enumerate(rest[:_MAX_WRAPPERS]) if _is_program(word)]
            words = rest[known[0] :] if known else [word for word in rest if not word.startswith("-")]
        else:
            break
    return words


def _is_program(word: str) -> bool:
    name = os.path.basename(word)
    known = name in _WRITERS or name in _HARMLESS or name in SHELLS or name in WRAPPERS or name == "qemu-img"
    return known or (os.path.isabs(word) and os.path.isfile(word) and os.access(word, os.X_OK))


def _judge_qemu_img(arguments: t.Sequence[str], disks: DiskFiles, directory: str) -> Judgement:
    """What it is told to make or to change, as opposed to what it reads."""
    if not arguments or arguments[0] in _LOOKING:
        return _NONE
    plain = []
    rest = iter(arguments[1:])
    for word in rest:
        if word in _QEMU_IMG_VALUES:
            next(rest, None)
        elif not word.startswith("-"):
            plain.append(word)
    written = {"create": plain[:1], "convert": plain[-1:], "dd": [word for word in plain if word.startswith("of=")]}
    targets = written.get(arguments[0], plain)
    found = _named_among(targets, disks, directory)
    if found.effect is Effect.TOUCHES:
        return found
    if all(is_literal(word) for word in targets):
        return _NONE
    return Judgement(Effect.TOUCHES, "an image that is known only when it runs")


def _judge_writer(program: str, arguments: t.Sequence[str], disks: DiskFiles, directory: str) -> Judgement:
    """A program that writes: it is harmless only if it is plain that what it is given is something else."""
    plain = [word for word in arguments if not word.startswith("-")]
    options = [word for word in arguments if word.startswith("-")]
    within = True
    if program == "dd":
        plain = [word for word in plain if word.startswith("of=")]
    elif program in _COPIERS and len(plain) > 1 and not any(word.startswith(("-t", "--target")) for word in options):
        target, sources = plain[-1], plain[:-1]
        within = program == "rsync" or any(re.match(r"-\w*[rRa]|--recursive|--archive", word) for word in options)
        within = within or not all(map(is_literal, sources))
        plain = [target, *(os.path.join(target, os.path.basename(source)) for source in sources)]
    elif program == "tar" and arguments and not re.search(r"x|--delete", arguments[0]):
        plain = [word for number, word in enumerate(plain) if number and re.search(r"f$", plain[number - 1])]
    if _VOLUMES.fullmatch(program):
        volumes = [disks.on_volume(word.partition("@")[0]) for word in plain]
        return next((disks.judged(path) for path in volumes if path), _named_among(plain, disks, directory))
    found = _named_among(plain, disks, directory, within)
    if found.effect is Effect.TOUCHES or not all(map(is_literal, plain)) or not arguments:
        return found
    return _NONE


def _named_among(arguments: t.Sequence[str], disks: DiskFiles, directory: str, within: bool = True) -> Judgement:
    found = Judgement(_UNKNOWN)
    for word in arguments:
        path = disks.named(word, directory, within)
        if path:
            found = found.worse(disks.judged(path))
    return found


def _judge_file(path: str, words: t.Sequence[str], disks: DiskFiles, directory: str, depth: int) -> Judgement:
    """A program by its path: what it is given, and, where it is a script, what is in it."""
    named = _named_among([word for word in words[1:] if word != path], disks, directory)
    try:
        data = read_bounded(os.path.join(directory or "/", path), _MAX_SCRIPT)
    except OSError:
        return named
    text = data.decode("utf-8", "replace")
    shebang = re.match(r"#!\s*(\S+)(?:[ \t]+(\S+))?", text)
    started_by = os.path.basename(words[0])
    if not shebang and started_by not in SHELLS and not _INTERPRETERS.fullmatch(started_by):
        return named
    interpreter = os.path.basename(shebang.group(1)) if shebang else started_by
    if shebang and interpreter == "env":
        interpreter = os.path.basename(shebang.group(2) or "")
    if interpreter in SHELLS:
        if depth >= _MAX_DEPTH:
            return named
        given = list(words[words.index(path) + 1 :]) if path in words else []
        # What it is given counts by what it does with that.
        return judge_script(text, disks, directory, given, depth + 1)
    mentioned = disks.mentioned(text)
    return disks.judged(mentioned) if mentioned else named


def judge_script(
    text: str,
    disks: DiskFiles,
    directory: str = "",
    arguments: t.Sequence[str] = (),
    depth: int = 0,
    of_unit: bool = False,
) -> Judgement:
    """What a shell script does to the disks.

    :param arguments: what it is given.
    :param of_unit: whether systemd reads it first, for which two dollar signs stand for one.
    """
    if not is_readable(text):
        mentioned = disks.mentioned(text)
        return disks.judged(mentioned) if mentioned else Judgement(_UNKNOWN)
    variables = {**assignments(text), **{str(number): word for number, word in enumerate(arguments, 1)}}
    variables["@"] = variables["*"] = " ".join(arguments)
    plain = _substitute(text.replace("$$", "$") if of_unit else text, variables)
    for pattern in _MADE_WHERE_MISSING:
        plain = pattern.sub(lambda match: "" if disks.named(match.group("file"), directory) else match.group(), plain)
    mentioned = disks.mentioned(plain)
    found = _NONE
    for command in split_commands(plain):
        moved = re.match(r"(?:cd|pushd)\s+[\"']?([^\"'\s]+)[\"']?\s*$", command)
        if moved:
            known = is_literal(moved.group(1)) and (directory or os.path.isabs(moved.group(1)))
            directory = os.path.normpath(os.path.join(directory, moved.group(1))) if known else ""
        if re.match(r"(?:(?:export|local|readonly|declare)\s+)?\w+\+?=\S*$", command):
            continue
        judged = judge_command(_REDIRECTION.sub(" ", command), disks, directory, depth)
        for target in _REDIRECTION.findall(command):
            path = disks.named(target, directory)
            if path:
                judged = judged.worse(disks.judged(path))
            elif re.search(r"[$`]", target):
                judged = judged.worse(Judgement(_UNKNOWN))
        if judged.effect is _UNKNOWN and mentioned and _writes_to_unknown(command):
            # The script has to do with the disk, and what this writes to is known at run time only.
            judged = disks.judged(mentioned)
        found = found.worse(judged)
    return found


def _writes_to_unknown(command: str) -> bool:
    words = split_words(command)
    program = os.path.basename(words[0]) if words else ""
    return (program in _WRITERS or program == "qemu-img") and any(not is_literal(word) for word in words[1:])


def _substitute(text: str, variables: t.Mapping[str, str]) -> str:
    """The text with the variables' values, as far as they are plain; a few variables deep, and no longer than before
    by more than what a script may have."""
    for _time in range(4):
        replaced = re.sub(
            r"\$(?:\{(\w+|[@*])\}|(\w+|[@*]))",
            lambda match: variables.get(match.group(1) or match.group(2), match.group()),
            text,
        )
        if replaced == text or len(replaced) > 4 * _MAX_SCRIPT or not is_readable(replaced):
            break
        text = replaced
    return text
