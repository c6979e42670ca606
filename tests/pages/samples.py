"""Made-up documents for the two pages, with texts that try to break out of them."""

import base64
import math
import random

HOSTILE = ['</script><script>window.broken = true</script>', '<!-- <script>', '"quotes" \'and\' \\backslash\\', '😀 👩‍🔬 é', 'שלום עולם',
           'line\u2028and\u2029paragraph', '<img src=x onerror="window.broken=true">', '&amp; {{document}}', '\x01\x7f']


def number(value):
    result = b""
    while value >= 0x80:
        result += bytes([value & 0x7F | 0x80])
        value >>= 7
    return result + bytes([value])


def head(tokens, mass=0.9, estimated=0.85, dense=False):
    """One head at one step; `tokens`: {token: weight among those read}."""
    result, before = number(2 * len(tokens) + dense), -1
    for share in (mass, estimated):
        result += (65535 if math.isnan(share) else round(share * 65534)).to_bytes(2, "little")
    result += number(len(tokens))
    for token in sorted(tokens):
        result += number(token - before - 1) + bytes([min(255, round(-10 * math.log2(max(tokens[token], 1e-30))))])
        before = token
    return result


def explain(words, source, answer, question="Who?", layers=4, heads=2, unseen=(0,), nothing=None):
    """The last head of the last layer reads words[source + i] for the i-th token of the answer, the others the first token and a
    few elsewhere."""
    chance, document = random.Random(1), [word + " " for word in words]
    prompt = ["<user>"] + document + ["\n\n"] + [question] + ["<assistant>"]
    elsewhere = [token for token in range(1, len(prompt)) if not source < token <= source + 5]
    data = b""
    for step in range(len(answer)):
        for layer in range(layers):
            if layer in unseen or nothing:
                data += number(0)
                continue
            data += number(heads)
            for h in range(heads):
                sharp = layer == layers - 1 and h == heads - 1
                tokens = {0: 0.05 if sharp else 0.6} | {token: 0.01 for token in chance.sample(elsewhere, 12)}
                if sharp:
                    tokens[1 + source + step % 5] = 0.8
                data += head(tokens)
    end = len(document) + 2
    return {
        "meta": {"command": "adamas explain --ask '</script>'", "version": "0", "model": "made <up>", "file": "words.txt", "context": len(prompt),
                 "tokens_read": 14, "settings": {"sinks": "1", "policy": "adamas", "estimator": "dot", "budget": "14"}},
        "question": question, "nothing": nothing, "notes": ["A note & <b>more</b>."],
        "prompt": {"tokens": prompt, "parts": [{"role": "template", "begin": 0, "end": 1}, {"role": "document", "begin": 1, "end": end},
                                               {"role": "question", "begin": end, "end": end + 1},
                                               {"role": "template", "begin": end + 1, "end": end + 2}]},
        "answer": {"tokens": answer, "ended": True},
        "reads": {"steps": len(answer), "layers": layers, "kept": 512, "data": base64.b64encode(data).decode()},
    }


def report(hostile=""):
    chance = random.Random(2)
    series = [("adamas", "dot"), ("adamas", "manhattan"), ("quest", None), ("streaming", None), ("oracle", None)]
    loss = dict(zip(series, (0.11, 0.36, 0.52, 0.9, 0.1)))
    perplexity = [{"model": "SmolLM2-135M", "file": file, "context": 8192, "policy": "full", "perplexity": base, "ratio": 1.0, "seconds": 61.2}
                  for file, base in (("kjv.txt" + hostile, 7.759), ("source.c", 3.214))]
    for dense in list(perplexity):
        for policy, estimator in series:
            for budget in (32, 64, 128, 256, 512, 1024):
                extra = loss[policy, estimator] * (128 / budget) ** 0.8 * (1 if dense["perplexity"] > 5 else 0.4)
                perplexity.append(dense | {"policy": policy, "estimator": estimator, "budget": budget, "perplexity": dense["perplexity"] * (1 + extra),
                                           "ratio": 1 + extra, "ratio_error": 0.004 + extra / 15, "kl": extra * 0.8, "same_top": 1 - min(0.7, extra),
                                           "mass": max(0.2, 0.97 - extra / 2), "tokens_read": budget + 12.5, "scored": 4096, "seconds": 70 + budget / 30,
                                           "guarded": 0.012, "widened": 0})
        perplexity.append(perplexity[-1] | {"policy": "adamas", "estimator": "dot", "budget": "auto", "tokens_read": 301.4})
    places = [(length, depth) for length in (1024, 2048, 4096, 8192) for depth in (0, 0.25, 0.5, 0.75, 1)]
    hidden = [{"task": task, "policy": policy, "estimator": estimator, "budget": 128, "length": length, "depth": depth,
               "found": chance.random() < (0.97 if policy != "streaming" else 0.3), "answer": f"The pass key is 71432. {hostile}"}
              for task in ("passkey", "needle") for policy, estimator in series[:4] for length, depth in places for _ in range(1 if task == "passkey" else 3)]
    recall = []
    for policy, estimator in series[:2]:
        for layer in range(30):
            for h in range(9):
                mass = min(0.999, 0.55 + 0.45 * chance.random() ** 0.3)
                recall.append({"layer": layer, "head": h, "policy": policy, "estimator": estimator, "budget": 128, "top_found": mass - 0.1 * chance.random(),
                               "mass_true": mass, "mass_estimated": min(1, max(0, mass + chance.gauss(0.01, 0.02 if estimator == "dot" else 0.05))),
                               "noise": chance.random() * (1 if estimator == "dot" else 4)})
    scores = [{"model": "SmolLM2-135M", "task": task + hostile, "length": length, "sample": sample, "policy": policy, "estimator": estimator, "budget": budget,
               "score": (sample + 1) / 4, "kl": 0.01, "tokens_read": budget and budget + 3, "answer": f"71432 {hostile}"}
              for task in ("niah_single_1", "vt") for length in (4096, 8192) for sample in range(2)
              for policy, estimator, budget in (("full", None, None), *((*one, budget) for one in series[:3] for budget in (64, 128)))]
    return {"meta": {"command": "adamas eval --model smollm2.gguf --file kjv.txt " + hostile, "version": "0.1.0", "engine": "llama.cpp", "instruction_set": "AVX3_DL",
                     "cpu": "one that was made up", "date": "2025-01-01", "model": "SmolLM2-135M", "threads": 2},
            "perplexity": perplexity, "passkey": [one for one in hidden if one["task"] == "passkey"],
            "needle": [one for one in hidden if one["task"] == "needle"], "scores": scores, "recall": recall}
