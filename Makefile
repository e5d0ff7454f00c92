# `make` shows what there is to make. Needs Debian 12 or 13.

# Debian's own tools, Python before all, whatever else the caller's PATH puts first.
export PATH := /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON := /usr/bin/python3
VERSION := $(shell sed -n '1s/.*(\(.*\)).*/\1/p' debian/changelog)
DEB := build/qsysd_$(VERSION)_all.deb

# What goes into the package. Folders are among them: one changes when a file in it comes or goes.
PACKAGED := $(shell find qsysd templates units debian -not -name '*.pyc' -not -name __pycache__) \
  docs/qsysd.8 pyproject.toml setup.cfg $(wildcard LICENSE README.md CHANGELOG.md)

.PHONY: help
help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: deb
deb: $(DEB) ## build the package, build/qsysd_*_all.deb

# Built in a copy: dpkg-buildpackage writes beside its source folder and into it.
$(DEB): $(PACKAGED)
	@dpkg-checkbuilddeps || { echo 'missing tools are installed by: sudo make setup-machine' >&2; exit 1; }
	rm -rf build/package && mkdir -p build/package/source
	cp -a --parents $(wildcard $(sort $(filter-out %/,$(PACKAGED)))) build/package/source/
	cd build/package/source && dpkg-buildpackage --build=binary --no-sign >../log 2>&1 || { tail -n 30 ../log >&2; exit 1; }
	rm -f build/qsysd_*_all.deb
	mv build/package/qsysd_$(VERSION)_all.deb $@
	@echo "built $@"
