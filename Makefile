# make demo     a long document, three questions: the same llama.cpp plain and with Adamas
#               make demo MODEL=path.gguf FILE=text QUESTION='...'   for your own
# make test     what CI checks
# make eval     the tables of docs/quality.md and a page for each model, half an hour
# make figures  the table of README.md: tokens a second over the depth, half an hour
# make ops      the engine's own tests of its operations, on our back end: for the night
# make sweep    a small model of every architecture that the engine knows, decoded in every way, beside exact attention: for the night
# make bench    how fast each stage of a step is, beside dense attention and the memory
# make build    the library, the adamas command, the back end for llama.cpp
# make models   two more models, for evaluation
# make clean    removes build/; what was fetched, and llama.cpp, stay in the cache (ADAMAS_CACHE)

export ADAMAS_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/adamas
export ADAMAS_MODELS := $(ADAMAS_CACHE)/models

compile := cmake --build --preset cpu --parallel $(shell nproc)

.PHONY: build demo test eval figures ops sweep bench models clean packages browser python checks engine model configure sanitized

build: configure
	@$(compile)

demo: configure model
	@$(compile) --target adamas adamas_cli ggml-adamas
	@python3 tools/demo.py $(if $(MODEL),--model "$$MODEL") $(if $(FILE),--file "$$FILE") $(if $(QUESTION),--question "$$QUESTION")

test: build sanitized model browser python checks
	@ctest --preset cpu --output-on-failure --parallel $(shell nproc)

ops: configure
	@$(compile) --target ops

sweep: configure
	@$(compile) --target sweep

bench: build
	@build/bin/adamas bench --kernel

eval: build models
	@tools/packages.sh debian-handbook fortunes
	@python3 tools/evaluate.py

figures: build model
	@python3 tools/figures.py --model $(ADAMAS_MODELS)/SmolLM2-135M-Instruct.Q4_1.gguf

models: model
	@tools/models.sh gemma3 qwen25

clean:
	rm -rf build

# what the above stand on, each done once
packages:
	@tools/packages.sh

browser: packages
	@tools/packages.sh chromium chromium-driver  # the tests look at the pages

python: packages
	@tools/python.sh

checks: packages
	@tools/packages.sh clang-format clang-tidy git

engine: packages
	@tools/engine.sh

model: packages
	@tools/models.sh

sanitized: packages
	@cmake --preset sanitized --log-level=WARNING
	@cmake --build --preset sanitized --parallel $(shell nproc)

configure: engine
	@cmake --preset cpu --log-level=WARNING -DADAMAS_GGML_DIR=$(CURDIR)/build/llama/source/ggml -DADAMAS_MODELS_DIR=$(ADAMAS_MODELS) -DADAMAS_PYTHON=$(ADAMAS_CACHE)/python
