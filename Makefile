# Everything that is run by name. `make test` is what CI runs.

.PHONY: test tools lint check soak demo bench help

help:
	@echo 'make test    install what tests need, then run every check and test'
	@echo 'make lint    formatting and clippy alone'
	@echo 'make check   the quick tests: no server, no browser'
	@echo 'make soak    random trouble for SOAK_SECONDS (600), repeated by SOAK_SEED'
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

bench:
	cargo bench --locked

SOAK_SECONDS ?= 600
SOAK_SEED ?= $(shell date +%s)

# The seed is told: SOAK_SEED=… repeats what happened to whom, in its order.
soak: tools
	CALLVAULT_TEST_SEED=$(SOAK_SEED) CALLVAULT_TEST_SOAK_SECONDS=$(SOAK_SECONDS) CALLVAULT_TEST_OUTAGE_SECONDS=120 \
		cargo test --locked --test it -- --test-threads=1 --nocapture soak:: cluster::a_thousand outages::

demo:
	cargo run --release --locked -- demo
