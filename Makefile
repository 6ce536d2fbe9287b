PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The folder of corpora that the measured recipes read; see examples/README.md.
DATA ?= ../shared/data

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow conformance quality style bench results ablations commands emotion

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,plot,demo,baseline,bench,dev]"
	@touch $@

demo: $(VENV)/.installed  ## Everything once on synthetic speech: corpus, pretraining, classifiers, table, plots
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed  ## The tests, without the slow ones
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.installed  ## The long forms
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

conformance: $(VENV)/.installed  ## The tests that transformers has for every model, fetched through pip
	$(BIN)/python tests/conformance/fetch.py
	HF_HUB_OFFLINE=1 RUN_SLOW=1 $(BIN)/python -m pytest tests/conformance

quality: $(VENV)/.installed  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(VENV)/.installed  ## Mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## Speed and memory beside the peers' in transformers: one table, runs/bench.json
	HF_HUB_OFFLINE=1 $(BIN)/python examples/benchmarks/bench.py --output runs/bench.json

results: $(VENV)/.installed  ## Everything behind the tables, from DATA: two to three hours on two cores, tables and plots rewritten
	$(BIN)/python examples/results/reproduce.py --data $(DATA) --recipe cpu --output runs/results

ablations: $(VENV)/.installed  ## What each ingredient of pretraining and classifier is worth, on validation splits; after `make results`
	$(BIN)/python examples/results/reproduce.py --data $(DATA) --recipe cpu --output runs/results --until calm
	$(BIN)/python examples/results/ablations.py --dataset $(DATA)/speech_commands --emotion_dataset $(DATA)/emotion_en \
	  --output_dir runs/ablations --output runs/results/ablations.json
	$(BIN)/python examples/results/ablations.py --recipes examples/configs/classifier_ablations.yaml \
	  --dataset $(DATA)/emotion_en --output_dir runs/ablations/classifier --output runs/results/ablations-classifier.json
	$(BIN)/python examples/results/write_report.py --results runs/results

commands: $(VENV)/.installed  ## Pretrain on DATA/speech_commands and evaluate on its test split
	$(BIN)/accelerate launch examples/pretrain.py --config examples/configs/pretrain_commands.yaml \
	  --dataset $(DATA)/speech_commands --output_dir runs/commands
	$(BIN)/python examples/evaluate.py --models runs/commands --dataset $(DATA)/speech_commands

emotion: $(VENV)/.installed  ## Fine-tune runs/commands on DATA/emotion_en, three seeds, beside its baselines
	for seed in 0 1 2; do \
	  $(BIN)/python examples/finetune.py --config examples/configs/finetune_emotion.yaml --seed $$seed \
	    --dataset $(DATA)/emotion_en --model runs/commands --output_dir runs/emotion/calm-$$seed && \
	  $(BIN)/python examples/finetune.py --config examples/configs/scratch_emotion.yaml --seed $$seed \
	    --dataset $(DATA)/emotion_en --output_dir runs/emotion/scratch-$$seed || exit 1; \
	done
	$(BIN)/python examples/evaluate.py --dataset $(DATA)/emotion_en --egemaps --output runs/emotion/evaluation.json \
	  --models runs/emotion/calm-0 runs/emotion/calm-1 runs/emotion/calm-2 \
	  --compare_models runs/emotion/scratch-0 runs/emotion/scratch-1 runs/emotion/scratch-2
