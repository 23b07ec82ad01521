PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTED = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --durations 60 --durations-min 1

# pip-audit ends well also where its advisory service knows none of the packages, or cannot be asked.
define AUDITED
import json, sys
found = json.load(open(sys.argv[1]))["dependencies"]
asked = sum("vulns" in one for one in found)
print(f"{asked} of {len(found)} packages audited")
sys.exit(2 * asked < len(found))
endef
export AUDITED

.PHONY: install demo test lint check slow soak clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $(STAMP)

demo: install
	$(BIN)/curerec demo --out runs/demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(BIN)/pip-audit --skip-editable --progress-spinner off --format json --output $(VENV)/audit.json
	@$(BIN)/python -c "$$AUDITED" $(VENV)/audit.json

test: lint
	$(TESTED) -m "not slow and not soak and not network"

slow: install
	$(TESTED) -m "slow and not soak and not network"

soak: install
	$(BIN)/python -m pytest -m soak -vv # a name a line as each ends: half an hour is often cut short

clean:
	rm -rf $(VENV) runs build dist
