# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The pictures of the documentation: what a terminal shows of the demo, and a report's page, both of real runs.

    make pictures

Into docs/pictures: demo.svg by rich, report.png by a headless Chromium.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURES = REPOSITORY / "docs" / "pictures"
WIDTH = 104  # characters
sys.path.insert(0, str(REPOSITORY / "tests"))

from support import CounterGuest  # noqa: E402


def run_in_terminal(command: list[str]) -> str:
    """What a command writes to a terminal of that width."""
    said = []

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        said.append(data)
        return data

    os.environ.update(COLUMNS=str(WIDTH), TERM="xterm-256color")
    os.environ.pop("NO_COLOR", None)
    status = pty.spawn(command, read, lambda _descriptor: b"")
    text = b"".join(said).decode(errors="replace")
    if status:
        sys.exit(text)
    return text.replace("\r\n", "\n")


def draw_demo() -> None:
    """The demo's lines with the numbers of this run, and without those of no interest."""
    text = run_in_terminal([str(REPOSITORY / "scripts" / "demo")])
    text = re.sub(r"^setup: .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"demo\d+", "web1", text)
    text = re.sub(r"/var/tmp/vmops-demo-\w+/", "/srv/", text)
    tasks = text.split("\nTASK ")
    # Those that only say ok are of no use to look at.
    telling = [task for task in tasks[1:] if len(task.strip().splitlines()) > 2 or "changed" in task]
    text = "\nTASK ".join(tasks[:1] + telling)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print("[bold green]$[/] make demo")
    console.print(Text.from_ansi(text.strip()))
    svg = console.export_svg(title="vmops.qemu", theme=MONOKAI)
    # The font would come from somebody else's server.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code", "DejaVu Sans Mono")
    (PICTURES / "demo.svg").write_text(svg)


def maintain(place: Path) -> Path:
    """The report of a maintenance of three hosts, which this machine plays, with two VMs each."""
    names = {f"hv{host}": [f"{kind}{host}" for kind in ("web", "db")] for host in range(1, 4)}
    hosts = {
        host: {
            "managed_save_vms": [f"{name}-{os.getpid()}" for name in vms],
            "vmops_qemu_save_dir": str(place / host),
        }
        for host, vms in names.items()
    }
    common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = place / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": common}}))
    guests = [
        CounterGuest(place / name, name, memory_mib=64, block_mib=16)
        for host in hosts.values()
        for name in host["managed_save_vms"]
    ]
    variables = {
        "host_maintenance_hosts": "all",
        "host_maintenance_serial": "100%",
        "host_maintenance_reboot": False,
        "host_maintenance_unsaved": "ignore",
        "host_maintenance_report_dir": str(place / "reports"),
    }
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "build" / "collections")}
    command = ["ansible-playbook", "-i", str(inventory), "vmops.qemu.host_maintenance", "-e", json.dumps(variables)]
    try:
        for guest in guests:
            guest.start()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    finally:
        for guest in guests:
            guest.adopt_restarted()
            guest.close()
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return place / "reports" / "host-maintenance.html"


def draw_report(browser: str) -> None:
    """The page as the browser shows it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        page = maintain(Path(directory))
        text = page.read_text().replace(f"-{os.getpid()}", "")
        page.write_text(text.replace(directory, "/var/lib/vmops/save"))
        picture = Path(directory, "report.png")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--window-size=1100,900", f"--user-data-dir={directory}/profile", f"--screenshot={picture}"]
        subprocess.run([*command, page.as_uri()], check=True, capture_output=True)
        shutil.copyfile(picture, PICTURES / "report.png")


def main() -> None:
    """Draw both."""
    PICTURES.mkdir(exist_ok=True)
    draw_demo()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("There is no Chromium for the report's picture: apt-get install chromium")
    draw_report(browser)


if __name__ == "__main__":
    main()
