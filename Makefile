# SPDX-License-Identifier: Apache-2.0
# `make run` and `make test` do all set-up themselves; the others build on the same set-up.
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest

.PHONY: help setup native run test test-bare lint format bench bench-against bench-peers clean soak soak-fuzz soak-ground soak-kills soak-pods soak-restart soak-status \
        test-compiled test-interpreted test-kernels test-loads wheel test-wheel \
        kube-assets test-kube test-node node-up node-down rendered images test-images

help:
	@echo "make run              a real agent on examples/quickstart: ask a ClusterIP, see backends answer"
	@echo "make run ONESHOT=1    the same, then undo all and exit"
	@echo "make test             all tests (as root: also those with real BPF programs and packets)"
	@echo "make test-bare        as root: make run and make test on a bare Debian 12 and 13 (DEBIAN=13: on one)"
	@echo "make test-compiled    the tests of what mypyc compiles, on the compiled modules for certain"
	@echo "make test-interpreted the same on the sources"
	@echo "make test-kernels     as root: the BPF tests on Debian's kernels 6.1 and 6.12, under QEMU; goes on if ended"
	@echo "make test-loads       as root: the programs load on Linux 6.1 with all that may be on; minutes"
	@echo "make kube-assets      the real Kubernetes for the tests, built once into the cache"
	@echo "make test-kube        the tests against a real API server"
	@echo "make test-node        as root: the tests on a cluster of two real nodes"
	@echo "make node-up          as root: such a cluster to try things on; make node-down removes it"
	@echo "make images           container images of agent and operator, by podman or buildah; BASE=debian:12"
	@echo "make test-images      as root: the images, built on a Debian from mmdebstrap, and installed on two nodes"
	@echo "make rendered         what is made from the chart and the options: manifests, docs/configuration.md"
	@echo "make lint             ruff, mypy --strict, import contracts, what is rendered is current"
	@echo "make native           compile the hot Python modules in place (minutes); they are used while they fit"
	@echo "make bench            benchmarks that need nothing else; make bench-peers: beside a peer"
	@echo "make bench-against COMMIT=...   what is slower or bigger than in that commit; ROUNDS=11 ROWS=\"statedb agent.start*\""
	@echo "make wheel            the wheel, in dist/; make test-wheel: install one elsewhere and use it"
	@echo "make soak             churn for MINUTES=10 minutes of tables and, as root, around a real agent: nothing may grow"
	@echo "make soak-fuzz        INPUTS=1000000 hostile inputs: no other object may be harmed"
	@echo "make soak-ground      as root: all that may be done to directories, pins, mounts and devices of an agent"
	@echo "make soak-kills       as root: kill -9 at every point of a start, and what it does to traffic"
	@echo "make soak-pods        as root: KILLS=1000 kills and other causes under streams of pods, OPERATIONS=10000 pods that come and go"
	@echo "make soak-restart     as root: KILLS=1000 kills at random moments under traffic"
	@echo "                      these with BACKGROUND=1: in the background; make soak-status: how far they are"

setup:
	@install/setup.sh

run: setup
	@$(PYTHON) -m cilia quickstart $(if $(ONESHOT),--oneshot)

# What tests of the kernel run beside our own code; only root can install it, and only root needs it.
TEST_COMMANDS := ip:iproute2 tc:iproute2 nsenter:util-linux setpriv:util-linux ethtool:ethtool nft:nftables iptables-nft:iptables

test:
	@CILIA_EXTRA_COMMANDS="$(if $(filter 0,$(shell id -u)),$(TEST_COMMANDS))" install/setup.sh
	@failed=0; \
	echo "tests that need no privilege:"; \
	$(PYTEST) -q -n 2 -m "not root" $(ARGS) || failed=1; \
	if [ "$$(id -u)" = 0 ]; then \
	    echo "tests with real BPF programs, sockets and packets:"; \
	    $(PYTEST) -q -n 2 -m root $(ARGS) || failed=1; \
	else \
	    echo "not run, as this is not root: $$($(PYTEST) -q -m root --collect-only 2>/dev/null | tail -1)"; \
	fi; \
	exit $$failed

# DEBIAN="12 13" says which; each in a root, a network and a cgroup of its own.
DEBIAN := 12 13
SUITE_12 := bookworm
SUITE_13 := trixie

