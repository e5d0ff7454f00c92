# The lab's part of the Makefile, which includes it: what it needs of the machine, and how it is removed.

LAB_PACKAGES := debian-archive-keyring e2fsprogs iproute2 mmdebstrap nftables procps python3 \
	systemd-container util-linux

.PHONY: lab-setup lab-clean

lab-setup: ## install what the lab needs of this machine (root; only what is missing)
	@$(call install,$(LAB_PACKAGES))

lab-clean: ## remove the lab's hosts, its network and its cache (root)
	tests/lab/lab down --all
	rm -rf "$${QSYSD_LAB_DIR:-build/lab}"
