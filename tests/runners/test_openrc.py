# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs that are services of OpenRC's: it stops a restored one, and does not start it a second time."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
from runners.programs import RUNNERS, program, words_of

from support import find_qemu_pids
from support.observe import VM, Continuity, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have an OpenRC of its own")

#: A host that OpenRC has booted, as far as a service sees: in a mount namespace, with a /run of its own.
_HOST = """\
set -e
mount -t overlay overlay -o "lowerdir=$1/root/usr:/usr" /usr
mount -t tmpfs tmpfs /run
for name in starting started stopping inactive wasinactive failed hotplugged daemons options exclusive scheduled tmp
do
    mkdir -p "/run/openrc/$name"
done
echo default >/run/openrc/softlevel
mkdir -p "/run/qemu/$2"
touch "$3"
exec sleep infinity
"""


@pytest.fixture
def service(make_guest, tmp_path, start_runner, run_runner):
    """A guest as a service: ``service.write(...)``, then ``service.call("start")``."""
    program("openrc", "openrc-run")
    ready = tmp_path / "ready"
    holder = start_runner(
        *("unshare", "--mount", "--propagation", "private"),
        *("sh", "-c", _HOST, "sh", RUNNERS / "openrc", VM, ready),
    )
    wait_until(lambda: ready.exists() or holder.poll() is not None)
    if holder.poll() is not None:
        pytest.skip(f"no host for OpenRC: {(tmp_path / 'runner.log').read_text()}")
    vm = make_guest(start=False)
    vm.prepare()

    class Service:
        guest = vm
        #: What executes a command on that host.
        prefix = ("nsenter", f"--target={holder.pid}", "--mount")
        script = tmp_path / VM
        pid_file = f"/run/qemu/{VM}/qemu.pid"

        def write(self, argv, *lines):
            self.script.write_text(
                "#!/sbin/openrc-run\n"
                f"command={argv[0]}\ncommand_args={shlex.quote(shlex.join(argv[1:]))}\n"
                + "".join(f"{line}\n" for line in lines or ("command_background=yes", f"pidfile={self.pid_file}"))
            )
            self.script.chmod(0o755)

        def call(self, command, status=0):
            return run_runner(*self.prefix, self.script, "--nocolor", command, status=status)

        def pid(self):
            done = subprocess.run([*self.prefix, "cat", self.pid_file], capture_output=True, text=True, check=True)
            return int(done.stdout)

    service = Service()
    yield service
    if service.script.exists():
        subprocess.run(
            [*service.prefix, service.script, "stop"], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )


@pytest.fixture
def on_host(service, start_module):
    """Run a module there."""

    def run(module, **options):
        return start_module(module, prefix=service.prefix, **options).result()

    return run


def test_saved_and_restored(service, image, on_host):
    service.write(service.guest.argv())
    service.call("start")
    guest = service.guest
    guest.wait_restarted()
    guest.wait_for_counter()
    assert service.pid() == guest.pid
    continuity = Continuity(guest)
    before = guest.pid
    saved = on_host("qemu_save", name=VM, path=str(image))
    assert not saved.get("failed"), saved["msg"]
    assert service.pid() == before, "OpenRC does not look"
    restored = on_host("qemu_restore", name=VM, path=str(image))
    assert not restored.get("failed"), restored["msg"]
    continuity.check()
    assert service.pid() == restored["vm"]["pid"]
    assert "started" in service.call("status")
    assert "already been started" in service.call("start")
    assert find_qemu_pids(VM) == [restored["vm"]["pid"]]
    service.call("stop")
    guest.wait_exit()


def restored_where_these_are_gone(service, image, on_host, *gone):
    """Save and restore a service's guest, between which these files go; the number of its QEMU."""
    service.write(service.guest.argv())
    service.call("start")
    guest = service.guest
    guest.wait_restarted()
    guest.wait_for_counter()
    continuity = Continuity(guest)
    saved = on_host("qemu_save", name=VM, path=str(image))
    assert not saved.get("failed"), saved["msg"]
    subprocess.run([*service.prefix, "rm", "-rf", service.pid_file, *gone], check=True)
    restored = on_host("qemu_restore", name=VM, path=str(image))
    assert not restored.get("failed"), restored["msg"]
    continuity.check()
    return restored["vm"]["pid"]


def test_zapped_where_the_pid_file_is_gone(service, image, on_host):
    """OpenRC takes the VM for stopped, and that runs on."""
    pid = restored_where_these_are_gone(service, image, on_host)
    assert "status: started" in service.call("status")
    service.call("zap")
    assert "status: stopped" in service.call("status", status=3)
    service.guest.wait_for_counter(service.guest.counters()[-1])
    assert find_qemu_pids(VM) == [pid]


def test_all_that_openrc_knew_is_gone(service, image, on_host):
    """As after a reboot: it has the restored VM for stopped by itself, and stops nothing."""
    known = [f"/run/openrc/{place}/{VM}" for place in ("started", "options", "daemons")]
    pid = restored_where_these_are_gone(service, image, on_host, *known)
    assert "status: stopped" in service.call("status", status=3)
    assert "already stopped" in service.call("stop")
    service.guest.wait_for_counter(service.guest.counters()[-1])
    assert find_qemu_pids(VM) == [pid]


def test_without_a_monitor_it_is_said_where_one_goes(service, image, on_host, end_later):
    argv = [*service.guest.argv()[:3], "-machine", "pc", "-display", "none", *words_of(service.guest, monitor=False)]
    service.write(argv)
    service.call("start")
    end_later(service.pid())
    result = on_host("qemu_save", name=VM, path=str(image))
    option = f"-qmp unix:/run/{VM}.qmp,server=on,wait=off"
    assert f"Add {option} to command_args in /etc/conf.d/{VM} or /etc/init.d/{VM}" in result["cure"], result["msg"]


def test_monitor_of_qemu_openrc(service, image, on_host, end_later):
    """The script that Alpine and Gentoo have: a human monitor at a place of its own."""
    monitor = ["-monitor", f"unix:/run/qemu/{VM}/monitor.sock,server,nowait"]
    argv = [*service.guest.argv()[:3], "-machine", "pc", *monitor, *words_of(service.guest, monitor=False)]
    service.write([*argv, "-display", "none"])
    service.call("start")
    end_later(service.pid())
    result = on_host("qemu_save", name=VM, path=str(image))
    assert f'Add extra_args="-qmp unix:/run/{VM}.qmp,server=on,wait=off" to /etc/conf.d/qemu.{VM}' in result["cure"]


def test_supervise_daemon(service, image, on_host):
    service.write(service.guest.argv(), "supervisor=supervise-daemon")
    service.call("start")
    service.guest.wait_restarted()
    result = on_host("qemu_save", name=VM, path=str(image))
    assert result["error"] == "NotRestorableError", result["msg"]
    assert "starts again what has ended" in result["msg"]
    assert not image.exists()
    assert service.guest.alive()
