# What people and CI type. "make test" on a fresh Debian machine with Go
# installs by itself whatever else it needs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:

GO ?= go
# The version comes from git by the linker flag below. Go's own stamping fails
# where the tree belongs to another user, as it often does in a container.
export GOFLAGS := -buildvcs=false $(filter-out -buildvcs=%,$(GOFLAGS))
VERSION := $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)

# Logs are read as files.
export NO_COLOR := 1

# How long "make fuzz" spends on each target.
FUZZTIME ?= 30s

# How often "make join" begins to watch each camera.
JOINS ?= 10

# How long "make loss" watches each row, and "make soak" all of it.
LOSSTIME ?= 30s
SOAKTIME ?= 30m

# Where node.sh puts a Node, if the machine has none that fits.
export PATH := $(CURDIR)/bin/node/node_modules/.bin:$(PATH)

TOOLS := internal/tools
WEB := signaling/web
BUF := $(TOOLS)/node_modules/.bin/buf
LINTER := bin/golangci-lint

.PHONY: help
help: ## Print this
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20

# --- for users

.PHONY: run
run: build ## Run everything with two simulated cameras, or those of CAMERA_URL="rtsp://… rtsp://…"
	@$(TOOLS)/run.sh bin/fanlight

.PHONY: build
build: ## Build bin/fanlight; needs nothing but Go
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/fanlight ./cmd/fanlight

# --- for developers

.PHONY: test
test: ## Everything that CI checks
	@$(TOOLS)/test.sh

.PHONY: unit
unit: ## Go's unit and integration tests, with the race detector
	$(GO) test -race -count=1 -timeout 10m ./...

.PHONY: e2e
e2e: ## End-to-end tests with cameras, browsers and clients by others; E2E=TestUp runs one
	$(GO) test -tags e2e -count=1 -timeout 20m $(if $(E2E),-v -run '^$(E2E)$$') ./e2e

.PHONY: compatibility
compatibility: ## Play real cameras in real clients, and write docs/compatibility.md
	$(GO) test -tags e2e -count=1 -timeout 10m -run '^TestCompatibility$$' ./e2e -update

.PHONY: generate
generate: npm-tools ## Generate Go from proto/
	$(BUF) generate
	gofmt -l proto | (! grep .)

.PHONY: web
web: npm-web ## Build the player and the pages into signaling/web/dist
	cd $(WEB) && npm run build

.PHONY: web-test web-test-only
web-test: npm-web ## Lint and unit tests of the player and the pages
	@$(MAKE) --no-print-directory web-test-only
web-test-only:
	cd $(WEB) && npm run lint && npm test

.PHONY: lint lint-only
lint: npm-tools linter ## Lint Go and proto/
	@$(MAKE) --no-print-directory lint-only
lint-only:
	$(LINTER) config verify
	@# With the race detector's packages, which the tests need anyway.
	GOFLAGS='$(GOFLAGS) -race' $(LINTER) run --allow-serial-runners
	$(BUF) lint

.PHONY: fmt
fmt: npm-tools npm-web linter ## Format Go, proto/ and the web sources
	$(LINTER) fmt
	$(BUF) format -w
	cd $(WEB) && npm run format

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (30s)
	@$(TOOLS)/fuzz.sh $(FUZZTIME)

.PHONY: loss
loss: ## What Chromium makes of networks that lose and delay packets: a table, LOSSTIME (30s) a row; as root
	E2E_LOSS=$(LOSSTIME) $(GO) test -tags e2e -count=1 -timeout 1h -v -run '^TestLossTable$$' ./e2e

.PHONY: join
join: ## How soon Chromium shows a picture after a click: a table, JOINS (10) clicks a row
	E2E_JOINS=$(JOINS) $(GO) test -tags e2e -count=1 -timeout 1h -v -run '^TestJoin$$' ./e2e

.PHONY: soak
soak: build ## Whether anything grows in SOAKTIME (30m) of joins, leaves, lost cameras and switches
	bin/fanlight bench soak --duration $(SOAKTIME)

.PHONY: nightly
nightly: ## What takes too long for "make test": each fuzz target for 60 s, loss, joins, soak
	@$(TOOLS)/nightly.sh

.PHONY: bench
bench: ## Run every benchmark
	$(GO) test -run '^$$' -bench . -benchmem ./...

.PHONY: benchstat
benchstat: ## Compare the benchmarks of the packet path with those of BASE (HEAD~1), by benchstat
	@$(TOOLS)/benchstat.sh $(BASE)

.PHONY: deploy-test
deploy-test: ## Check deploy/: the chart, the composition, the Dockerfile, the units
	cd $(TOOLS)/deploy && $(GO) test -count=1 -timeout 10m ./...

.PHONY: image-test
image-test: ## Build the container image and run it, with buildah and podman, as root
	$(TOOLS)/deploy/image.sh

.PHONY: clean
clean: ## Remove what the targets above made, but for the installed packages
	rm -rf bin e2e/artifacts $(WEB)/node_modules $(TOOLS)/node_modules

# --- what the others need

.PHONY: deps
deps: ## Install what the tests need: Debian packages, modules, linters
	@$(MAKE) --no-print-directory -j4 --output-sync=target apt modules npm-tools npm-web linter

.PHONY: apt
apt:
	@$(TOOLS)/apt.sh

.PHONY: modules
modules:
	$(GO) mod download
	cd $(TOOLS)/deploy && $(GO) mod download

.PHONY: node
node:
	@$(TOOLS)/node.sh

# npm ci begins by removing node_modules, so that nothing is there but what the
# lock file says.
.PHONY: npm-tools
npm-tools: node
	cd $(TOOLS) && npm ci --no-audit --no-fund --loglevel=error

.PHONY: npm-web
npm-web: node
	cd $(WEB) && npm ci --no-audit --no-fund --loglevel=error

# Built from the module that pins it; one that is installed on the machine would
# find other things than CI's.
.PHONY: linter
linter:
	@mkdir -p bin
	cd $(TOOLS) && CGO_ENABLED=0 $(GO) build -o ../../$(LINTER) github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: drift
drift: ## Check that what is generated is what would be generated
	@$(TOOLS)/drift.sh
