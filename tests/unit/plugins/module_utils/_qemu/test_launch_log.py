# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a launched QEMU's output goes: to the files of before, or into a log that does not grow for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.vmops.qemu.plugins.module_utils import _run_directory
from ansible_collections.vmops.qemu.plugins.module_utils._errors import LaunchError
from ansible_collections.vmops.qemu.plugins.module_utils._qemu.launch_log import (
    LOG_LIMIT,
    LaunchLog,
    is_usable,
    output_file,
)


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """The directory of the logs."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr(_run_directory, "_ROOT_LOGS", str(tmp_path / "logs"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    return tmp_path / "logs"


def run(log, code):
    stdout, stderr = log.open()
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=stderr, check=True, timeout=60)
    finally:
        os.close(stdout)
        os.close(stderr)
    log.settle()
    return done


def test_log_takes_the_beginning_and_no_writer_waits(logs):
    log = LaunchLog("web/1")
    run(log, f"import sys; [sys.stdout.write('x' * 99999) for n in range({5 * LOG_LIMIT // 99999})]")
    assert os.path.getsize(log.path) == LOG_LIMIT
    assert set(log.tail()) == {"x"}
    log.close()


def test_log_is_there_while_the_program_runs(logs):
    log = LaunchLog("web1")
    stdout, stderr = log.open()
    os.write(stdout, b"one\n")
    os.write(stderr, b"two\n")
    for descriptor in (stdout, stderr):
        os.close(descriptor)
    log.settle()
    assert log.tail() == "one; two"
    earlier = Path(log.path)
    again = LaunchLog("web1")
    run(again, "print('three')")
    assert (again.path, again.tail()) == (str(earlier), "three")
    assert log.tail() == "one; two", "of what was opened"
    log.close()
    again.close()


def test_files_are_appended_to(logs, tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text("earlier out\n")
    err.write_text("earlier err\n")
    log = LaunchLog("web1", str(out), str(err))
    run(log, "import sys; print('new out'); sys.stderr.write('new err\\n')")
    assert out.read_text() == "earlier out\nnew out\n"
    assert err.read_text() == "earlier err\nnew err\n"
    assert (log.path, log.tail()) == (str(err), "new err")
    log.close()
    assert not logs.exists()


@pytest.mark.parametrize("which", [0, 1])
def test_one_to_a_file_and_the_other_to_none(logs, tmp_path, which):
    place = tmp_path / "place"
    place.touch()
    log = LaunchLog("web1", *[("", str(place)), (str(place), "")][which])
    run(log, "import sys; print('out'); sys.stderr.write('err\\n')")
    assert place.read_text() == ["err\n", "out\n"][which]
    assert log.tail() == "err"
    log.close()


def test_file_that_is_gone(logs, tmp_path):
    with pytest.raises(LaunchError, match="cannot be written"):
        LaunchLog("web1", str(tmp_path / "gone")).open()


def test_which_file_a_process_writes_to(tmp_path):
    tmp_path.chmod(0o755)
    place = tmp_path / "a b"
    place.touch(0o644)
    number = 700

    def found(flags=os.O_WRONLY, path=place):
        os.dup2(os.open(path, flags), number)
        return output_file(os.getpid(), number)

    try:
        assert found() == found(os.O_RDWR | os.O_APPEND) == str(place)
        assert found(os.O_RDONLY) == "", "that one may read it is no reason to write to it"
        assert found(path="/dev/null") == ""
        place.chmod(0o666)
        assert found() == ""
        place.chmod(0o644)
        os.link(place, tmp_path / "b")
        assert found() == ""
        (tmp_path / "b").unlink()
        assert found() == str(place)
        place.rename(tmp_path / "c")
        place.touch()
        assert output_file(os.getpid(), number) == str(tmp_path / "c")
        (tmp_path / "c").unlink()
        assert output_file(os.getpid(), number) == ""
        assert output_file(os.getpid(), number + 1) == ""
    finally:
        os.close(number)


def test_usable_files(tmp_path):
    tmp_path.chmod(0o755)
    place = tmp_path / "file"
    assert not is_usable(str(place))
    place.touch(0o644)
    assert is_usable(str(place))
    (tmp_path / "link").symlink_to(place)
    assert not is_usable(str(tmp_path / "link"))
    assert not is_usable("\0")
    assert not is_usable("relative")
    tmp_path.chmod(0o777)
    assert not is_usable(str(place))
