# The front door. `make help` lists what it does; README.md says what for.
#
#   OVS_SRC=/path   build against this Open vSwitch source tree instead of the packaged one
#   KEEP=1          `make demo` leaves everything running and says how to look around
#   CASES="a b"     `make check-vm` runs only the cases whose names contain a or b
#   MINUTES=30      how long `make soak` deals blows; SEED=n deals the same again, BLOWS=killed only those so named
#   SECONDS=60      how long `make fuzz` runs each target; TARGET=split_ring runs one

.DEFAULT_GOAL := help
SHELL := /bin/bash
CARGO ?= cargo

OVS_TREE := $(CURDIR)/target/ovs
OVS_TREE_NODPDK := $(CURDIR)/target/ovs-nodpdk
PLUGIN := $(CURDIR)/target/release/libovs_vhost.so
# The same plugin for an Open vSwitch without DPDK, and one whose ports can be made to panic.
PLUGIN_NODPDK := $(CURDIR)/target/nodpdk/release/libovs_vhost.so
PLUGIN_FAULT := $(CURDIR)/target/fault/release/libovs_vhost.so

E2E = $(CARGO) test -q --no-default-features --test e2e --
# Where the guest is in this process, it must not be what is slow.
E2E_FAST = $(CARGO) test -q --release --no-default-features --test e2e --
E2E_ENV = OVS_TREE=$(OVS_TREE) OVS_TREE_NODPDK=$(OVS_TREE_NODPDK) \
	E2E_PLUGIN=$(PLUGIN) E2E_PLUGIN_NODPDK=$(PLUGIN_NODPDK) E2E_FAULT_PLUGIN=$(PLUGIN_FAULT)

.PHONY: help deps cargo build build-all demo check check-core check-plugin check-ovs check-ovs-all check-bench check-tools check-testpmd check-vm soak fuzz tsan miri audit bench bench-pvp bench-control bench-latency fmt lint clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@sed -n '3,7s/^# \{0,1\}//p' $(MAKEFILE_LIST)

cargo:
	@command -v $(CARGO) >/dev/null || { echo "No cargo: install a Rust toolchain (1.85 or newer), see https://rustup.rs" >&2; exit 1; }

build: cargo ## Build the patched Open vSwitch and the plugin; ends with their paths
	@.ci/deps.sh build
	@ovs-patches/build.sh $(OVS_TREE)
	OVS_TREE=$(OVS_TREE) $(CARGO) build --release
	@echo "Open vSwitch: $(OVS_TREE)"
	@echo "plugin:       $(PLUGIN)"

# What only the tests need beside that.
build-all: build
	@ovs-patches/build.sh --without-dpdk $(OVS_TREE_NODPDK)
	OVS_TREE=$(OVS_TREE_NODPDK) $(CARGO) build --release --target-dir target/nodpdk
	OVS_TREE=$(OVS_TREE) $(CARGO) build --release --target-dir target/fault --features fault-injection

demo: build ## Two VMs talk through both port types while vswitchd is killed under them
	@.ci/deps.sh test
	@$(E2E_ENV) $(E2E) demo

check: check-core check-plugin check-bench check-ovs check-vm ## All tests

check-core: cargo ## Tests that need no Open vSwitch, DPDK or clang
	$(CARGO) test --no-default-features --lib --tests -- --skip e2e
	RUSTFLAGS="--cfg loom" $(CARGO) test --no-default-features --target-dir target/loom --lib loom

check-plugin: build-all ## Tests of the plugin file, of the C shim and of the C bindings
	OVS_VHOST_PLUGIN=$(PLUGIN) $(CARGO) test --no-default-features --test plugin_abi
	$(CARGO) test -p dpdk-sys
	tests/shim.sh $(OVS_TREE_NODPDK)

# Tests of the userspace datapath that run in a minute: ports that come and go, and packets that are parsed, changed,
# metered and tracked on their way. The rest is more of the same, or wants kernel modules.
SOME_USERSPACE = -k interface -k mpls -k QoS -k nsh -k zones

