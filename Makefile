# `make` shows what there is to make. Needs Debian 12 or 13.

# Debian's own tools, Python before all, whatever else the caller's PATH puts first.
export PATH := /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Nothing of root's among the sources when make runs as root.
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

# Debian packages that this machine needs: to build, and to run the tests that need no lab.
BUILD_NEEDS := build-essential debhelper dh-python pybuild-plugin-pyproject python3 python3-click \
  python3-setuptools
TEST_NEEDS := dbus-daemon dnsmasq-base dnsmasq-utils e2fsprogs genisoimage grub-common grub-pc-bin iproute2 \
  nftables openssh-client python3-gi python3-jinja2 python3-pydbus python3-venv python3-yaml qemu-system-x86 qemu-utils systemd \
  util-linux

# Root that works in another's clone hands back what it made there; the lab's folder stays root's.
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
help: ## show this
	@echo 'sudo make demo    a VM on a Debian host, from nothing'
	@echo 'sudo make test    all tests'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: lab-setup
-include tests/lab/lab.mk

# Setting this machine up

.PHONY: setup-machine
setup-machine: setup-build lab-setup ## install what building and testing need (root; only what is missing)
	@$(call install,$(TEST_NEEDS))

.PHONY: setup-build
setup-build:
	@$(call install,$(BUILD_NEEDS))

# The package

.PHONY: deb
deb: $(DEB) ## build the package, build/qsysd_*_all.deb

# The names of the files, newer than the package when one has come or gone.
build/packaged: FORCE
	@mkdir -p build
	@printf '%s\n' $(PACKAGED) | cmp --quiet - $@ || printf '%s\n' $(PACKAGED) >$@
.PHONY: FORCE

# Built in a copy: dpkg-buildpackage writes beside its source folder and into it.
$(DEB): $(PACKAGED) build/packaged | setup-build
	@echo 'building $@'
	@rm -rf build/package && mkdir -p build/package/source
	@cp -a --parents $(PACKAGED) build/package/source/
	@cd build/package/source && dpkg-buildpackage --build=binary --no-sign >../log 2>&1 </dev/null || \
	  { tail -n 30 ../log >&2; echo 'the whole log: build/package/log' >&2; exit 1; }
	@find build -maxdepth 1 -name 'qsysd_*_all.deb' -not -path '$@' -delete
	@mv build/package/qsysd_$(VERSION)_all.deb $@
	@$(give_back)

.PHONY: install
install: deb ## build the package and install it on this machine (root)
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --reinstall ./$(DEB)

# Tests

$(VENV)/ready: tests/requirements.txt
	@$(call install,python3-venv)
	@echo 'making $(VENV)'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv --system-site-packages $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-input --requirement $<
	@touch $@
	@$(give_back)

.PHONY: check
check: lint types ## lint, types, unit and golden tests (no root, no lab)
	@$(VENV)/bin/pytest --quiet $(wildcard tests/unit tests/golden)
	@$(give_back)

.PHONY: lint
lint: $(VENV)/ready
	@$(VENV)/bin/ruff check --quiet
	@$(VENV)/bin/ruff format --check --quiet || { echo 'make format makes it right' >&2; exit 1; }
	@echo 'lint: no complaints'

.PHONY: types
types: $(VENV)/ready
	@$(VENV)/bin/mypy

.PHONY: format
format: $(VENV)/ready ## put the Python code in its form
	@$(VENV)/bin/ruff check --fix --quiet
	@$(VENV)/bin/ruff format

# What hosts are made from is built meanwhile: that takes minutes where the cache has none.
.PHONY: test
test: setup-machine ## all tests, those in the lab included (root)
	@[ $$(id -u) = 0 ] || { echo 'the lab needs root: sudo make test' >&2; exit 1; }
	@$(MAKE) --no-print-directory --jobs=2 lab-build test-without-lab
	@$(MAKE) --no-print-directory test-in-lab

.PHONY: test-without-lab
test-without-lab: lint types deb
	@$(VENV)/bin/pytest --quiet --numprocesses=auto tests/unit tests/golden tests/component || \
	  { status=$$?; $(give_back); exit $$status; }
	@$(give_back)

# Each process has hosts of its own, and takes one file of tests after the other, the longest first.
.PHONY: test-in-lab
test-in-lab: $(VENV)/ready deb
	@$(VENV)/bin/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder \
	  --durations=10 tests/integration || { status=$$?; $(give_back); exit $$status; }
	@$(give_back)

# Trying it

.PHONY: demo
demo: setup-machine deb ## a host, an image, a VM, a reboot of the host: see it work (root)
	@$(PYTHON) -B tests/demo/demo.py $(DEB)

.PHONY: bench
bench: setup-machine deb ## how long things take: a table, and build/bench.json (root)
	@$(PYTHON) -B tests/bench/bench.py $(DEB)

.PHONY: clean
clean: ## remove what was built; the lab's caches stay
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 -not -name lab -exec rm -rf {} +; fi

.PHONY: distclean
distclean: ## remove everything that is not a source, the lab and its hosts included
	@if [ -d build/lab ]; then tests/lab/lab down --all; fi
	@rm -rf build
