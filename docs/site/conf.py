# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What Sphinx makes the site of: the guides as they are in the repository, and the plugins' own documentation."""

from __future__ import annotations

project = "vmops.qemu"
copyright = "2026, vmops.qemu contributors"  # noqa: A001 - Sphinx's name
extensions = ["myst_parser", "sphinx_antsibull_ext"]
myst_heading_anchors = 4
# The licence is a file of the repository, Ansible's own pages are elsewhere; of our labels antsibull-docs takes care.
suppress_warnings = ["myst.xref_missing", "ref.ref"]
default_role = "any"
html_theme = "sphinx_ansible_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = "vmops.qemu"
html_show_sphinx = False
html_copy_source = False
