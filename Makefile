# Every command sets up what it needs and nothing else, and only when it is not there yet: scripts/venv.sh.
#   make shards CONFIG=laion_subset        CONFIG is a preset of configs/ or the path of a file
#   make setup EXTRAS="clip s3"            extras of pyproject.toml; docs/install.md says what each costs
#   make test PYTHON=python3.12            the interpreter that .venv is made of (3.11 or 3.12)

CONFIG ?= laion_subset
EXTRAS ?=
SET    ?=
TESTS  ?= tests
BENCH  ?=

config  := $(if $(findstring /,$(CONFIG))$(filter %.yaml %.yml,$(CONFIG)),$(CONFIG),$(firstword $(wildcard configs/$(CONFIG).yaml configs/train/$(CONFIG).yaml) configs/$(CONFIG).yaml))
name    := $(basename $(notdir $(config)))
RUN     ?= runs/$(name)
# A config names the extras that its stages need in a line of its own: "# extras: clip s3".
needs   := $(shell sed -n 's/^\# extras: *//p' $(config) 2>/dev/null)

bin     := .venv/bin
venv    := @PYTHON="$(PYTHON)" sh scripts/venv.sh
set     := $(foreach pair,$(SET),--set $(pair))
short   := "captions --rounds 1" "shards --rounds 2" "scores --pairs 64 --rounds 1" "images --rows 1000 --rounds 1" "filters --pictures 50 --rounds 1" \
           "roofline --pictures 50" "latency --rows 4000 --rounds 1" "startup --rounds 1" "scale --rows 1000 5000" "dedup --rows 200000 --peer-rows 200000 --peers datasketch" "download_latency --rows 4000" "video --rounds 1" "train_reading --samples 1000 --rounds 1"
checked := pipeline stages tests benchmarks docs

.DEFAULT_GOAL := help
.PHONY: help setup shards plan train pretrain report test browser test-all lint wheel-test docs bench-setup bench-setup-dedup bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## .venv with the core and EXTRAS="clip s3 ..."
	$(venv) $(EXTRAS)

shards: ## the shards and the report of CONFIG; again: goes on where it stopped (SET="key.sub=value ..." overrides)
	$(venv) $(needs) $(EXTRAS)
	@$(bin)/shardmill run $(config) $(set)

plan: ## what `make shards` would do, and why
	$(venv) $(needs) $(EXTRAS)
	@$(bin)/shardmill plan $(config) $(set)

train: ## trains on the shards that CONFIG made, or names; again: goes on from the last checkpoint
	$(venv) train $(needs) $(EXTRAS)
	@$(bin)/shardmill train $(config) $(set)

pretrain: ## shards, training and evaluation of CONFIG in one command
	$(venv) train $(needs) $(EXTRAS)
	@$(bin)/shardmill run $(config) $(set)
	@$(bin)/shardmill train $(config) $(set)
	@$(bin)/shardmill eval $(config) $(set)

report: ## the report of a finished run (RUN=runs/NAME)
	$(venv) $(EXTRAS)
	@$(bin)/shardmill report $(RUN)

test: ## the tests (TESTS=path for some of them; those of training want EXTRAS="train eval")
	$(venv) dev sample scorer s3 video $(EXTRAS)
	@$(bin)/python -m pytest $(TESTS)

browser: ## the tests that use the pages in a real Chromium (installed by apt where it is missing), and mlcroissant's
	$(venv) dev sample scorer s3 browser $(EXTRAS)
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; }
	@$(bin)/python -m pytest tests/pipeline/test_report_browser.py tests/pipeline/test_report_page.py

test-all: ## all tests, the slow ones and those of every extra too
	$(venv) dev sample s3 video browser train scorer eval img2dataset cluster pages speech $(EXTRAS)
	@$(bin)/python -m pytest --run-slow $(TESTS)

lint: ## ruff, strict mypy, the floors, and that docs/reference is fresh
	$(venv) dev sample s3 video $(EXTRAS)
	@$(bin)/ruff check --quiet $(wildcard $(checked))
	@$(bin)/ruff format --check --quiet $(wildcard $(checked))
	@$(bin)/mypy --no-error-summary
	@$(bin)/lint-imports --no-logo
	@$(bin)/python docs/generate.py --check

wheel-test: ## builds the wheel and uses it where the sources are not
	$(venv) dev sample s3 video $(EXTRAS)
	@sh scripts/wheel_test.sh

docs: ## writes docs/reference and configs/schema.json from the code
	$(venv) $(EXTRAS)
	@$(bin)/python docs/generate.py

bench-setup: ## the programs that benchmarks compare with, in venvs of their own below .bench
	@for peer in img2dataset==1.47.0 daft==0.7.26 py-spy==0.4.3; do \
		folder=.bench/$${peer%%=*}; [ -x $$folder/bin/pip ] || $(or $(PYTHON),python3) -m venv $$folder; \
		$$folder/bin/pip install -qq --disable-pip-version-check $$peer || exit 1; \
	done

bench-setup-dedup: ## the peers of `make bench BENCH="dedup --rows 1000000 --peer-rows 1000000"`: 2.4 GB below .bench
	@for peer in text-dedup==0.4.0 py-data-juicer==1.6.1; do \
		name=$${peer%%==*}; folder=.bench/$${name#py-}; [ -x $$folder/bin/pip ] || $(or $(PYTHON),python3) -m venv $$folder; \
		$$folder/bin/pip install -qq --disable-pip-version-check $$peer aiohttp || exit 1; \
	done  # aiohttp: Data-Juicer imports it without asking for it

bench: bench-setup ## a short form of all benchmarks, its figures beside those of the whole forms (BENCH="images --rows 4000" for one of them, with its own options)
	$(venv) dev sample s3 video train scorer $(EXTRAS)
	@for line in $(if $(BENCH),"$(BENCH)",$(short)); do echo "== $$line"; $(bin)/python benchmarks/$${line%% *}.py $$(echo "$$line " | cut -d' ' -f2-) || exit 1; done

clean: ## removes build outputs and caches; .venv and runs/ stay
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find pipeline stages tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
