# What can be done here. `make` alone lists it; the work of the longer ones is in scripts/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Said in `make help`, below.
SERVER ?=
PORT ?= 6379
ENGINES ?=
KEEP ?=
SECONDS ?= 60
SEED ?=
ROUND ?=
ONLY ?=
ROUNDS ?=
DOCS ?=
PREFIX ?= /usr
DESTDIR ?=
MODULEDIR ?= $(PREFIX)/lib/redis/modules
DEMO_PORT ?=
HOST ?=
export SERVER PORT KEEP ONLY ROUNDS DOCS DEMO_PORT HOST

# rustup does not put cargo on the PATH of shells that were open before it.
CARGO ?= $(shell type -P cargo || echo "$${CARGO_HOME:-$$HOME/.cargo}/bin/cargo")

# cargo takes a relative CARGO_TARGET_DIR from where it stands; everybody gets the absolute one.
ifdef CARGO_TARGET_DIR
override CARGO_TARGET_DIR := $(shell realpath -m -- "$(CARGO_TARGET_DIR)")
export CARGO_TARGET_DIR
TARGET := $(CARGO_TARGET_DIR)
else
TARGET := $(CURDIR)/target
endif
MODULE := $(TARGET)/release/presence.so
export PRESENCE_MODULE := $(MODULE)
export PRESENCE_GATEWAY := $(TARGET)/gateway/presence-gateway

# One cargo at a time: they would only wait for each other's locks.
.NOTPARALLEL:

.PHONY: help
help: ## list what can be done (what `make` alone does)
	@echo 'redis-presence: presence for Redis and Valkey, as a module.'
	@echo
	@echo 'usage: make TARGET [VARIABLE=value ...]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'variables:'
	@echo '  SERVER=x       for run, test, torture: a redis-server or valkey-server, by path or by name on PATH'
	@echo '                 (default: redis-server, or valkey-server where there is no other)'
	@echo '  PORT=n         for run: the port (default: 6379)'
	@echo '  DEMO_PORT=n    for demo: the page'"'"'s port (default: 8080, or the next free one)'
	@echo '  HOST=address   for demo: where the page is to be had (default: 127.0.0.1; 0.0.0.0: everywhere)'
	@echo '  KEEP=1         for run: go on with the data of the last run on that port (default: start empty)'
	@echo '  SECONDS=n      for torture: how long (default: 60; hours are fine)'
	@echo '  SEED=n         for torture: the plan of a run that failed, which printed it; ROUND=n: from that round on'
	@echo '  ENGINES="…"    for engines and test-engines: which of redis-7.0 redis-8.0 valkey-8 valkey-9'
	@echo '                 (default: all)'
	@echo '  ONLY=a,b       for bench: some parts of it (a wrong name lists them); ROUNDS=n: how many rounds;'
	@echo '                 DOCS=1 writes docs/benchmarks.md and .svg also then, or from bench-quick'
	@echo '  PREFIX=dir     for install: where servers live (default: /usr); DESTDIR=dir goes in front;'
	@echo '  MODULEDIR=dir  the folder itself (default: PREFIX/lib/redis/modules)'
	@echo
	@echo 'The module is built as target/release/presence.so.'

.PHONY: setup
setup: ## install what is missing: a server, libclang, a C compiler (Debian, Ubuntu; else say what)
	@scripts/setup

# What building needs, without a server.
.PHONY: setup-build
setup-build:
	@scripts/setup build

# cargo links libpresence.so in place. A server that has the old file mapped would crash if it were
# written over, so the product is a copy that arrives by a rename.
.PHONY: build
build: setup-build ## build the module, optimised: target/release/presence.so
	@[[ -e "$(MODULE)" ]] || \
	    echo 'build: the first build takes one to two minutes on two cores, and downloads 7 MB of crates'
	@echo 'build: cargo build --release'
	@"$(CARGO)" build --locked --release
	@cp -- "$(TARGET)/release/libpresence.so" "$(MODULE).new"
	@mv -f -- "$(MODULE).new" "$(MODULE)"
	@echo 'build: $(MODULE)'

# Before a minute of building, not after it.
.PHONY: check-port
check-port:
	@scripts/run check

