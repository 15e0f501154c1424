# The only interface for developers. The work is done by the scripts in pgrx-config/ and tests/.
# PG=18 chooses another PostgreSQL than 15, PG_CONFIG=/path/to/pg_config a server that is there, T=name one test.

.DEFAULT_GOAL := help
.PHONY: help setup all build install uninstall installcheck package deb dist demo psql stop test test-matrix test-core \
	test-regress test-isolation test-cluster test-packages test-drivers fuzz miri bench lint fmt clean

export PG PG_CONFIG T JOBS VERSIONS

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: ## install what is missing for all of this: PostgreSQL, compilers, test programs
	@pgrx-config/setup.sh test

build: ## build the extension (release)
	@pgrx-config/setup.sh build
	@pgrx-config/build.sh build

# What was built by a user is installed by root, who may have no Rust: `pgxn install`, and `make all && sudo make install`.
install: ## build, and install into this machine's PostgreSQL
	@pgrx-config/build.sh is-built || pgrx-config/setup.sh build
	@pgrx-config/build.sh install

uninstall: ## remove what install has put there
	@pgrx-config/build.sh uninstall

package: ## build, and pack the files for another server
	@pgrx-config/setup.sh build
	@pgrx-config/build.sh package

deb: ## build, and make Debian packages
	@pgrx-config/setup.sh deb
	@pgrx-config/deb.sh

dist: ## make the archive for PGXN
	@pgrx-config/dist.sh

# What `pgxn` calls, with PG_CONFIG=…, is `make all`, `make install`, `make installcheck` and `make uninstall`.
all: build
installcheck:
	@tests/run/regress.sh regress

demo: ## start a throw-away cluster and walk through the main job
	@pgrx-config/setup.sh demo
	@pgrx-config/build.sh install
	@tests/demo/demo.sh

psql: ## open psql on the demo's cluster
	@pgrx-config/cluster.sh psql

stop: ## stop the demo's cluster
	@pgrx-config/cluster.sh stop

test: ## everything on PostgreSQL 15, and what differs on 16 to 18 (VERSIONS=15: on that alone)
	@tests/run/all.sh

test-matrix: ## everything on each of PostgreSQL 15 to 18
	@tests/run/all.sh matrix

test-core: ## the crates that need no PostgreSQL
	@tests/run/core.sh

test-regress: setup install ## SQL tests (T=name for one)
	@tests/run/regress.sh regress
	@tests/run/regress.sh preloaded

test-isolation: setup install ## concurrency tests (T=name for one)
	@tests/run/regress.sh isolation

test-cluster: setup install ## restarts, crashes, standbys, dumps (T=name for one)
	@tests/run/cluster.sh

test-packages: ## the Debian packages in a fresh Debian, and the archive for PGXN (as root)
	@tests/run/packages.sh

test-drivers: install ## example applications of frameworks and drivers (T=name for one)
	@pgrx-config/setup.sh drivers
	@tests/run/drivers.sh

fuzz: ## fuzz the parsers (FUZZ_SECONDS=60)
	@tests/run/fuzz.sh

miri: ## the queue of events under miri, if it is installed
	@tests/run/miri.sh

bench: setup install ## measure against the competitors, write the table and the picture
	@bench/run.sh

lint: setup ## rustfmt, clippy, floors, table of errors, cargo-deny, shellcheck
	@tests/run/lint.sh

.PHONY: release
release: ## keep the SQL scripts of this version for ever, in sql/released
	@pgrx-config/build.sh release

fmt: ## format the code
	@cargo fmt --all

clean: ## remove what was built, and the demo's cluster
	@pgrx-config/cluster.sh remove
	@cargo clean
