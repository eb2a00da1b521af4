# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run ansible-test sanity without containers, and without any download but from the package index.

ansible-test makes a virtual environment for each of its tests, and fetches a get-pip.py from its own server for them.
It uses one that is there already; the one that is put there does the same with pip's wheel from the package index.
ansible-test hides the PIP_* variables and takes its files to the home directory: it gets a home of its own, with a
pip.conf that says what this user's pip knows.

Run by the virtual environment's Python. Arguments are handed to ansible-test:
scripts/sanity.py --test validate-modules plugins/modules/qemu_save.py
"""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "build" / "collections" / "ansible_collections" / "vmops" / "qemu"
#: With another ansible-core in the place of that of .venv.
BIN = Path(os.environ.get("VMOPS_VENV") or ROOT / ".venv") / "bin"
HOME = ROOT / ".cache" / "ansible-test"

# Run by ansible-test's own set-up in every new virtual environment, with the packages as arguments.
GET_PIP = """\
import os, sys
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), {wheel!r}))
from pip._internal.cli.main import main
sys.exit(main(["install", "--quiet", *(arg for arg in sys.argv[1:] if arg not in ("--no-setuptools", "--no-wheel"))]))
"""

# A target may have any of these (see python_requires in tests/config.yml).
TARGET_PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")


def pip(*arguments: str) -> str:
    """What the virtual environment's pip prints."""
    command = [str(BIN / "python"), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def write_pip_conf() -> None:
    """Give the private home the settings that pip has now, from its files and from the environment."""
    settings = {"cache-dir": pip("cache", "dir").strip(), "quiet": "2"}
    for line in pip("config", "list").splitlines():
        key, value = line.split("=", 1)
        scope, name = key.rsplit(".", 1)
        if scope in ("global", "install", ":env:") and name not in ("config-file", "require-virtualenv"):
            settings[name] = str(ast.literal_eval(value)).replace("%", "%%")
    conf = configparser.ConfigParser()
    conf["global"] = settings
    path = HOME / ".config" / "pip" / "pip.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        conf.write(file)


def write_get_pip() -> None:
    """Put the bootstrap script that ansible-test wants where it looks for it."""
    found = subprocess.run(
        [
            str(BIN / "python"),
            "-c",
            "import types; from ansible_test._internal.python_requirements import get_venv_packages as get\n"
            f"for v in {TARGET_PYTHONS!r}: print(get(types.SimpleNamespace(version=v))['pip'])",
        ],
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    cache = HOME / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in sorted(set(found.stdout.split())):
        wheel = f"pip-{version}-py3-none-any.whl"
        if not (cache / wheel).exists():
            pip("download", "-qq", "--no-deps", "--only-binary", ":all:", "--dest", str(cache), f"pip=={version}")
        script = cache / f"get_pip_{version.replace('.', '_')}.py"
        script.write_text(GET_PIP.format(wheel=wheel), encoding="utf-8")


def link_pythons() -> Path:
    """A directory of the Pythons on this machine, for the tests that ask every Python that a target may have.

    Links, because a version manager's shims on PATH answer for Pythons that they do not run.
    """
    directory = HOME / "bin"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in TARGET_PYTHONS:
        name = f"python{version}"
        built = sorted(pyenv.glob(f"{version}.*/bin/{name}"), reverse=True)
        for candidate in [BIN / name, Path("/usr/bin", name), Path("/usr/local/bin", name), *built]:
            if candidate.exists():
                (directory / name).symlink_to(candidate)
                break
    return directory


def main() -> int:
    """All tests; those that depend on a target's Python with each Python there is, and a word on the missing ones."""
    write_pip_conf()
    write_get_pip()
    path = os.pathsep.join([str(BIN), str(link_pythons()), "/usr/bin", "/bin", "/usr/sbin", "/sbin"])
    environment = {**os.environ, "HOME": str(HOME), "PATH": path, "LC_ALL": "C.UTF-8"}
    command = [str(BIN / "ansible-test"), "sanity", "--color", "no", *sys.argv[1:]]
    return subprocess.run(command, cwd=STAGE, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