.PHONY: run
run: check-port setup build ## set up, build, start SERVER with the module on PORT in the foreground
	@exec scripts/run

.PHONY: test
test: setup build ## set up, build, run all tests: the core's, and the whole against SERVER (seven minutes)
	@scripts/examples-setup
	@server=$$(scripts/server); PRESENCE_SERVER=$$server CARGO="$(CARGO)" scripts/test

.PHONY: examples
examples: ## fetch what the programs in examples/ need (examples/README.md says how to run them)
	@scripts/examples-setup
	@echo 'examples: ready; examples/README.md says how to run them'

.PHONY: torture
torture: setup build ## random clients and faults against SERVER for SECONDS, and a checker of all that was heard
	@server=$$(scripts/server); echo "torture: builds the tests, then $(SECONDS) s on $$server"; \
	PRESENCE_SERVER=$$server PRESENCE_TORTURE_SECONDS=$(SECONDS) PRESENCE_SEED=$(SEED) PRESENCE_TORTURE_ROUND=$(ROUND) \
	    "$(CARGO)" test --locked --test torture -- --nocapture

.PHONY: unit
unit: ## run the tests of core/ alone, without a server: a minute with the build, then seconds
	@echo 'unit: cargo test -p presence-core'
	@"$(CARGO)" test --locked -p presence-core

.PHONY: command-pages
command-pages: setup build ## write the heads of docs/commands/ from the server, and correct the replies of examples in docs/
	@server=$$(scripts/server); PRESENCE_SERVER=$$server "$(CARGO)" test --locked --test integration -- \
	    --ignored --nocapture manual_commands::write_the_command_pages
	@git diff --stat -- docs

.PHONY: lint
lint: setup-build ## check the Rust version, formatting, clippy, imports, and scripts (with shellcheck where it is)
	@version=$$(scripts/rust-version); echo "lint: $$version"
	@if "$(CARGO)" fmt --version >/dev/null 2>&1; then \
	    echo 'lint: cargo fmt --all --check'; "$(CARGO)" fmt --all --check; \
	else echo 'lint: formatting not checked, rustfmt is missing (rustup component add rustfmt)'; fi
	@if "$(CARGO)" clippy --version >/dev/null 2>&1; then \
	    echo 'lint: cargo clippy'; "$(CARGO)" clippy --locked --workspace --all-targets -- -D warnings; \
	else echo 'lint: clippy not run, it is missing (rustup component add clippy)'; fi
	@echo 'lint: imports run one way'; scripts/check-layers
	@echo 'lint: scripts'; scripts/check-scripts

.PHONY: doc
doc: setup-build ## write the code's documentation, without a warning: target/doc/presence/index.html
	@echo 'doc: cargo doc'
	@RUSTDOCFLAGS='-D warnings' "$(CARGO)" doc --locked -p presence-core --no-deps
	@RUSTDOCFLAGS='-D warnings' "$(CARGO)" doc --locked --no-deps --document-private-items
	@echo 'doc: $(TARGET)/doc/presence/index.html'

# ---- the demo: gateway/, which none of the above builds ----

.PHONY: gateway
gateway: setup-build ## build the WebSocket gateway: target/gateway/presence-gateway
	@[[ -e "$(PRESENCE_GATEWAY)" ]] || \
	    echo 'gateway: the first build takes about a minute on two cores, and downloads 7 MB of crates'
	@echo 'gateway: cargo build -p presence-gateway'
	@"$(CARGO)" build --locked --profile gateway -p presence-gateway

.PHONY: check-demo-port
check-demo-port:
	@scripts/demo check

.PHONY: demo
demo: check-demo-port setup build gateway ## set up, build, start a server, the gateway and a page to see presence on
	@exec scripts/demo

.PHONY: check-open-files
check-open-files:
	@scripts/test-demo check

.PHONY: test-demo
test-demo: check-open-files setup build ## test the gateway and, in a browser, the page (installs chromium where it may)
	@scripts/demo-setup
	@[[ -e "$(PRESENCE_GATEWAY)" ]] || \
	    echo 'test-demo: the first build takes about two minutes on two cores, and downloads 10 MB of crates'
	@server=$$(scripts/server); echo "test-demo: the gateway's tests on $$server"; \
	PRESENCE_SERVER=$$server CARGO="$(CARGO)" scripts/test-demo

