"""adamas check: the verdict on each layer of models of many kinds, memory, and the self-test."""

import json
import os
import pathlib
import re
import unittest

from command import HAS_READER, MODELS, CommandTest, call, clean_environment
from gguf_writer import model

SMOLLM2 = pathlib.Path(MODELS) / "SmolLM2-135M-Instruct.Q4_1.gguf"
FAULT_LIBRARY = os.environ.get("ADAMAS_FAULT_LIBRARY", "")


def blocks(layers, *parts):
    return [f"blk.{i}.{part}.weight" for i in layers for part in parts]


class CheckTest(CommandTest):
    def setUp(self):
        super().setUp()
        if not HAS_READER:
            self.skipTest("built without ADAMAS_GGML_DIR")

    def check(self, data, *arguments, environment=None):
        path = data if isinstance(data, pathlib.Path) else self.folder / "model.gguf"
        if path is not data:
            path.write_bytes(data)
        return call("check", path, *arguments, environment=environment)

    def report(self, data, *arguments):
        result = self.check(data, "--json", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def verdicts(self, data, *arguments):
        return [layer["why_dense"] for layer in self.report(data, *arguments)["layers"]]


class Verdicts(CheckTest):
    def assert_dense(self, verdict, words):
        self.assertIsNotNone(verdict)
        self.assertIn(words, verdict)

    def test_plain(self):
        report = self.report(model())
        self.assertEqual(report["sparse_layers"], 4)
        self.assertEqual({(l["q_heads"], l["kv_heads"], l["key_dim"]) for l in report["layers"]}, {(8, 2, 64)})
        self.assertEqual(report["memory"]["kv_f16_bytes"], 4 * 8192 * 2 * (64 + 64) * 2)
        self.assertLess(report["memory"]["codes_bytes"], report["memory"]["kv_f16_bytes"] / 4)
        self.assertTrue(report["passed"])

    def test_head_dim(self):
        self.assert_dense(self.verdicts(model(attention__key_length=72, attention__value_length=72))[0],
                          "head_dim 72 is not served; supported: 64, 80")

    def test_k_and_v_of_different_size(self):
        self.assert_dense(self.verdicts(model(attention__key_length=192, attention__value_length=128))[0], "192 and 128")

    def test_latent_attention(self):
        self.assert_dense(self.verdicts(model(tensors=blocks(range(4), "attn_q_a", "attn_kv_a_mqa")))[0], "MLA")

    def test_recurrent_layers_between(self):
        tensors = blocks([0, 1, 2], "attn_qkv", "ssm_conv1d") + blocks([3], "attn_q", "attn_k")
        verdicts = self.verdicts(model("qwen3next", tensors=tensors))
        self.assert_dense(verdicts[0], "recurrent")
        self.assertIsNone(verdicts[3])

    def test_heads_per_layer(self):
        tensors = blocks([0, 2, 3], "attn_q", "attn_k") + blocks([1], "ffn_up")
        heads = dict(attention__head_count=[8, 0, 4, 8], attention__head_count_kv=[2, 0, 4, 1])
        report = self.report(model(tensors=tensors, **heads))
        self.assertEqual([l["kv_heads"] for l in report["layers"]], [2, 0, 4, 1])
        self.assert_dense(report["layers"][1]["why_dense"], "no attention")
        self.assertEqual(len(report["self_tests"]), 3)

    def test_windows(self):
        for values, wide in [
            (dict(architecture="gemma3", layers=6), [5]),  # llama.cpp's own period
            (dict(architecture="gemma3", layers=6, attention__sliding_window_pattern=3), [2, 5]),
            (dict(architecture="smallthinker", layers=6), [0, 4]),
            (dict(architecture="gemma4", layers=3, attention__sliding_window_pattern=[True, False, True]), [1]),
            (dict(architecture="qwen2", layers=3), [0, 1, 2]),  # has a window in its file that llama.cpp does not use
        ]:
            with self.subTest(**values):
                verdicts = self.verdicts(model(attention__sliding_window=512, **values))
                self.assertEqual([i for i, verdict in enumerate(verdicts) if verdict is None], wide)
                for i in set(range(len(verdicts))) - set(wide):
                    self.assert_dense(verdicts[i], "sliding window of 512 tokens is below min_context")

    def test_a_wide_window_runs_sparse(self):
        report = self.report(model("gemma3", layers=6, attention__sliding_window=4096))
        self.assertEqual(report["sparse_layers"], 6)
        self.assertEqual(report["memory"]["kv_f16_bytes"], (5 * 4096 + 8192) * 2 * (64 + 64) * 2)

    def test_shared_caches_cost_nothing(self):
        report = self.report(model(attention__shared_kv_layers=3))
        self.assertEqual(report["sparse_layers"], 4)
        self.assertEqual(report["memory"]["kv_f16_bytes"], 8192 * 2 * (64 + 64) * 2)

    def test_encoder(self):
        self.assert_dense(self.verdicts(model("bert", attention__causal=False))[0], "encoder")

    def test_settings(self):
        for arguments, layers, words in [
            (["--dense-layers", "2"], [0, 1], "dense_layers is 2"),
            (["--policy", "full"], [0, 1, 2, 3], "policy full"),
            (["--context", "1000"], [0, 1, 2, 3], "below min_context"),
            (["--budget", "8192"], [0, 1, 2, 3], "within the budget"),
        ]:
            with self.subTest(arguments=arguments):
                verdicts = self.verdicts(model(), *arguments)
                self.assertEqual([i for i, verdict in enumerate(verdicts) if verdict], layers)
                self.assert_dense(verdicts[0], words)

    def test_sections_of_a_settings_file(self):
        settings = self.folder / "settings.txt"
        settings.write_text("budget = 64\n[layers 0,2-3] # not 77\npolicy = full\n")
        verdicts = self.verdicts(model(), "--config", str(settings))
        self.assertEqual([verdict for verdict in verdicts], ["policy full", None, "policy full", "policy full"])
        settings.write_text("[layers 1]\nbudget = 8192\n[layers 3-5]\nbudget = 64\n")
        result = self.check(model(), "--config", str(settings))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("3 of 4 layers run sparse", result.stdout)
        self.assertIn("layer 1: dense: the context of 8192 tokens is within the budget, 8192", result.stdout)
        self.assertIn("layers 0, 2: sparse: 8 query heads, 2 KV heads, head_dim 64, budget auto", result.stdout)
        self.assertIn("layer 3: sparse: 8 query heads, 2 KV heads, head_dim 64, budget 64", result.stdout)
        self.assertIn("64 of 4096 tokens", result.stdout)
        self.assertIn("has settings for layer 5; the last layer of this model is 3", result.stderr)

    def test_context(self):
        self.assertEqual(self.report(model(), "--context", "2000")["context"], 2000)
        self.assert_fails(self.check(model(context_length=None)), 2, "--context")

    def test_text(self):
        result = self.check(model("gemma3", layers=12, attention__sliding_window=512))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("2 of 12 layers run sparse at 8192 tokens", result.stdout)
        self.assertIn("layers 0-4, 6-10: dense: a sliding window", result.stdout)
        self.assertIn("layers 5, 11: sparse: 8 query heads, 2 KV heads, head_dim 64", result.stdout)


class SelfTest(CheckTest):
    def test_settings(self):
        for arguments in [["--preset", "paper"], ["--estimator", "manhattan"], ["--share", "0.01"], ["--share", "1"], ["--min-mass", "0.9"],
                          ["--max-noise", "0.3"], ["--budget", "1", "--sinks", "0"], ["--budget", "7", "--recent", "3"]]:
            with self.subTest(arguments=arguments):
                report = self.report(model(), "--context", "4096", *arguments)
                self.assertTrue(report["passed"])
                self.assertEqual(report["self_tests"][0]["list"] is None, "paper" in arguments or "--budget" in arguments)

    def test_every_instruction_set(self):
        isas = json.loads(call("info", "--json").stdout)["instruction_sets"]
        for chosen in (isas[0], isas[-1]):
            self.assertEqual(self.report(model(), "--isa", chosen)["instruction_sets"], isas)
        self.assertIn(f"self-test with {', '.join(isas)}, against", self.check(model()).stdout)

    def test_another_policy_has_none(self):
        for policy in ("quest", "streaming", "oracle"):
            result = self.check(model(), "--policy", policy)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("no self-test", result.stdout)
            self.assertNotIn("passed", result.stdout)

    def test_softcap_and_alibi(self):
        report = self.report(model(attn_logit_softcapping=30.0, attention__max_alibi_bias=8.0))
        self.assertEqual((report["softcap"], report["alibi"]), (30, 8))
        for test in report["self_tests"]:
            for kind in ("dense", "sparse", "list"):
                self.assertLess(test[kind]["error"], test[kind]["bound"])

    def test_every_head_dim(self):
        for head_dim in json.loads(call("info", "--json").stdout)["head_dims"]:
            with self.subTest(head_dim=head_dim):
                data = model(attention__key_length=head_dim, attention__value_length=head_dim)
                self.assertEqual(self.report(data)["self_tests"][0]["head_dim"], head_dim)

    @unittest.skipUnless(FAULT_LIBRARY, "a sanitizer wants to be loaded first")
    def test_faults_are_noticed(self):
        isas = json.loads(call("info", "--json").stdout)["instruction_sets"]
        for fault, words in [
            ("step", f"all tokens with {isas[0]}: the output is off by more than its bound"),
            ("list", f"a list and a rest with {isas[0]}: the output is off by more than its bound"),
            ("isa", f"all tokens with {isas[-1]}: the output is off by more than its bound"),
            ("selection", f"all tokens with {isas[0]}: other tokens are selected"),
            ("codes", f"all tokens with {isas[0]}: codes of K or means of V are others"),
        ]:
            with self.subTest(fault=fault):
                environment = clean_environment(LD_PRELOAD=FAULT_LIBRARY, ADAMAS_FAULT=fault)
                result = self.check(model(), environment=environment)
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertIn(f"FAILED: {words}", result.stdout)


class OnAGpu(CommandTest):
    def test_every_head_dim(self):
        info = json.loads(call("info", "--json").stdout)
        result = call("check", "--device", "cuda")
        if not info["gpus"]:
            reason = re.search(r"^GPUs +none: (.+)$", call("info").stdout, re.M)[1]
            return self.assert_fails(result, 1, f"check: --device cuda: {reason}")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn(f"self-test with {info['gpus'][0]}, against", result.stdout)
        for head_dim in info["head_dims"]:
            for pages in ("", ", in pages of 64 tokens"):
                self.assertIn(f"8 query heads, 2 KV heads, head_dim {head_dim}{pages}: passed", result.stdout)

    def test_only_cpu_and_cuda(self):
        self.assert_fails(call("check", "--device", "gpu"), 2, "--device", "cpu", "cuda")
        self.assert_fails(call("check", "--device", "cpu"), 2, "the model is missing")


@unittest.skipUnless(MODELS, "ADAMAS_MODELS_DIR is not set")
class RealModel(CheckTest):
    def test_smollm2(self):
        report = self.report(SMOLLM2)
        self.assertEqual((report["architecture"], report["context"], len(report["layers"])), ("llama", 8192, 30))
        self.assertEqual(report["sparse_layers"], 30)
        shapes = {(l["q_heads"], l["kv_heads"], l["key_dim"], l["value_dim"]) for l in report["layers"]}
        self.assertEqual(shapes, {(9, 3, 64, 64)})
        self.assertTrue(report["passed"])

    def test_cut_off(self):
        data = SMOLLM2.read_bytes()
        for size in (len(data) - 1, len(data) // 2, 3_000_000):
            self.assert_fails(self.check(data[:size]), 1, "is cut off", str(size))


if __name__ == "__main__":
    unittest.main()