check-ovs: build-all ## Open vSwitch's own tests of its loader, its vhost-user ports, its poll threads and its datapath, with and without the plugin
	@.ci/deps.sh test
	$(MAKE) -s -C $(OVS_TREE) check TESTSUITEFLAGS='-k netdev-plugin'
	$(MAKE) -s -C $(OVS_TREE) check-netdev-plugin OVS_NETDEV_PLUGINS=$(PLUGIN)
	$(MAKE) -s -C $(OVS_TREE_NODPDK) check-netdev-plugin OVS_NETDEV_PLUGINS=$(PLUGIN_NODPDK)
	tests/ovs-suite.sh plugin
	tests/ovs-suite.sh stock
	tests/ovs-unchanged.sh pmd
	tests/ovs-unchanged.sh system-userspace $(SOME_USERSPACE)

check-ovs-all: build-all ## Its suites pmd and system-userspace in whole, with and without the plugin
	@.ci/deps.sh test
	tests/ovs-unchanged.sh pmd
	tests/ovs-unchanged.sh system-userspace

check-bench: cargo ## The benches in short: that both sides move every packet, not how fast
	@.ci/deps.sh build
	$(CARGO) bench --profile dev --no-default-features --features stock -- --test

check-tools: build-all ## What os-vif, libvirt, Neutron, sos and the like see, beside the stock ports (a part of check-vm)
	@.ci/deps.sh test
	$(E2E_ENV) $(E2E) tools/

check-testpmd: build-all ## Packet loops with testpmd on every kind of ring, and 100 kills under load (a part of check-vm)
	@.ci/deps.sh test
	$(E2E_ENV) $(E2E) dpdk/loop dpdk/policed dpdk/kill-storm dpdk/memory

check-vm: build-all ## Real guests, real testpmd, restarts, bad input, leaks; a few of them behind the drop-in's filter
	@.ci/deps.sh test
	$(E2E_ENV) $(E2E) $(CASES)
	$(if $(CASES),,$(E2E_ENV) E2E_SECCOMP=1 $(E2E) settings/)

soak: build-all ## Kills, stops, full disks, crowds and the like at random under load, every packet accounted for
	@.ci/deps.sh test
	$(E2E_ENV) E2E_SOAK_MINUTES=$(or $(MINUTES),30) E2E_SOAK_SEED=$(SEED) E2E_SOAK_BLOWS="$(BLOWS)" $(E2E) soak/bad-luck

fuzz: cargo ## Every fuzzer for a while, under AddressSanitizer (nightly toolchain)
	.ci/fuzz.sh $(or $(SECONDS),60) $(TARGET)

tsan: cargo ## The tests of what threads share, under ThreadSanitizer (nightly toolchain)
	.ci/tsan.sh

miri: cargo ## The tests of what touches guest memory, under Miri (nightly toolchain with miri)
	.ci/miri.sh

audit: cargo ## Licenses, sources and known holes of what is depended on (network; cargo-deny, which it installs)
	.ci/audit.sh

bench: cargo ## Our bursts beside those of DPDK's vhost library, in nanoseconds per packet
	@.ci/deps.sh build
	$(CARGO) bench --no-default-features --features stock

bench-pvp: build ## Cycles per packet in a real switch, the plugin against the stock ports
	@.ci/deps.sh test
	$(E2E_ENV) $(E2E_FAST) pvp --json target/bench/pvp.json $(RINGS)

bench-control: build ## Reconnects by the hundred, memory per port, ports that come and go beside running ones
	@.ci/deps.sh test
	$(E2E_ENV) $(E2E) control --json target/bench/control.json $(PORTS)

bench-latency: build ## How long frames are under way through a switch, and how many it takes without losing one
	@.ci/deps.sh test
	$(E2E_ENV) $(E2E_FAST) latency --json target/bench/latency.json $(LATENCY)

fmt: cargo ## Format the sources
	$(CARGO) fmt --all

lint: build ## Every linter, warnings as errors
	@.ci/deps.sh lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets --test e2e --test numbers --no-default-features -- -D warnings
	OVS_TREE=$(OVS_TREE) $(CARGO) clippy --workspace --all-targets --features fault-injection,stock -- -D warnings
	shellcheck .ci/run .ci/*.sh ovs-patches/build.sh tests/*.sh tests/e2e/libvirt-house.sh
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-default-features --no-deps --document-private-items

clean: ## Remove everything that was built
	rm -rf target
