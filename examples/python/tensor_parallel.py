"""A model of transformers over several processes: each has some of the heads, and their codes.

    torchrun --nproc-per-node 2 examples/python/tensor_parallel.py MODEL 'Once upon a time'

On GPUs by NCCL, one for each process, and on CPUs by gloo. transformers shards the model (tp_plan="auto"; it takes accelerate for that), and attention is every rank's own:
adamas.enable is the same line as ever. A number of tokens instead of a text makes them up, for a model without a tokenizer.
"""

import argparse
import os

import adamas
import torch
import transformers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("text")
parser.add_argument("--new", type=int, default=20, help="tokens to generate")
parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of Adamas")
arguments = parser.parse_args()

ranks = int(os.environ.get("WORLD_SIZE", 1))
device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
if device.type == "cuda":
    torch.cuda.set_device(device)
sharded = {"tp_plan": "auto"} if ranks > 1 else {}
model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, **sharded).to(device).eval()
if arguments.text.isdigit():
    ids = torch.randint(model.config.vocab_size, (1, int(arguments.text)), generator=torch.Generator().manual_seed(0))
else:
    ids = transformers.AutoTokenizer.from_pretrained(arguments.model)(arguments.text, return_tensors="pt").input_ids

with adamas.enable(model, **dict(one.split("=", 1) for one in arguments.set)) as enabled:
    out = model.generate(input_ids=ids.to(device), max_new_tokens=arguments.new, do_sample=False)
stats = enabled.stats
print(
    f"rank {os.environ.get('RANK', 0)} of {ranks}: tokens {out[0, ids.shape[1] :].tolist()}, "
    f"{stats.get('heads_sparse', 0)} sparse heads read {stats.get('tokens_selected', 0)} of {stats.get('tokens_visible', 0)} tokens"
)
