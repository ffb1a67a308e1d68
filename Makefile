# SPDX-License-Identifier: Apache-2.0
# `make` lists the targets. Everything that is made goes to build/.

SHELL       := /bin/bash -o pipefail
.SHELLFLAGS := -euc
export PATH := $(CURDIR)/build/tools:$(PATH):/usr/local/go/bin

# Without a tag to describe, a version that is older than the first release. (Terraform passes 0.0.0 over.) The time in it makes a later build
# the newer one, which is what the provider goes by. Every make below this one has the same.
GIT := git -c safe.directory='*'
ifndef VERSION
COMMIT  := $(shell $(GIT) log -1 --format=%cd.%h --date=format:%Y%m%d%H%M%S 2>/dev/null || echo 0.none)
DIRTY   := $(shell $(GIT) status --porcelain 2>/dev/null | grep -q . && date +.dirty.%Y%m%d%H%M%S)
VERSION := $(or $(shell $(GIT) describe --tags --match 'v[0-9]*' --dirty 2>/dev/null | sed s/^v//),0.1.0-dev.$(COMMIT)$(DIRTY))
endif
export VERSION
# Terraform takes no pre-release from a mirror unless asked for by name.
MIRROR_VERSION := $(firstword $(subst -, ,$(VERSION)))
STATICCHECK_VERSION := v0.8.2

GO_BUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'
# make before 4.4 does not pass on PATH to $(shell …)
PLATFORM  = $(shell PATH='$(PATH)' go env GOOS GOARCH | paste -sd_)
MIRROR   := build/mirror/registry.terraform.io/lockstep-sync/lockstep/$(MIRROR_VERSION)
LABCTL   := build/labctl

.DEFAULT_GOAL := help
.PHONY: help deps build mirror lab demo test test-unit test-lab check clean

help: ## this list
	@printf 'lockstep %s\n\n' '$(VERSION)'
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

deps: ## install what is missing to build, test and demonstrate (as root; otherwise says what)
	@.ci/deps test

build: ## lockstep and the Terraform provider, into build/
	@.ci/deps build
	@mkdir -p build
	GOOS=linux GOARCH=amd64 $(GO_BUILD) -o build/lockstep_linux_amd64 ./cmd/lockstep
	GOOS=linux GOARCH=arm64 $(GO_BUILD) -o build/lockstep_linux_arm64 ./cmd/lockstep
	$(GO_BUILD) -o build/lockstep ./cmd/lockstep
	$(GO_BUILD) -o build/terraform-provider-lockstep ./cmd/terraform-provider-lockstep

# The binaries that the provider uploads to hosts lie beside it, as in its release archive.
mirror: build ## what was built as a Terraform filesystem mirror, with build/terraform.rc to use it
	@rm -rf build/mirror && mkdir -p $(MIRROR)/$(PLATFORM)
	@cp build/lockstep_linux_amd64 build/lockstep_linux_arm64 $(MIRROR)/$(PLATFORM)/
	@cp build/terraform-provider-lockstep $(MIRROR)/$(PLATFORM)/terraform-provider-lockstep_v$(MIRROR_VERSION)
	@printf '%s\n' 'disable_checkpoint = true' 'provider_installation {' '  filesystem_mirror {' \
		'    path    = "$(CURDIR)/build/mirror"' '    include = ["registry.terraform.io/lockstep-sync/*"]' '  }' '}' >build/terraform.rc

$(LABCTL): $(wildcard agent/internal/lab/*.go agent/internal/lab/labctl/*.go)
	@mkdir -p build
	@go build -buildvcs=false -o $@ ./agent/internal/lab/labctl

lab: ## boot two systemd hosts, nfs01 and backup, and keep them until Ctrl-C (root)
	@if [ "$$(id -u)" != 0 ]; then printf '%s\n' 'The lab boots two hosts and needs root:' '    sudo make lab'; exit 1; fi
	@$(MAKE) --no-print-directory deps $(LABCTL)
	@exec $(LABCTL) up

demo: ## the whole story in two minutes: apply, follow, drift, heal, destroy (root)
	@if [ "$$(id -u)" != 0 ]; then \
		printf '%s\n' 'The demo boots two hosts and needs root:' '    sudo make demo' \
			'Without root, the same on one machine, with the replication alone:' '    make build && build/lockstep demo'; exit 1; fi
	@$(MAKE) --no-print-directory deps mirror
	@go build -buildvcs=false -o build/demo ./agent/internal/lab/demo
	@if [ -n "$${SUDO_UID:-}" ]; then chown -R "$$SUDO_UID:$$SUDO_GID" build; fi
	@exec build/demo

test: deps build check-format ## everything that CI runs: build, vet, format, unit tests with -race, lab tests, the collection
	go vet ./...
	go vet -tags integration ./...
	@$(MAKE) --no-print-directory test-unit test-lab
	@if [ "$$(id -u)" = 0 ] && grep -qsx 'VERSION_CODENAME=bookworm' /etc/os-release; then $(MAKE) --no-print-directory check-ansible; \
		else echo 'SKIPPED: make check-ansible, which wants root and the linters of Debian 12: those of another version find other things'; fi

.PHONY: check-format check-generated docs
docs: ## the reference pages in provider/docs (needs terraform and tfplugindocs)
	go test -count=1 -run 'TestDocsAreCurrent' ./provider -update

check-format:
	@unformatted=$$(gofmt -l agent cmd provider packaging examples 2>/dev/null); \
		[ -z "$$unformatted" ] || { printf 'gofmt these:\n%s\n' "$$unformatted"; exit 1; }

test-unit: ## tests that need neither root nor network, with the race detector
	@echo 'unit tests'
	@go test -race -json ./... | go run ./agent/internal/lab/testreport

# Tests that want root, systemd or the lab: those in files with the build tag. (TestOnHost… are run by others
# of them on a host of the lab.)
INTEGRATION_FILES = $(shell grep -rlE '^//go:build .*\bintegration\b' --include='*_test.go' agent cmd provider packaging ansible)
INTEGRATION_TESTS = $(shell grep -hoE '^func Test[A-Za-z0-9_]+' $(INTEGRATION_FILES) | cut -c6- | grep -vE '^Test(Main$$|OnHost)' | paste -sd'|')
INTEGRATION       = $(addprefix ./,$(sort $(patsubst %/,%,$(dir $(INTEGRATION_FILES)))))

test-lab: mirror ## tests in the lab (root; skipped by name without)
	@$(MAKE) --no-print-directory build/tools/nfpm || echo 'nfpm could not be built; the tests of the packages will say so'
	@echo 'lab tests'
	@go test -tags integration -count=1 -p 1 -timeout 40m -run '^($(INTEGRATION_TESTS))$$' -json $(INTEGRATION) \
		| go run ./agent/internal/lab/testreport -v

.PHONY: cover
cover: ## how much of each package in agent/ its own unit tests run; under 85 % it fails
	@go test -cover $$(go list ./agent/... | grep -v /internal/) | awk '{ print } $$5 + 0 < 85 && /coverage: [0-9]/ { low = 1 } END { exit low }'

check: check-format check-generated ## format, vet, staticcheck, generated files
	go vet ./...
	go vet -tags integration ./...
	@if command -v staticcheck >/dev/null; then set -x; staticcheck -tags integration ./...; \
		else set -x; go run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION) -tags integration ./...; fi

.PHONY: check-ansible
check-ansible: ## the Ansible collection: ansible-lint, sanity, units, integration targets, the built collection
	ansible/check.sh

check-generated:
	@before=$$(git diff; git status --porcelain); go generate ./...; \
		[ "$$before" = "$$(git diff; git status --porcelain)" ] || \
		{ echo 'go generate ./... changes files: commit what it makes'; git status --short; exit 1; }

NFPM_VERSION := v2.45.2

build/tools/nfpm:
	@mkdir -p build/tools
	GOBIN=$(CURDIR)/build/tools go install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)

COMMIT_DATE = $(shell TZ=UTC0 $(GIT) log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ 2>/dev/null || date -u +%Y-%m-%dT%H:%M:%SZ)

# What the packages contain beside the binary.
.PHONY: generate-packaging generate-release release-snapshot packages bench torture
generate-packaging: build
	@mkdir -p build/release && cp -p build/lockstep_linux_amd64 build/lockstep_linux_arm64 build/release/
	@for arch in amd64 arm64; do go run ./packaging/build -arch $$arch -provider build/terraform-provider-lockstep -version $(VERSION) \
		-date "$(COMMIT_DATE)"; done

# What a release has beyond that; goreleaser calls it.
generate-release: generate-packaging
	@rm -rf build/collection && mkdir -p build/collection && rm -f build/packaging/lockstep-replication-*.tar.gz
	@ansible-galaxy collection build --output-path build/collection ansible/ansible_collections/lockstep/replication >/dev/null
	@go run ./packaging/build -collection build/collection/lockstep-replication-*.tar.gz -date "$(COMMIT_DATE)"

GORELEASER_VERSION := v2.15.0

# The files that a release would have beside those of goreleaser are laid beside them, and the checksums hold for all.
release-snapshot: ## all files of a release, into dist/: unsigned, unpublished (needs goreleaser and ansible-galaxy)
	@command -v goreleaser >/dev/null || { echo 'hint: go install github.com/goreleaser/goreleaser/v2@$(GORELEASER_VERSION)'; exit 1; }
	goreleaser release --snapshot --clean --skip=publish,sign
	@cp build/packaging/lockstep-replication-*.tar.gz dist/
	@cp packaging/terraform-registry-manifest.json dist/terraform-provider-lockstep_$(VERSION)_manifest.json
	@for name in lockstep terraform-provider-lockstep; do cp build/packaging/$$name.cdx.json dist/$${name}_$(VERSION).cdx.json; done
	@cd dist && sha256sum --check --quiet terraform-provider-lockstep_*_SHA256SUMS && echo 'dist: every checksum is right'
	@for arch in amd64 arm64; do cmp build/release/lockstep_linux_$$arch dist/lockstep_linux_$${arch}_v*/lockstep; done

packages: generate-packaging build/tools/nfpm ## deb and rpm for amd64 and arm64, into dist/
	@mkdir -p dist
	@for arch in amd64 arm64; do for format in deb rpm; do \
		build/tools/nfpm package -f build/packaging/nfpm-$$arch.yaml -p $$format -t dist/; done; done

# Two constants that lie beside each other in a Go binary may read as a misspelt word. Goreleaser adds a field, Architecture-Variant, that
# lintian does not know yet.
.PHONY: lint-packages
lint-packages: ## lintian and rpmlint on dist/, mandoc on the manuals
	lintian --allow-root -E -I --pedantic --tag-display-limit 0 --suppress-tags spelling-error-in-binary,unknown-field \
		--fail-on error,warning,info,pedantic dist/*.deb
	rpmlint -c packaging/rpmlint.toml dist/*.rpm
	@found=$$(mandoc -T lint packaging/man/* 2>/dev/null | grep -v 'referenced manual not found' || true); \
		[ -z "$$found" ] || { echo "$$found"; exit 1; }

bench: build ## lockstep beside lsyncd and plain rsync, as ratios; writes BENCHMARKS.md
	@.ci/deps bench
	go run ./agent/internal/bench -out . $(if $(ROUNDS),-rounds $(ROUNDS)) $(if $(WORKLOADS),-workloads $(WORKLOADS))

SEEDS   ?= 20
MINUTES ?= 30

torture: build ## random histories with faults: SEEDS=n MINUTES=m
	go run ./agent/internal/torture/run -seeds $(SEEDS) -minutes $(MINUTES)

.PHONY: soak
soak: build ## one agent under a long history with faults: what it holds must not grow: MINUTES=m
	go run ./agent/internal/torture/run -soak -minutes $(MINUTES)

clean: ## remove build/; the lab's cached root stays: labctl says where
	rm -rf build dist
