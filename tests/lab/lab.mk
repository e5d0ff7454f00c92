# The lab's part of the Makefile: what it needs of the machine, and how it is removed.

LAB_PACKAGES := debian-archive-keyring e2fsprogs iproute2 mmdebstrap nftables procps python3 \
	systemd-container util-linux

.PHONY: lab-setup lab-clean

# What is there already is not asked for, so that a later run is instant and needs no network.
lab-setup:
	@missing=""; for package in $(LAB_PACKAGES); do \
	    dpkg-query -W -f '$${db:Status-Status}\n' "$$package" 2>/dev/null | grep -qx installed \
	        || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
	    echo "lab: installing$$missing"; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    apt-get update -q && apt-get install -q --yes --no-install-recommends $$missing; \
	fi

lab-clean:
	tests/lab/lab down --all
	rm -rf "$${QSYSD_LAB_DIR:-build/lab}"
