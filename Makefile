# Everything runs in a virtualenv of its own, made on first use: only make and Python 3.11 or newer are needed.
#   PYTHON=/path/to/python   which Python makes the virtualenv (default: the newest supported one found)
#   VENV=.venv               where it is

.DEFAULT_GOAL := help
.SUFFIXES:

VENV ?= .venv
EXTRAS ?= dev,demo
CONSTRAINTS ?= constraints.txt
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
BENCH := .venv-bench
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: help
help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

.PHONY: demo
demo: $(READY) ## Run the platform with real work (DATABASE=postgres; ONCE=1 ends when all has settled)
	@$(RUN) -m project.supervise --database $(or $(DATABASE),sqlite) $(if $(filter-out 0 no false,$(ONCE)),--once)

.PHONY: test
test: $(READY) ## Run the tests on SQLite, then those that touch a database on PostgreSQL (ARGS="-k name"; DATABASES=sqlite)
	@status=0; \
	for database in $(or $(DATABASES),sqlite postgres); do \
		echo "── tests on $$database"; code=0; \
		TEST_DB=$$database $(RUN) -m pytest -o cache_dir=.pytest_cache/$$database $(ARGS) || code=$$?; \
		if [ $$code -eq 5 ] && [ -n '$(ARGS)' ]; then code=0; fi; \
		[ $$code -eq 0 ] || status=$$code; \
	done; \
	exit $$status

.PHONY: check
check: export DEBUG := 1
check: $(READY) ## Check format, lint, types, imports, Django's checks, migrations, spelling
	@failed=; \
	run() { name=$$1; shift; echo "── $$name"; "$$@" || failed="$$failed $$name"; }; \
	run format $(RUN) -m ruff format --check --quiet .; \
	run lint $(RUN) -m ruff check --quiet .; \
	run types $(RUN) -m mypy; \
	run imports $(VENV)/bin/lint-imports --no-logo; \
	run Django $(RUN) manage.py check --fail-level WARNING; \
	run deployment env DEBUG=0 SECRET_KEY=$$($(RUN) -c 'import secrets; print(secrets.token_urlsafe(60))') \
		$(RUN) manage.py check --deploy --fail-level WARNING; \
	run migrations $(RUN) manage.py makemigrations --check --dry-run; \
	run spelling $(VENV)/bin/codespell; \
	if [ -n "$$failed" ]; then echo "not as it should be:$$failed"; exit 1; fi; \
	echo "all checks passed"

.PHONY: chaos
chaos: $(READY) ## Break the platform row by row and count the jobs (QUICK=1; ROW=17 SEED=42; AGAINST=celery)
	@$(RUN) -m tests.chaos --row '$(ROW)' --seed '$(SEED)' --quick '$(QUICK)' --database '$(DATABASE)' \
		--broker '$(BROKER)' --against '$(AGAINST)' --parallel '$(PARALLEL)'

.PHONY: bench
bench: $(READY) $(BENCH)/ready ## Measure Mainstay beside its peers (QUICK=1; MEASURE=drain PEERS=celery,rq ROUNDS=5)
	@$(RUN) -m tests.bench --quick '$(QUICK)' --measure '$(MEASURE)' --peers '$(PEERS)' --rounds '$(ROUNDS)' \
		--check-musts '$(CHECK_MUSTS)' --before '$(BEFORE)'

.PHONY: kombu
kombu: $(READY) ## Run kombu's own tests of its Redis transport against ours (needs the package index)
	@$(RUN) -m tests.kombu

.PHONY: scale
scale: $(READY) ## Measure what a long history costs, on a private PostgreSQL (ROWS=10000000: 20 GB of disk, half an hour)
	@$(RUN) -m tests.scale $(if $(ROWS),--rows $(ROWS))

.PHONY: screenshots
screenshots: $(READY) ## Take pictures of a running demo into screenshots/ (needs Chromium and ChromeDriver)
	@[ -f .demo/addresses ] || { echo "There is no demo to take pictures of. Run 'make demo' in another terminal." >&2; exit 1; }
	@$(RUN) -c 'import selenium' 2>/dev/null || $(PIP) selenium
	@$(RUN) -m tests.screenshots screenshots $$(cat .demo/addresses)

.PHONY: latest
latest: ## Run the tests with the newest versions that the dependencies allow, in a virtualenv of its own
	@rm -rf .venv-latest
	@$(MAKE) --no-print-directory VENV=.venv-latest CONSTRAINTS= test

.PHONY: clean
clean: ## Remove the virtualenv and everything that the commands have made
	@rm -rf .venv .venv-* .demo .chaos .bench build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The virtualenv -------------------------------------------------------------------------------

# A shim may exist without a Python behind it, so each candidate has to run.
define FIND_PYTHON
for candidate in $(PYTHON) $(if $(PYTHON),,python3.13 python3.12 python3.11 python3); do \
	if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then echo "There is no Python 3.11 or newer here$(if $(PYTHON), behind PYTHON=$(PYTHON)). Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; fi
endef

$(READY): pyproject.toml $(CONSTRAINTS)
	@if ! $(RUN) -c '' 2>/dev/null; then \
		$(FIND_PYTHON); \
		echo "setting up: $(VENV) with $$($$python --version)"; \
		rm -rf $(VENV); \
		if ! $$python -m venv $(VENV) >.venv.log 2>&1; then \
			cat .venv.log >&2; rm -rf $(VENV) .venv.log; \
			echo "This Python cannot make a virtualenv; on Debian or Ubuntu, 'apt-get install python3-venv' mends it." >&2; \
			exit 1; \
		fi; \
	fi
	@echo "setting up: packages (a minute or two)"
	@if ! $(PIP) -e '.[$(EXTRAS)]' >.venv.log 2>&1; then \
		grep -v '^WARNING' .venv.log >&2; rm -f .venv.log; \
		echo "The packages cannot be installed; the lines above say why." >&2; \
		exit 1; \
	fi
	@rm -f .venv.log
	@touch $@
	@echo "setting up: done"

# A peer that cannot be installed is named, and left out of the comparison.
$(BENCH)/ready: tests/bench/peers.txt $(CONSTRAINTS) | $(READY)
	@echo "setting up: $(BENCH), where the peers of the benchmark are (about a minute)"
	@rm -rf $(BENCH)
	@$(RUN) -m venv $(BENCH)
	@install() { $(subst $(RUN),$(BENCH)/bin/python,$(PIP)) "$$@" >>.venv.log 2>&1; }; \
	install -r tests/bench/peers.txt || grep -v '^#' tests/bench/peers.txt | while read -r peer; do \
		install "$$peer" || echo "setting up: $$peer cannot be installed; it is left out"; \
	done; \
	rm -f .venv.log
	@touch $@
	@echo "setting up: done"
