# Every target makes its own .venv when it is missing. `make demo` and `make test` are the two to know.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Versions that are known to work together; the package's own metadata asks for less.
PINS := torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxruntime==1.31.1 onnxscript==0.7.2 onnx-ir==1.1.0 \
        diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 lycoris-lora==4.1.3 tokenizers==0.23.3 safetensors==0.8.0 coremltools==9.0 openvino==2026.4.1 \
        tree-sitter==0.26.1 tree-sitter-swift==0.7.4

.PHONY: demo test check fuzz mac-check coreml-slots export-sd15 bench bench-quick bench-peers clean

demo: demo/emoji/lora_edge.json  ## export the demo model, write demo/contact-sheet.png
	$(BIN)/python examples/contact_sheet.py

test: $(READY)  ## everything that can be checked in minutes
	$(BIN)/python -m pytest

check: $(READY)  ## ruff, mypy --strict on the built wheel, the walls between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/typecheck.py
	$(BIN)/python -m pytest tests/test_architecture.py

fuzz: $(READY)  ## 20,000 hostile adapter files: what refuses them, the memory and the time that reading them takes
	$(BIN)/python -m tests.fuzz

coreml-slots: $(READY)  ## every slot of the demo model's Core ML packages alone, against torch in float64
	$(BIN)/python benchmarks/coreml_slots.py

export-sd15: $(READY)  ## time and memory of exporting a model of Stable Diffusion 1.5's size (random weights)
	$(BIN)/python -m benchmarks.export_sd15

bench: $(READY) export-sd15  ## everything beside everyone, hours: benchmarks/results, docs/benchmarks.md, the README's table
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.report

bench-quick: $(READY)  ## the demo model alone, in a few minutes; prints, and leaves the results that are kept alone
	$(BIN)/python -m benchmarks --models emoji --rounds 5 --contestants $(QUICK) --questions $(ASKED) --results build/bench/quick
	$(BIN)/python -m benchmarks.report --results build/bench/quick --print

QUICK := lora-edge-ort,lora-edge-ov,plain-ort,plain-ov,diffusers-fp32
ASKED := disk,step_time,beside_peers,swap,multiplier

bench-peers: $(READY)  ## environments for peers whose versions conflict with ours, below build/peers
	$(BIN)/python -m benchmarks.peers

mac-check:  ## on a Mac: compile, load, compare and time Core ML packages of the demo model (docs/coreml.md)
	@test "$$(uname)" = Darwin || $(PYTHON) examples/mac_check.py
	$(MAKE) demo/coreml/lora_edge.json
	$(BIN)/python examples/mac_check.py demo/coreml

demo/coreml/lora_edge.json: $(READY) examples/emoji/model/model_index.json
	mkdir -p demo
	$(BIN)/lora-edge export examples/emoji/model demo/coreml --target coreml --force

demo/emoji/lora_edge.json: $(READY) examples/emoji/model/model_index.json
	mkdir -p demo
	$(BIN)/lora-edge export examples/emoji/model demo/emoji --force

$(READY): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PINS)
	$(BIN)/python -m pip install --quiet -e '.[export,coreml,openvino,bench,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
