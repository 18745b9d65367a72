# Everything that is run by name. `make test` is what CI runs.

.PHONY: test tools lint check soak demo bench deploy-check image image-check help

help:
	@echo 'make test    install what tests need, then run every check and test'
	@echo 'make lint    formatting and clippy alone'
	@echo 'make check   the quick tests: no server, no browser'
	@echo 'make soak    random trouble for SOAK_SECONDS (600), repeated by SOAK_SEED'
	@echo 'make deploy-check  what is in deploy/, by the tools that read it (part of make test)'
	@echo 'make image   the container image, with docker'
	@echo 'make image-check   the image built and run without a container engine, as root;'
	@echo '                   with TWICE=1 built twice, and compared'
	@echo 'make bench   the benchmarks, as ratios against peers'
	@echo 'make demo    a recording from callback to a link that plays'

test: tools lint
	cargo build --release --locked
	cargo test --locked --tests
	@echo "The S3 store of this run was $$(cat target/test-tools/store)."

tools:
	tests/install-tools.sh

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

check:
	cargo test --locked --lib --test architecture

# BENCH names some: BENCH='p1 p6'.
bench:
	tests/install-tools.sh bench
	cargo bench --locked --bench micro
	cargo bench --locked --bench side_by_side -- $(BENCH)

# Part of `make test`: alone, when only deploy/ was changed.
deploy-check: tools
	cargo test --locked --test deploy
	cargo test --locked --test it -- topology::

image:
	docker build -f deploy/Dockerfile -t callvault .

# A whole release build in a chroot: too slow for `make test`.
image-check:
	tests/install-tools.sh image
	TWICE=$(TWICE) tests/deploy/image.sh

SOAK_SECONDS ?= 600
SOAK_SEED ?= $(shell date +%s)

# The seed is told: SOAK_SEED=… repeats what happened to whom, in its order.
soak: tools
	CALLVAULT_TEST_SEED=$(SOAK_SEED) CALLVAULT_TEST_SOAK_SECONDS=$(SOAK_SECONDS) CALLVAULT_TEST_OUTAGE_SECONDS=120 \
		cargo test --locked --test it -- --test-threads=1 --nocapture soak:: cluster::a_thousand outages::

demo:
	cargo run --release --locked -- demo
