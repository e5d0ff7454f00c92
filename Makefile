# `make` lists the targets. Requires Debian 12 or 13.

# Use Debian's tools, above all its Python, whatever the caller's PATH contains.
export PATH := /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Do not create __pycache__ directories owned by root among the sources.
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/pycache
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON := /usr/bin/python3
VENV := build/venv
VERSION := $(shell sed -n '1s/.*(\(.*\)).*/\1/p' debian/changelog)
DEB := build/qsysd_$(VERSION)_all.deb

# What goes into the package.
PACKAGED := $(shell find qsysd templates units debian -not -type d -not -path '*/__pycache__/*') \
  $(wildcard docs/* examples/*) pyproject.toml setup.cfg $(wildcard LICENSE README.md CHANGELOG.md)

# Debian packages for building, and for the tests that run without the lab.
BUILD_NEEDS := build-essential debhelper dh-python pybuild-plugin-pyproject python3 python3-click \
  python3-setuptools
TEST_NEEDS := dbus-daemon dnsmasq-base dnsmasq-utils e2fsprogs genisoimage grub-common grub-pc-bin iproute2 \
  nftables openssh-client python3-gi python3-jinja2 python3-pydbus python3-venv python3-yaml qemu-system-x86 qemu-utils systemd \
  util-linux

# After root has worked in the clone of another user: change the owner of what it created there. The lab's
# directory remains root's.
define give_back
if [ ! -O . ]; then \
  find build -mindepth 1 -maxdepth 1 -not -name lab -exec chown -Rh --reference=. {} +; \
  find qsysd tests -name __pycache__ -exec chown -Rh --reference=. {} +; \
  chown --reference=. build; \
fi
endef

# $(call install,PACKAGES): install those that are missing.
define install
missing=$$(for name in $(1); do \
  dpkg-query --show --showformat='$${db:Status-Status}' $$name 2>/dev/null | grep -qx installed || echo $$name; \
done); \
if [ "$$missing" ]; then \
  if [ $$(id -u) != 0 ]; then \
    echo 'missing on this machine:' $$missing >&2; \
    echo 'install them with: sudo make setup-machine' >&2; \
    exit 1; \
  fi; \
  echo 'installing' $$missing; \
  export DEBIAN_FRONTEND=noninteractive; \
  apt-get update --quiet=2; \
  apt-get install --quiet=2 --yes --no-install-recommends $$missing </dev/null | \
    sed --unbuffered '/^(Reading database/d'; \
fi
endef

.PHONY: help
help: ## list the targets
	@echo 'sudo make demo    create a VM on a new Debian host in a container'
	@echo 'sudo make test    run all tests'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: lab-setup
-include tests/lab/lab.mk

# Setting this machine up

.PHONY: setup-machine
setup-machine: setup-build lab-setup ## install the packages for building and testing (root)
	@$(call install,$(TEST_NEEDS))

.PHONY: setup-build
setup-build:
	@$(call install,$(BUILD_NEEDS))

# The package

.PHONY: deb
deb: $(DEB) ## build the package, build/qsysd_*_all.deb

# The list of packaged files, which changes when a file is added or removed.
build/packaged: FORCE
	@mkdir -p build
	@printf '%s\n' $(PACKAGED) | cmp --quiet - $@ || printf '%s\n' $(PACKAGED) >$@
.PHONY: FORCE

# Built in a copy, because dpkg-buildpackage writes into its source directory and beside it.
$(DEB): $(PACKAGED) build/packaged | setup-build
	@echo 'building $@'
	@rm -rf build/package && mkdir -p build/package/source
	@cp -a --parents $(PACKAGED) build/package/source/
	@cd build/package/source && dpkg-buildpackage --build=binary --no-sign >../log 2>&1 </dev/null || \
	  { tail -n 30 ../log >&2; echo 'complete log: build/package/log' >&2; exit 1; }
	@find build -maxdepth 1 -name 'qsysd_*_all.deb' -not -path '$@' -delete
	@mv build/package/qsysd_$(VERSION)_all.deb $@
	@$(give_back)

.PHONY: install
install: deb ## build the package and install it on this machine (root)
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --reinstall ./$(DEB)

# Tests

$(VENV)/ready: tests/requirements.txt
	@$(call install,python3-venv)
	@echo 'creating $(VENV)'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv --system-site-packages $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-input --requirement $<
	@touch $@
	@$(give_back)

.PHONY: check
check: lint types ## run lint, type checks, unit and golden tests (no root, no lab)
	@$(VENV)/bin/pytest --quiet $(wildcard tests/unit tests/golden)
	@$(give_back)

.PHONY: lint
lint: $(VENV)/ready
	@$(VENV)/bin/ruff check --quiet
	@$(VENV)/bin/ruff format --check --quiet || { echo 'to fix it: make format' >&2; exit 1; }
	@echo 'lint: no errors'

.PHONY: types
types: $(VENV)/ready
	@$(VENV)/bin/mypy

.PHONY: docs
docs: ## write the lists of keys in the documentation
	@PYTHONPATH=. $(PYTHON) -B tests/unit/key_lists.py

.PHONY: format
format: $(VENV)/ready ## format the Python code
	@$(VENV)/bin/ruff check --fix --quiet
	@$(VENV)/bin/ruff format

# Builds the root file systems of lab hosts in parallel, which takes minutes without a cache.
.PHONY: test
test: setup-machine ## run all tests, including those in the lab (root)
	@[ $$(id -u) = 0 ] || { echo 'the lab requires root: sudo make test' >&2; exit 1; }
	@$(MAKE) --no-print-directory --jobs=2 lab-build test-without-lab
	@$(MAKE) --no-print-directory test-in-lab

.PHONY: test-without-lab
test-without-lab: lint types deb
	@$(VENV)/bin/pytest --quiet --numprocesses=auto tests/unit tests/golden tests/component || \
	  { status=$$?; $(give_back); exit $$status; }
	@$(give_back)

# Each process uses separate hosts, and runs one test file after another, the longest first.
.PHONY: test-in-lab
test-in-lab: $(VENV)/ready deb
	@$(VENV)/bin/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder \
	  --durations=10 tests/integration || { status=$$?; $(give_back); exit $$status; }
	@$(give_back)

# Demo and benchmark

.PHONY: demo
demo: setup-machine deb ## boot a host in a container, create a VM in it, reboot the host (root)
	@$(PYTHON) -B tests/demo/demo.py $(DEB)

.PHONY: bench
bench: setup-machine deb ## how long things take, as multiples of the floor: a table, build/bench.json (root)
	@$(PYTHON) -B tests/bench/bench.py $(BENCH_OPTIONS) $(DEB)

.PHONY: bench-compare
bench-compare: setup-machine deb ## the same, in turns with libvirt: a table, build/bench-compare.* (root)
	@$(PYTHON) -B tests/bench/bench.py --compare $(BENCH_OPTIONS) $(DEB)

.PHONY: bench-page
bench-page: ## write the last comparison into docs/performance.*
	@$(PYTHON) -B tests/bench/page.py

.PHONY: clean
clean: ## remove what was built, except the lab's cache
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 -not -name lab -exec rm -rf {} +; fi

.PHONY: distclean
distclean: ## remove everything that was built, including the lab and its hosts
	@if [ -d build/lab ]; then tests/lab/lab down --all; fi
	@rm -rf build