.PHONY: screenshot
screenshot: setup build ## make docs/demo.png, the picture of the demo in README.md
	@PRESENCE_BROWSER=required scripts/demo-setup
	@server=$$(scripts/server); PRESENCE_SERVER=$$server PRESENCE_BROWSER=required \
	"$(CARGO)" test --locked --profile gateway -p presence-gateway --test gateway -- --ignored screenshot
	@ls -l docs/demo.png

# It only copies, so that `sudo make install` compiles nothing as root. Executable, as servers
# demand of a module; by a rename, as in build.
.PHONY: install
install: ## copy the built module to where servers look: /usr/lib/redis/modules/presence.so
	@[[ -f "$(MODULE)" ]] || { echo 'install: there is no $(MODULE) yet: make build' >&2; exit 1; }
	@install -d -- "$(DESTDIR)$(MODULEDIR)"
	@install -m 755 -- "$(MODULE)" "$(DESTDIR)$(MODULEDIR)/presence.so.new"
	@mv -f -- "$(DESTDIR)$(MODULEDIR)/presence.so.new" "$(DESTDIR)$(MODULEDIR)/presence.so"
	@echo 'install: $(DESTDIR)$(MODULEDIR)/presence.so'
	@echo 'install: in the server'"'"'s configuration: loadmodule $(MODULEDIR)/presence.so'

.PHONY: engines
engines: ## fetch Redis 7.0, 8.0 and Valkey 8, 9 into ./engines, without root
	@scripts/engines $(ENGINES)

.PHONY: test-engines
test-engines: engines build ## run the integration tests on each of the engines
	@CARGO="$(CARGO)" scripts/test-engines $(ENGINES)

.PHONY: deny
deny: ## check licences, sources and known advisories of the dependencies, by cargo-deny
	@"$(CARGO)" deny --version >/dev/null 2>&1 || \
	    { echo 'deny: cargo-deny is missing: cargo install --locked cargo-deny' >&2; exit 1; }
	@echo 'deny: licences, bans, sources'; "$(CARGO)" deny --locked --workspace check licenses bans sources
	@echo 'deny: advisories (fetches the advisory database)'; "$(CARGO)" deny --locked --workspace check advisories

# ONLY, ROUNDS, DOCS: benches/README.md. A debug build of it would measure itself.
.PHONY: bench-build
bench-build: build
	@echo 'bench: cargo build --release --package presence-bench'
	@"$(CARGO)" build --locked --release --package presence-bench

.PHONY: bench
bench: setup bench-build ## measure everything beside the rivals, half an hour; writes docs/benchmarks.md (ONLY=, ROUNDS=)
	@echo 'bench: takes about half an hour without ONLY=, on an otherwise idle machine'
	@SERVER=$$(scripts/server) DOCS_DIR="$(CURDIR)/docs" "$(TARGET)/release/presence-bench"

.PHONY: bench-quick
bench-quick: setup bench-build ## the same in two minutes, less sharp; prints only (DOCS=1 writes)
	@SERVER=$$(scripts/server) DOCS_DIR="$(CURDIR)/docs" "$(TARGET)/release/presence-bench" --quick

.PHONY: clean
clean: ## remove what was built and what `make run` left (./engines stays)
	@echo 'clean: $(TARGET), $(CURDIR)/run'
	@"$(CARGO)" clean --quiet
	@rm -rf run

# The other folders. make would take their names for files that are up to date, and do nothing.
meant-tests := 'make test' runs the tests
meant-docs := 'make doc' writes the code documentation, docs/ is the manual: README.md has its index
meant-benches := 'make bench' measures everything, 'make bench-quick' in two minutes
meant-src := 'make build' builds the module
FOLDERS := $(filter-out run gateway engines examples, $(patsubst %/,%,$(wildcard */)))
.PHONY: $(FOLDERS)
$(FOLDERS):
	@echo "make: '$@' is a folder and no target; $(or $(meant-$@),'make' lists what can be done)" >&2; exit 2