test-bare:
	@failed=0; \
	for suite in $(foreach version,$(DEBIAN),$(SUITE_$(version))); do \
	    install/fresh-root.sh $$suite -- "make run ONESHOT=1" "make test" || failed=1; \
	done; \
	exit $$failed

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache
	@$(PYTHON) -m tests.install.rendered --check

format: setup
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

native:
	@CILIA_BUILD_COMPILED=1 install/setup.sh

# Long runs: one that was ended goes on where it was. BACKGROUND=1 leaves them to themselves.
define LONG
	@if [ -z "$(BACKGROUND)" ]; then exec $(PYTHON) -m $(1); fi; \
	mkdir -p .bench; \
	setsid nohup $(PYTHON) -m $(1) > .bench/$@.log 2>&1 < /dev/null & \
	echo "$@ goes on in the background: make soak-status, .bench/$@.log"
endef

bench: setup
	@$(PYTHON) -m tests.benchmarks

bench-against: setup
	$(call LONG,tests.benchmarks.against $(if $(ROUNDS),--rounds=$(ROUNDS)) $(COMMIT) $(ROWS))

bench-peers: setup
	@$(PYTHON) -m tests.benchmarks --peers

soak: setup
	$(call LONG,tests.soak)

soak-kills: setup
	$(call LONG,tests.soak.kills)

soak-ground: setup
	$(call LONG,tests.soak.ground)

soak-fuzz: setup
	$(call LONG,tests.soak.fuzz $(INPUTS))

soak-pods: setup
	$(call LONG,tests.soak.pods)

soak-restart: setup
	$(call LONG,tests.soak.restart)

soak-status: setup
	@$(PYTHON) -m tests.soak.journal

test-compiled: setup
	@$(PYTHON) -m tests.build_compiled $(ARGS)

test-interpreted: setup
	@$(PYTHON) -m tests.build_compiled --interpreted $(ARGS)

test-kernels:
	@CILIA_EXTRA_COMMANDS="qemu-system-x86_64:qemu-system-x86" install/setup.sh
	@$(PYTHON) -m tests.kernels

test-loads:
	@CILIA_EXTRA_COMMANDS="qemu-system-x86_64:qemu-system-x86" install/setup.sh
	@$(PYTHON) -m tests.kernels linux-image-cloud-amd64 -- tests/bpf/test_loads.py

kube-assets: setup
	@install/kube-assets.sh

test-kube:
	@CILIA_EXTRA_COMMANDS="openssl:openssl" install/setup.sh
	@install/kube-assets.sh kube-apiserver kubectl helm etcd libcni
	@$(PYTEST) -q --timeout=120 tests/kube $(ARGS)

# What a node's network and its control groups are made with.
NODE_COMMANDS := ip:iproute2 nsenter:util-linux nft:nftables openssl:openssl podman:podman runc:runc

test-node:
	@CILIA_EXTRA_COMMANDS="$(NODE_COMMANDS)" install/setup.sh
	@install/kube-assets.sh
	@$(PYTEST) -q --timeout=300 tests/node $(ARGS)

node-up:
	@CILIA_EXTRA_COMMANDS="$(NODE_COMMANDS)" install/setup.sh
	@install/kube-assets.sh
	@$(PYTHON) -m tests.node up

node-down:
	@$(PYTHON) -m tests.node down

wheel: setup
	@$(PYTHON) -m build --wheel --no-isolation

test-wheel: setup
	@$(PYTEST) -q tests/install/wheel.py $(ARGS)

images:
	@install/containers/build.sh

# Built with the machine's network and without a container runtime, as inside of containers, too.
test-images:
	@CILIA_EXTRA_COMMANDS="$(NODE_COMMANDS) mmdebstrap:mmdebstrap buildah:buildah" install/setup.sh
	@install/kube-assets.sh
	@install/containers/local-base.sh localhost/debian:12
	@BASE=localhost/debian:12 ARCHIVES=build/images EXTRA="--network=host --isolation=chroot" install/containers/build.sh
	@ARCHIVES=$(CURDIR)/build/images $(PYTEST) -q --timeout=300 tests/install/images.py tests/node/installed.py tests/node/installed_alone.py $(ARGS)

rendered: setup
	@install/kube-assets.sh helm
	@$(PYTHON) -m tests.install.rendered

clean:
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache bpf/_libbpf.c bpf/*.so bpf/objects cilia/endpoints/cni/bin
