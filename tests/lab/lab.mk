# The lab's part of the Makefile, which includes it: what it needs of the machine, and how it is removed.

LAB_PACKAGES := debian-archive-keyring e2fsprogs iproute2 mmdebstrap nftables procps python3 \
	systemd-container util-linux

.PHONY: lab-setup lab-build lab-clean

lab-setup: ## install what the lab needs of this machine (root; only what is missing)
	@$(call install,$(LAB_PACKAGES))

lab-build: lab-setup ## build what the lab's hosts are made from, where its cache does not have it (root)
	@tests/lab/lab build

lab-clean: ## remove the lab's hosts, its network and its cache (root)
	tests/lab/lab down --all
	rm -rf "$${QSYSD_LAB_DIR:-build/lab}"
