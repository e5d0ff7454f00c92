# Targets of the lab, included by the Makefile.

LAB_PACKAGES := debian-archive-keyring e2fsprogs iproute2 mmdebstrap nftables procps python3 \
	systemd-container util-linux

.PHONY: lab-setup lab-build lab-clean

lab-setup: ## install the packages that the lab requires (root)
	@$(call install,$(LAB_PACKAGES))

lab-build: lab-setup ## build the root file systems of lab hosts, if not in the cache (root)
	@tests/lab/lab build

lab-clean: ## remove the lab's hosts, its network and its cache (root)
	tests/lab/lab down --all
	rm -rf "$${QSYSD_LAB_DIR:-build/lab}"
