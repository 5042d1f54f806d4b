# Customer Lockbox for Data Box. Every target is one line; scripts are in .ci.
PROFILE ?= databox
WORLD   ?= .world
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo env PATH="$$PATH")

.PHONY: help deps deps-azurite build test demo up down bench bench-disk bench-session bench-workflow check generate clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 24

deps: ## install the Debian packages that tests and demo need, if any is missing
	@./.ci/deps

deps-azurite: ## install the blob service that tests of the copy job upload to, with npm, if it is not there
	@$(SUDO) ./.ci/azurite

build: ## build the programs into bin/; only lockbox-hsm needs C
	@CGO_ENABLED=0 go build -o bin/ ./agent/cmd/... ./controlplane/cmd/... ./simulator/cmd/... && CGO_ENABLED=1 go build -o bin/ ./controlplane/cmd/lockbox-hsm

test: deps ## run all tests, race detector on, foreign judges included (root runs them all)
	@$(SUDO) ./.ci/test

demo: deps build ## play the story with the real programs; PROFILE=databox-heavy for two nodes
	@$(SUDO) ./bin/databox-sim demo --profile $(PROFILE)

up: deps build ## start the same world and leave it running
	@$(SUDO) ./bin/databox-sim up --profile $(PROFILE) --dir $(WORLD)

down: build ## end what 'make up' left running
	@$(SUDO) ./bin/databox-sim down --dir $(WORLD)

bench: deps build ## measure, and print one line a figure
	@$(SUDO) ./bin/databox-sim bench

bench-disk: deps build ## measure the disk engine beside its peers, and print a table of targets
	@$(SUDO) ./bin/databox-sim bench-disk

bench-session: deps build ## measure sessions, shares and the upload beside their peers; ONLY=upload_1g for one figure
	@$(SUDO) ./bin/databox-sim bench-session --azurite "$$(./.ci/azurite)" $(if $(ONLY),--only $(ONLY))

bench-workflow: deps build ## attack devices with every key but the customer's, 100,000 times; play histories; measure requests and the log
	@./bin/databox-sim bench-workflow && ./.ci/bench-audit

check: ## formatting, vet, staticcheck, generated code
	@./.ci/check

generate: ## make the protobuf code again
	@cd protocol && go tool -modfile=../.tools/buf/go.mod buf lint && go tool -modfile=../.tools/buf/go.mod buf generate

clean: ## remove what was built
	@rm -rf bin
