.PHONY: help up down dev test test-storm test-host check fmt lint bench sdl sdk proto
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: ## build and start everything, ending with a capsule that said hello; stays in the foreground
	@scripts/up

down: ## stop what `make up` started
	@scripts/down

dev: ## `make up` that starts again when a source file changes
	@scripts/dev

test: ## packages, build, unit, integration and end-to-end tests on real microVMs
	@scripts/test

test-storm: ## random operations and kills for WRENN_STORM_SECONDS (600), invariants checked throughout
	@scripts/storm

test-host: ## tests on a host of their own, with KVM and device mapper: a virtual machine; TESTS="disk machine" for some
	@scripts/test-host $(TESTS)

check: ## what must be green before a change lands: formatting, lints, licences, tests
	cargo fmt --all --check
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory test

fmt: ## format the code
	cargo fmt --all

lint: ## clippy and the dependency policy
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@scripts/deny

bench: ## measured medians beside their baselines, as a table
	@scripts/bench

sdl: ## write codegen/schema.graphql anew
	cargo run --release --locked -p wrenn-api -- schema > codegen/schema.graphql.new
	mv codegen/schema.graphql.new codegen/schema.graphql

sdk: ## write the TypeScript SDK's code of the schema anew
	cd codegen/typescript && npm run generate

proto: ## write the code of the .proto files anew
	@# Emptied first: what does not compile must not stand in its own way.
	for file in wrenn.envd.v1.rs wrenn.agent.v1.rs; do : > codegen/proto/src/generated/$$file; done
	WRENN_WRITE_GENERATED=1 cargo test --locked -p wrenn-proto --test generated
