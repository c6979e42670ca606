"""A question about a long text, answered by a model of transformers: plainly, and with Adamas.

    python examples/python/long_text.py MODEL report.txt 'What was decided?'

Reading the text takes as long either way; what gets faster is the answer, token by token.
"""

import argparse
import contextlib
import time
from pathlib import Path

import adamas
import torch
import transformers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="a folder or a name, as from_pretrained takes it")
parser.add_argument("file", type=Path)
parser.add_argument("question")
parser.add_argument("--gguf", help="a file of that folder in the format GGUF")
parser.add_argument("--new", type=int, default=48, help="tokens of an answer, at most")
arguments = parser.parse_args()

source = {"gguf_file": arguments.gguf} if arguments.gguf else {}
tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model, **source)
model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, **source).eval()
asked = f"{arguments.file.read_text(encoding='utf-8')}\n\n{arguments.question}\n"
if tokenizer.chat_template:
    asked = tokenizer.apply_chat_template([{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True)
inputs = tokenizer(asked, return_tensors="pt")
length = inputs.input_ids.shape[1]


class Clock(transformers.generation.BaseStreamer):
    """When the prompt, the first token and the last one came."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass


print(f"{length} tokens")
for name in ("plain", "Adamas"):
    way = adamas.enable(model) if name == "Adamas" else contextlib.nullcontext()
    clock = Clock()
    with way, torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=arguments.new, do_sample=False, streamer=clock)
        read = adamas.stats(model) if name == "Adamas" else {}
    made = out.shape[1] - length
    pace = (made - 1) / (clock.times[-1] - clock.times[1]) if made > 1 else float("nan")
    print(f"{name}: {pace:.1f} tokens/s: {tokenizer.decode(out[0, length:], skip_special_tokens=True)!r}")
if read.get("heads_sparse"):
    print(f"a head read {read['tokens_selected'] / read['heads_sparse']:.0f} of {read['tokens_visible'] / read['heads_sparse']:.0f} tokens")
