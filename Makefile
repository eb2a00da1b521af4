# Copyright (c) 2026, vmops.qemu contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
# Steps follow one another, and the last one's last line is the result.
.NOTPARALLEL:

ROOT := $(CURDIR)
STAGE := $(ROOT)/build/collections/ansible_collections/vmops/qemu

# The tools of the virtual environment come first, and every tool sees a UTF-8 locale.
export PATH := $(ROOT)/.venv/bin:$(PATH)
export LC_ALL := C.UTF-8
export ANSIBLE_COLLECTIONS_PATH := $(ROOT)/build/collections
export ANSIBLE_FORCE_COLOR := 0
export NO_COLOR := 1
unexport PYTHONPATH VIRTUAL_ENV

# What pytest runs, and how: make unit TESTS=tests/unit/image ARGS='-k header -x'
ARGS ?=
TESTS ?=
# What ansible-test runs: make integration TARGETS=qemu_save
TARGETS ?=

.PHONY: help
help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up -------------------------------------------------------------------------------------------------------

.PHONY: setup setup-test demo
setup: setup-test ## Install all that is needed: packages, QEMU, .venv
setup-test:
	@scripts/setup test

demo: ## Save a running VM and restore it, before your eyes
	@scripts/demo

# What runs without make setup says so, instead of which tool it misses first.
.PHONY: need-setup
need-setup:
	@[ -x .venv/bin/pytest ] || { echo 'The tools are not here yet: run make setup.' >&2; exit 1; }

.PHONY: stage
stage: ## Copy the tree to build/collections, where Ansible's tools want it
	@scripts/stage >/dev/null

# --- all ----------------------------------------------------------------------------------------------------------

.PHONY: test
test: setup-test lint ## Everything; the last line is pytest's result
	@scripts/test $(ARGS)

.PHONY: quick
quick: lint unit ## What to run before a commit: linters and unit tests

# --- linters ------------------------------------------------------------------------------------------------------

.PHONY: lint lint-python lint-types lint-yaml lint-ansible lint-shell lint-docs lint-changelog lint-licenses
lint: need-setup lint-python lint-types lint-yaml lint-shell lint-licenses lint-changelog lint-ansible lint-docs ## All linters

lint-python:
	@echo '== ruff'
	@ruff check --quiet
	@ruff format --quiet --check || { echo 'run: make format'; ruff format --check; }

lint-types: stage
	@echo '== mypy'
	@scripts/lint-types

lint-yaml:
	@echo '== yamllint'
	@yamllint --strict .

lint-ansible: stage
	@echo '== ansible-lint'
	@cd $(STAGE) && ansible-lint --offline -q

lint-shell:
	@echo '== shellcheck'
	@git ls-files -co --exclude-standard -z | xargs -0 awk 'FNR == 1 && /^#!(\/usr\/bin\/env bash|\/bin\/bash|\/bin\/sh)/ {print FILENAME} {nextfile}' | \
		xargs shellcheck --severity=warning

lint-docs: stage
	@echo '== antsibull-docs'
	@cd $(STAGE) && antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=all \
		--disallow-unknown-collection-refs --skip-rstcheck . | sed -E 's|^.*/ansible_collections/vmops/qemu/||'

lint-changelog:
	@echo '== antsibull-changelog'
	@antsibull-changelog lint

lint-licenses:
	@echo '== reuse'
	@reuse lint --quiet || { reuse lint; exit 1; }

.PHONY: format
format: need-setup ## Let ruff write the code as it wants it
	@ruff check --quiet --fix
	@ruff format

# --- ansible-test -------------------------------------------------------------------------------------------------

.PHONY: sanity
sanity: need-setup stage ## ansible-test sanity: make sanity ARGS='--test validate-modules'
	@echo '== ansible-test sanity'
	@python scripts/sanity.py $(ARGS)

.PHONY: integration
integration: need-setup stage ## The integration targets, with a real QEMU: make integration TARGETS=qemu_save
	@echo '== ansible-test integration'
	@scripts/integration $(TARGETS)

# --- pytest -------------------------------------------------------------------------------------------------------

.PHONY: unit functional pytest
unit: need-setup ## pytest tests/unit: make unit TESTS=tests/unit/... ARGS=-x
	@python -m pytest $(or $(TESTS),tests/unit) $(ARGS)

functional: need-setup ## pytest tests/functional: saves and restores of a real QEMU
	@python -m pytest $(or $(TESTS),tests/functional) $(ARGS)

pytest: need-setup ## Unit and functional tests, a short torture, a small corpus, in one run
	@python -m pytest $(ARGS)

.PHONY: test-torture
test-torture: setup-test ## Kill saves and restores at random moments: make test-torture N=1000
	@TORTURE_KILLS=$(or $(N),1000) python -m pytest tests/torture $(ARGS)

.PHONY: test-monitor
test-monitor: setup-test ## Every fault of the monitor at every step of saves and restores: an hour
	@MONITOR_FAULTS=all python -m pytest tests/functional/test_monitor_faults.py $(ARGS)

