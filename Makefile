# One target per task; people and CI call the same ones.
PYTHON ?= python3
BIN := .venv/bin
HOST ?= 127.0.0.1
PORT ?= 8000
# An idle OpenMP worker that spins costs its neighbours a processor.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format serve bench bench-peers loadtest fuzz chaos soak container client docs plots page dashboard peers lock licences sbom audit clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/ready ## make .venv with everything; the other targets call it

.venv/ready: constraints.txt dev-requirements.txt examples/requirements.txt service/pyproject.toml client/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e "client[qa]" -e service -r dev-requirements.txt -r examples/requirements.txt
	touch $@

demo: setup ## start the service, rank real annotations, write the page to review them on, stop the service
	$(BIN)/python examples/demo.py

test: setup ## every test, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/hadolint Dockerfile loadtests/Dockerfile
	$(BIN)/mypy service/lossd client/lossd_client tests examples tools benchmarks observe loadtests fuzz faults

format: setup ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

serve: setup ## serve on HOST:PORT until interrupted
	$(BIN)/lossd serve --host $(HOST) --port $(PORT) --log-format console

client: setup ## write the client's loss classes from the service's registry
	$(BIN)/python tools/generate_client_losses.py

docs: setup ## write the generated parts of README.md and docs/ from the code
	$(BIN)/python tools/generate_docs.py

plots: setup ## draw docs/plots, value and gradient of every loss or of LOSS=name
	$(BIN)/python tools/plot_losses.py $(LOSS)

page: setup ## write what the service's page shows of every loss: formulas, curves, the example
	$(BIN)/python tools/generate_page.py

bench: setup ## measure: tables on the screen, JSON in benchmarks/results; bench-peers for other servers
	$(BIN)/python -m benchmarks

bench-peers: setup ## the same job behind other serving systems, gigabytes in build/peers
	$(BIN)/python -m benchmarks.peers

loadtest: setup ## Locust against a service that this starts and stops
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r loadtests/requirements.txt
	$(BIN)/python loadtests/run.py

fuzz: setup ## a million hostile bodies through every decoder; report in build/fuzz
	nice $(BIN)/python -m fuzz --bodies 1000000 --jobs 2

chaos: setup ## good callers beside every fault for a minute; report in build/chaos
	$(BIN)/python -m faults chaos

soak: setup ## 100,000 requests to one process, which must not grow; report in build/soak
	$(BIN)/python -m faults soak

dashboard: setup ## write Grafana's dashboard from its table of panels
	$(BIN)/python observe/dashboard.py

container: setup ## build the image, run it as compose does, check it; needs docker
	LOSSD_CONTAINER_TESTS=1 $(BIN)/python -m pytest tests/test_container.py
	cat build/container.json

peers: ## write the presets' reference values with the libraries themselves, gigabytes in .venv-peers
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r tools/peers/requirements.txt
	.venv-peers/bin/python tools/peers/write_values.py

# What the images are made of, with tools of their own: docs/supply-chain.md.
TORCH ?= cuda
SUPPLY_CHAIN := PYTHONPATH=tools .venv-supply-chain/bin/python -m

.venv-supply-chain/ready: requirements/supply-chain.txt
	$(PYTHON) -m venv .venv-supply-chain
	.venv-supply-chain/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	  -r requirements/supply-chain.txt
	touch $@

lock: .venv-supply-chain/ready ## lock what the images are made of, from constraints.txt
	$(SUPPLY_CHAIN) supply_chain.lock

licences: setup .venv-supply-chain/ready ## list the licences in the images; fails at one not accepted
	$(SUPPLY_CHAIN) supply_chain.licences

sbom: .venv-supply-chain/ready ## write build/sbom.json, a bill of materials; TORCH=cpu for the other image
	$(SUPPLY_CHAIN) supply_chain.sbom $(TORCH)

audit: .venv-supply-chain/ready ## ask for known vulnerabilities of what is locked
	$(SUPPLY_CHAIN) supply_chain.audit

clean: ## remove what the targets made
	rm -rf .venv .venv-peers .venv-supply-chain build demo-output
