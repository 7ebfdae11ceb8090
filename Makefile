# SPDX-License-Identifier: Apache-2.0
# `make run` and `make test` do all set-up themselves; the others build on the same set-up.
PYTHON := .venv/bin/python
# Some environments limit what pytest may take over; the suite is split so that each half has its own budget.
PYTEST := $(PYTHON) -m pytest

.PHONY: help setup run test test-unprivileged test-root lint format bench bench-peers clean wheel

help:
	@echo "make run              a real agent on examples/quickstart: ask a ClusterIP, see backends answer"
	@echo "make run ONESHOT=1    the same, then undo all and exit"
	@echo "make test             all tests (as root: also those with real BPF programs and packets)"
	@echo "make lint             ruff, mypy --strict, import contracts"
	@echo "make bench            benchmarks that need nothing else; make bench-peers: beside a peer"

setup:
	@install/setup.sh

run: setup
	@$(PYTHON) -m cilia quickstart $(if $(ONESHOT),--oneshot)

test: setup
	@$(PYTHON) -m cilia.testing $(ARGS)

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache

format: setup
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

bench: setup
	@$(PYTHON) -m tests.benchmarks

bench-peers: setup
	@$(PYTHON) -m tests.benchmarks --peers

wheel: setup
	@$(PYTHON) -m build --wheel --no-isolation

clean:
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache bpf/_libbpf.c bpf/*.so bpf/objects