.PHONY: test-corpus
test-corpus: ## 10 000 mutated images, 400 of them restored: make test-corpus N=1000 RESTORES=40
	@CORPUS_IMAGES=$(or $(N),10000) CORPUS_RESTORES=$(or $(RESTORES),400) \
		python -m pytest $(or $(TESTS),tests/corpus) $(ARGS)

.PHONY: test-controller
test-controller: setup-test ## Kill controllers and connections: make test-controller N=20
	@CONTROLLER_KILLS=$(or $(N),20) python -m pytest tests/functional/test_interrupted_controller.py $(ARGS)

.PHONY: test-security
test-security: ## Hosts that lie to the controller, with ansible-core 2.16 to 2.22: an hour
	@scripts/setup security
	@SECURITY_CORES=all python -m pytest $(or $(TESTS),tests/security) $(ARGS)

.PHONY: test-versions
test-versions: ## The tests of several QEMU versions: 7.2, this host's, 11.1
	@scripts/setup versions
	@python -m pytest $(or $(TESTS),tests/versions) $(ARGS)
	@python scripts/compatibility_table.py >/dev/null

.PHONY: test-matrix
test-matrix: ## Each ansible-core with each Python of a host, then docs/compatibility.md: half an hour
	@scripts/setup matrix
	@rm -rf build/matrix
	@python -m pytest $(or $(TESTS),tests/matrix) $(ARGS)
	@python scripts/matrix_table.py

.PHONY: test-interop
test-interop: ## With a real libvirt, as root, then docs/compatibility.md: make test-interop ARGS='-m smoke'
	@scripts/setup interop
	@python -m pytest $(or $(TESTS),tests/interop) $(ARGS)
	@python scripts/compatibility_table.py

.PHONY: test-machines
test-machines: ## Many VM configurations, saved and restored or refused, then docs/machines.md: make test-machines ARGS='-k disks'
	@scripts/setup machines
	@python -m pytest $(or $(TESTS),tests/machine_configurations) $(ARGS)
	@python scripts/machines_table.py

.PHONY: test-runners
test-runners: ## VMs of quickemu, OpenRC, supervisors and others, by the programs themselves: make test-runners ARGS='-k openrc'
	@scripts/setup runners
	@python -m pytest $(or $(TESTS),tests/runners) $(ARGS)

.PHONY: bench
bench: need-setup stage ## Compare saves and restores, as root: make bench QUICK=1, make bench SIZES=1,4 ROUNDS=5 DOCS=1
	@python tests/bench/run.py $(if $(QUICK),--quick) $(if $(SIZES),--sizes $(SIZES)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(BENCH_DIR),--directory $(BENCH_DIR)) $(if $(DOCS),--docs) $(ARGS)

# --- molecule -----------------------------------------------------------------------------------------------------

# What molecule runs: make molecule SCENARIOS='hosts default' ARGS=--destroy=never
SCENARIOS ?=

.PHONY: molecule
molecule: ## The fleet, on machines of its own, as root: make molecule SCENARIOS=hosts
	@scripts/setup hosts
	@python -m pytest -q tests/tools/test_machines.py
	@scripts/molecule test $(or $(SCENARIOS:%=--scenario-name=%),--all) $(ARGS)

.PHONY: test-units
test-units: ## The tests of systemd units, on a machine of their own, as root
	@scripts/setup hosts
	@python -m pytest tests/hosts/test_units_on_a_machine.py $(ARGS)

.PHONY: test-rootless
test-rootless: ## The tests of VMs without root, on machines of their own: test-rootless ARGS='-k boot'
	@scripts/setup hosts
	@python -m pytest tests/hosts/test_without_root.py $(ARGS)

.PHONY: test-docs
test-docs: ## What README and the first guides say, word for word on machines of their own, as root
	@scripts/setup hosts
	@python -m pytest tests/hosts/test_documentation.py tests/hosts/test_save_dir_in_memory.py $(ARGS)

# --- the artefact -------------------------------------------------------------------------------------------------

.PHONY: build
build: need-setup stage ## Build the collection, install it elsewhere, read its documentation, ask Galaxy's importer
	@echo '== ansible-galaxy collection build'
	@scripts/build

.PHONY: docs
docs: need-setup stage ## The documentation's site, in build/docs/html
	@echo '== antsibull-docs and Sphinx'
	@scripts/docs

.PHONY: pictures
pictures: need-setup stage ## Run the demo and a maintenance, and draw them for the documentation; wants Chromium
	@python scripts/pictures.py

# --- the end ------------------------------------------------------------------------------------------------------

.PHONY: clean clean-all
clean: ## Remove what the tools left
	rm -rf build .ansible .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage tests/output
	find . -name __pycache__ -not -path './.venv/*' -not -path './.cache/*' -prune -exec rm -rf {} +

clean-all: clean ## And what make setup made in this tree
	rm -rf .venv .cache
