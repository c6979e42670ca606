"""The examples, each as its page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/python"


def run(*command, ranks=0):
    """What it prints."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks else []
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher, *map(str, command)], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def save_llama(folder, **sizes):
    """A random Llama of two layers in a folder. Returns transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(num_hidden_layers=2, num_key_value_heads=2, head_dim=64, initializer_range=0.1, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return transformers


def test_a_sharded_context():
    pytest.importorskip("torch")
    printed = run(EXAMPLES / "sharded_context.py", "--tokens", 9000, ranks=3)
    lines = sorted(line for line in printed.splitlines() if line.startswith("rank"))
    assert len(lines) == 3 and [", with the fact" in line for line in lines] in ([True, False, False], [False, True, False])
    reads = [int(re.search(r"reads (\d+) of", line)[1]) for line in lines]
    assert abs(sum(reads) - 128) <= 2  # a mean over heads, rounded
    outs = {re.search(r"out ([\d.-]+), ([\d.]+)% from", line).groups() for line in lines}
    assert len(outs) == 1 and float(outs.pop()[1]) < 20


def test_a_model_over_two_processes(tmp_path):
    pytest.importorskip("accelerate", reason="transformers needs it for tp_plan")
    save_llama(tmp_path, vocab_size=128, hidden_size=256, intermediate_size=256, num_attention_heads=8)
    of = (EXAMPLES / "tensor_parallel.py", tmp_path, 400, "--set", "budget=64", "--set", "min_context=0")
    alone, *ranks = (re.findall(r"tokens (\[.*?\]), (\d+) sparse heads", run(*of, ranks=n)) for n in (0, 2))
    ((tokens, heads),) = alone
    (first, its_heads), (second, other_heads) = ranks[0]
    assert first == second == tokens and tokens.count(",") == 19
    assert int(its_heads) == int(other_heads) == int(heads) // 2 > 0


def test_a_question_about_a_long_text(tmp_path):
    transformers = save_llama(
        tmp_path,
        vocab_size=384,  # bytes, which need no files
        hidden_size=128,
        intermediate_size=128,
        num_attention_heads=4,
        max_position_embeddings=8192,
        eos_token_id=None,
    )
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    (tmp_path / "text").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    lines = run(EXAMPLES / "long_text.py", tmp_path, tmp_path / "text", "What?", "--new", 12).splitlines()
    assert lines[0] == f"{60 * 45 + 2 + 5 + 1 + 1} tokens"
    assert [line.split(":")[0] for line in lines[1:3]] == ["plain", "Adamas"]
    read, of = map(int, re.search(r"a head read (\d+) of (\d+) tokens", lines[3]).groups())
    assert 64 <= read < of


def test_the_notebook():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel"), pytest.importorskip("matplotlib")
    notebook = nbformat.read(EXAMPLES / "selection.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept"
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    pictures = [1 for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(pictures) == 2


def test_paged_serving():
    pytest.importorskip("torch")
    printed = run(EXAMPLES / "paged_serving.py")
    served = re.findall(r"request (\d+): (\d+) tokens, (\d+) of them generated, (\d+) pages shared", printed)
    assert len(served) == 6 and all(int(made) > 0 for _, _, made, _ in served)
    assert sum(int(pages) for *_, pages in served) > 0
    assert float(re.search(r"at most ([\d.e-]+) from", printed)[1]) < 1e-4
    assert "0 pages in use" in printed
