"""adamas eval, as far as it needs no long run: flags, lists of settings, files that are not what they should be. The numbers
themselves are tested in tests/engine/eval.py."""

import json
import os
import pathlib
import shutil
import unittest

from command import COMMAND, HAS_READER, MODELS, CommandTest, call, clean_environment, soname
from gguf_writer import model

KINDS = ("perplexity", "passkey", "needle", "recall", "tune")
SMOLLM2 = pathlib.Path(MODELS) / "SmolLM2-135M-Instruct.Q4_1.gguf"
LIBRARY = pathlib.Path(os.environ["ADAMAS_LIBRARY"]).resolve()
ENGINE = pathlib.Path(COMMAND).parent / "../llama/bin/libllama.so"
BENCH = ENGINE.with_name("llama-bench")


def needed(kind):
    """The flags without which a kind does nothing."""
    return {"perplexity": ["--file", "t"], "passkey": [], "needle": ["--file", "t"], "recall": ["--file", "t"],
            "tune": ["--file", "t", "--config", "c"]}[kind]


class Usage(CommandTest):
    def test_help(self):
        result = call("eval", "--help")
        self.assertEqual(result.returncode, 0)
        for kind in KINDS:
            self.assertIn(f"\n  {kind} ", result.stdout)
            help_text = call("eval", kind, "--help").stdout
            self.assertIn(f"Usage: adamas eval {kind} --model MODEL.gguf", help_text)
            for setting in ("budget", "policy", "share", "max-noise", "isa"):
                self.assertIn(f"--{setting} ", help_text)
            for other in ("--rows", "--stats"):  # eval's own affair
                self.assertNotIn(f"{other} ", help_text)

    def test_wrong_usage(self):
        for arguments, words in [
            (["eval"], ["say what to evaluate: perplexity, passkey, needle, recall, tune"]),
            (["eval", "perplexty"], ["perplexty", "did you mean perplexity?"]),
            (["eval", "passkey", "--lenghts", "5"], ["adamas eval passkey", "did you mean --lengths?"]),
            (["eval", "perplexity", "--rows", "all"], ["--rows is not a flag of adamas eval perplexity"]),
            (["eval", "perplexity", "book.txt"], ["book.txt is one argument too many"]),
            (["eval", "perplexity", "--file"], ["--file needs a value"]),
            (["eval", "perplexity", "--context", "256", "--context", "512"], ["--context is given twice"]),
            (["eval", "perplexity", "--model", "m", "--file", "t", "--html", ""], ["--html", "is empty"]),
            (["eval", "perplexity", "--", "x"], ["only `adamas run` takes --"]),
            (["eval", "perplexity", "--model", "m"], ["the text is missing", "--file"]),
            (["eval", "needle", "--model", "m"], ["the text is missing", "--file"]),
            (["eval", "recall", "--model", "m"], ["the text is missing", "--file"]),
            (["eval", "tune", "--model", "m", "--file", "t"], ["--config"]),
            (["eval", "recall", "--model", "m", "--file", "t", "--policy", "full"], ["the policy full selects nothing"]),
            (["eval", "recall", "--model", "m", "--file", "t", "--context", "64", "--samples", "33"], ["--samples 33", "32"]),
            (["eval", "tune", "--model", "m", "--file", "t", "--config", "c", "--min-context", "0,9"], ["min_context", "one value"]),
            (["eval", "recall", "--enough", "1.5"], ["--enough"]),
            (["eval", "passkey", "--ask", "often"], ["--ask"]),
            (["eval", "passkey", "--lengths", "2048,many"], ["many"]),
            (["eval", "passkey", "--depths", "0"], ["--depths"]),
            (["eval", "perplexity", "--threads", "0"], ["--threads"]),
            (["eval", "perplexity", "--context", "1e9"], ["1e9"]),
            (["eval", "perplexity", "--model", "m", "--file", "t", "--context", "100", "--score-from", "99"],
             ["--score-from 99", "it is at most 98"]),
        ]:
            with self.subTest(arguments=arguments):
                self.assert_fails(call(*arguments), 2, *words)
        for kind in KINDS:
            self.assert_fails(call("eval", kind, *needed(kind)), 2, "the model is missing")

    def test_settings_out_of_range(self):
        for arguments, words in [
            (["--policy", "adamas,best"], ["best", "adamas | full | quest | streaming"]),
            (["--budget", "32,0"], ["0 is not in its range: auto | 1 to 2147483647"]),
            (["--budget", "32,3"], ["4 + 0", "budget, 3"]),
            (["--estimator", "cosine"], ["cosine", "dot | manhattan"]),
            (["--share", "0"], ["0.000001 to 1"]),
            (["--sketch", "0"], ["--sketch"]),
            (["--min-mass", "2"], ["0 to 1"]),
            (["--isa", "AVX9"], ["AVX9"]),
        ]:
            with self.subTest(arguments=arguments):
                self.assert_fails(call("eval", "perplexity", "--model", "m", "--file", "t", *arguments), 2, *words)
        environment = clean_environment(ADAMAS_CONFIG="settings.txt")
        self.assert_fails(call("eval", "passkey", "--model", "m", environment=environment), 2, "settings.txt")
        self.assert_fails(call("eval", "passkey", "--model", "m", "--settings", "none,other.txt"), 2, "other.txt")
        for name, value, range_ in [("ADAMAS_ROWS", "some", "decode | all"), ("ADAMAS_STATS", "yes", "0 | 1")]:
            for arguments in (["eval", "perplexity", "--file", "t"], ["bench"]):
                result = call(*arguments, "--model", "m", environment=clean_environment(**{name: value}))
                self.assert_fails(result, 2, name, f"{value} is not in its range: {range_}")
        environment = clean_environment(ADAMAS_BUDGET="none")
        self.assert_fails(call("eval", "passkey", "--model", "m", environment=environment), 2, "none", "1 to 2147483647")


@unittest.skipUnless(HAS_READER and ENGINE.exists(), "built without llama.cpp")
class Files(CommandTest):
    def setUp(self):
        super().setUp()
        self.text = self.folder / "text.txt"
        self.text.write_text("In the beginning was the word. " * 100)

    def evaluate(self, *arguments, kind="perplexity"):
        return call("eval", kind, "--resume", self.folder / "finished", "--threads", "1", *arguments)

    def test_bad_models(self):
        path = self.folder / "model.gguf"
        self.assert_fails(self.evaluate("--model", path, "--file", self.text), 1, "there is no such file")
        self.assert_fails(self.evaluate("--model", self.folder, "--file", self.text), 1, "is not a file")
        for data, words in [(b"junk", "is not a GGUF file"), (model()[:200], "model.gguf"), (model(), "the engine cannot load")]:
            path.write_bytes(data)
            with self.subTest(words=words):
                self.assert_fails(self.evaluate("--model", path, "--file", self.text), 1, words)

    def test_no_engine(self):
        for folder in ("bin", "lib"):
            (self.folder / folder).mkdir()
        shutil.copy(COMMAND, self.folder / "bin/adamas")
        (self.folder / "lib" / soname(LIBRARY)).symlink_to(LIBRARY)
        path = self.folder / "model.gguf"
        path.write_bytes(model())
        result = call("eval", "passkey", "--model", path, command=self.folder / "bin/adamas")
        self.assert_fails(result, 1, "the engine's library", "is not there")

    def test_bad_texts(self):
        missing = self.folder / "missing.txt"
        for kind in ("perplexity", "needle", "recall"):
            self.assert_fails(self.evaluate("--model", "m", "--file", missing, kind=kind), 1, "missing.txt", "no such file")
            self.assert_fails(self.evaluate("--model", "m", "--file", self.folder, kind=kind), 1, "is a folder")

    @unittest.skipUnless(MODELS, "ADAMAS_MODELS_DIR is not set")
    def test_too_short(self):
        self.assert_fails(self.evaluate("--model", SMOLLM2, "--file", self.text), 1, "text.txt has 701 tokens", "8192")
        self.assert_fails(self.evaluate("--model", SMOLLM2, "--file", self.text, "--context", "300", "--chunks", "3"), 1, "900")
        self.assert_fails(self.evaluate("--model", SMOLLM2, "--file", self.text, kind="recall"), 1, "701 tokens")
        self.assert_fails(self.evaluate("--model", SMOLLM2, "--file", self.text, kind="needle"), 1, "701 tokens")
        self.assert_fails(self.evaluate("--model", SMOLLM2, "--lengths", "20", kind="passkey"), 2, "no room for the question")

    @unittest.skipUnless(MODELS, "ADAMAS_MODELS_DIR is not set")
    @unittest.skipIf(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 150 << 30, "there is room")
    def test_no_room(self):
        self.text.write_text("word " * 70000)
        budgets = ",".join(str(2 ** i) for i in range(3, 31))
        result = self.evaluate("--model", SMOLLM2, "--file", self.text, "--context", "65536", "--budget", budgets,
                               "--recent", ",".join(map(str, range(4))))
        self.assertEqual(result.returncode, 1)
        self.assertIn("more than the 8192 that the model was made for", result.stderr)
        self.assertIn("the K and V of 113 contexts of 65536 tokens take 158.9 GiB", result.stderr)  # 30 layers, 3 x (64 + 64) x 2 bytes

    def test_what_cannot_be_written_is_said_before_the_work(self):
        nowhere = self.folder / "none/page"
        for kind, flag in [("perplexity", "--html"), ("passkey", "--html"), ("recall", "--html"), ("tune", "--config")]:
            arguments = {**dict(zip(*[iter(needed(kind))] * 2)), "--model": "m", flag: nowhere}
            with self.subTest(kind=kind):
                self.assert_fails(self.evaluate(*[word for pair in arguments.items() for word in pair], kind=kind), 1,
                                  "none/page", "cannot be written")


class Outputs(CommandTest):
    """Nothing that is read is written over, and no two outputs are one file."""

    def setUp(self):
        super().setUp()
        self.names = {name: self.folder / name for name in ("model", "text", "settings")}
        for name, path in self.names.items():
            path.write_text("" if name == "settings" else name)
        self.link, self.hard = self.folder / "link", self.folder / "hard"
        self.link.symlink_to(self.names["text"])
        self.hard.hardlink_to(self.names["text"])

    def assert_refused(self, *arguments, words):
        before = {path: path.read_bytes() for path in self.names.values()}
        self.assert_fails(call(*arguments, "--model", self.names["model"], "--settings", self.names["settings"]), 2, words)
        self.assertEqual(before, {path: path.read_bytes() for path in self.names.values()})

    def test_inputs(self):
        words = "is read, and would be written over"
        for path in (*self.names.values(), self.link, self.hard, self.folder / "." / "text"):
            for kind, flags in [("perplexity", ["--html", "--resume"]), ("needle", ["--html"]), ("recall", ["--resume"]), ("tune", ["--config"])]:
                for flag in flags:
                    with self.subTest(kind=kind, flag=flag, path=path):
                        self.assert_refused("eval", kind, "--file", self.names["text"], flag, path, words=words)
            with self.subTest(path=path):
                if BENCH.exists() and path.name in ("model", "settings"):
                    self.assert_refused("bench", "--plot", path, words=words)

    def test_outputs(self):
        new = self.folder / "new"
        self.assert_refused("eval", "recall", "--file", self.names["text"], "--html", new, "--resume", self.folder / "." / "new",
                            words="cannot be both --html and --resume")
        self.assert_refused("eval", "tune", "--file", self.names["text"], "--html", new, "--config", new, words="cannot be both")
        self.assertFalse(new.exists())

    def test_a_folder(self):
        self.assert_fails(call("eval", "passkey", "--model", "m", "--html", self.folder), 1, "cannot be written", "directory")


@unittest.skipUnless(HAS_READER and ENGINE.exists() and MODELS, "built without llama.cpp, or ADAMAS_MODELS_DIR is not set")
class Resume(CommandTest):
    def setUp(self):
        super().setUp()
        self.text, self.state = self.folder / "text.txt", self.folder / "finished"
        self.text.write_text("and again " * 100)

    def evaluate(self, *more):
        return call("eval", "perplexity", "--model", SMOLLM2, "--file", self.text, "--context", "64", "--threads", "1", "--resume", self.state, *more)

    def test_another_file_is_left_alone(self):
        for content in ("a text\n", "a text", '{"name": 1}\n', '[1, 2]\n', '{"key": 1, "part": "all", "result": 2}\n'):
            for fresh in ([], ["--fresh"]):
                with self.subTest(content=content, fresh=fresh):
                    self.state.write_text(content)
                    self.assert_fails(self.evaluate(*fresh), 2, "--resume", "line 1", "finished")
                    self.assertEqual(self.state.read_text(), content)

    def test_an_interrupted_file(self):
        self.assertEqual(self.evaluate().returncode, 0)
        whole = self.state.read_text()
        for torn in ('{"k', whole[: len(whole) // 2], whole + '{"key":"torn', '{"key":"torn\n' + whole):
            self.state.write_text(torn)
            with self.subTest(torn=torn):
                for _ in range(2):
                    result = self.evaluate()
                    self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn("1 of 1 parts were finished before", result.stderr)


@unittest.skipUnless(HAS_READER and ENGINE.exists() and MODELS, "built without llama.cpp, or ADAMAS_MODELS_DIR is not set")
class Tune(CommandTest):
    def test_what_is_written_is_read_again(self):
        """With most layers dense, and with most layers sparse."""
        text, settings = self.folder / "text.txt", self.folder / "settings.txt"
        text.write_text("".join(f"The {n}th of them went to town {n % 7} times. " for n in range(100)))
        arguments = ["--model", SMOLLM2, "--file", text, "--context", "256", "--min-context", "100", "--samples", "1", "--budget", "16",
                     "--resume", self.folder / "finished"]
        rows = json.loads(call("eval", "recall", *arguments, "--json").stdout)
        mass = [sum(row["mass_true"] for row in rows if row["layer"] == layer) / 9 for layer in range(30)]
        for sparse in (10, 20):
            enough = sum(sorted(mass, reverse=True)[sparse - 1 : sparse + 1]) / 2
            result = call("eval", "tune", *arguments, "--enough", enough, "--config", settings)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual("is replaced at the end" in result.stderr, sparse == 20, "said when there is one")
            self.assertIn(f"\npolicy = {'full' if sparse == 10 else 'adamas'}\n", settings.read_text())
            report = json.loads(call("check", SMOLLM2, "--json", "--config", settings).stdout)
            self.assertEqual({layer["layer"] for layer in report["layers"] if layer["sparse"]},
                             {layer for layer in range(30) if mass[layer] >= enough})
            told = json.loads(call("info", "--json", "--config", settings).stdout)["settings"]
            self.assertEqual({s["name"]: s["value"] for s in told}["min_context"], "100")
            measured = call("eval", "perplexity", *arguments[:6], "--threads", "1", "--settings", settings, "--resume", self.folder / "finished", "--json")
            full, own = json.loads(measured.stdout)
            self.assertGreater(own["tokens_read"], 0, measured.stderr)


@unittest.skipUnless(HAS_READER and ENGINE.exists() and MODELS, "built without llama.cpp, or ADAMAS_MODELS_DIR is not set")
class Lists(CommandTest):
    def rows(self, *arguments):
        text = self.folder / "text.txt"
        text.write_text("".join(f"The {n}th of them went to town {n % 7} times. " for n in range(100)))
        result = call("eval", "perplexity", "--model", SMOLLM2, "--file", text, "--context", "96", "--min-context", "0",
                      "--threads", "1", "--json", "--resume", self.folder / "finished", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def test_every_combination_and_none_twice(self):
        rows = self.rows("--policy", "quest,full,adamas,streaming", "--estimator", "dot,manhattan", "--budget", "16,32", "--budget", "16")
        cases = [(row["policy"], row["estimator"], row["budget"]) for row in rows]
        self.assertEqual(cases[0], ("full", None, None))
        self.assertEqual(sorted(cases[1:]), sorted(
            [("adamas", estimator, budget) for estimator in ("dot", "manhattan") for budget in (16, 32)]
            + [(policy, None, budget) for policy in ("quest", "streaming") for budget in (16, 32)]))

    def test_further_settings_have_a_label(self):
        rows = self.rows("--policy", "adamas,streaming", "--budget", "16", "--dense-layers", "0,2", "--share", "0.01")
        self.assertEqual([(row["policy"], row["label"]) for row in rows],
                         [("full", None), ("adamas", "dense_layers=0"), ("adamas", "dense_layers=2"),
                          ("streaming", "dense_layers=0"), ("streaming", "dense_layers=2")])
        self.assertEqual(rows[1]["settings"]["share"], "0.01")
        self.assertNotIn("share", rows[3]["settings"])  # means nothing to it

    def test_a_row(self):
        full, adamas = self.rows("--budget", "16")
        self.assertEqual(set(full), set(adamas))
        self.assertEqual(set(full), {"file", "model", "context", "policy", "estimator", "budget", "label", "settings", "perplexity",
                                     "ratio", "ratio_error", "kl", "same_top", "mass", "tokens_read", "seconds", "guarded", "widened", "scored"})
        self.assertEqual((full["ratio"], full["ratio_error"], full["kl"], full["same_top"]), (1, 0, 0, 1))
        self.assertIsNone(full["tokens_read"])
        self.assertEqual((full["scored"], adamas["scored"]), (47, 47))
        self.assertAlmostEqual(adamas["ratio"], adamas["perplexity"] / full["perplexity"], places=9)
        self.assertGreater(adamas["kl"], 0)
        self.assertGreaterEqual(adamas["tokens_read"], 16)

    def test_an_automatic_budget(self):
        rows = self.rows("--policy", "adamas,quest", "--share", "0.05,0.2", "--budget", "auto")
        self.assertEqual([(row["policy"], row["budget"], row["label"]) for row in rows],
                         [("full", None, None), ("adamas", "auto", "share=0.05"), ("adamas", "auto", "share=0.2"), ("quest", 128, None)])

    def test_a_text_for_people(self):
        text = self.folder / "text.txt"
        text.write_text("and again " * 100)
        result = call("eval", "perplexity", "--model", SMOLLM2, "--file", text, "--context", "96", "--threads", "1",
                      "--resume", self.folder / "finished", "--html", self.folder / "page.html")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"\Atext.txt: a window of 96 tokens, 47 tokens scored")
        self.assertRegex(result.stdout, r"\npolicy +estimator +budget +perplexity +ratio")
        self.assertIn('"perplexity"', (self.folder / "page.html").read_text())

    def test_nothing_sparse_is_said(self):
        text = self.folder / "text.txt"
        text.write_text("and again " * 100)

        def said(kind, *arguments):
            result = call("eval", kind, "--model", SMOLLM2, "--threads", "1", "--resume", self.folder / "finished", *arguments)
            self.assertEqual(result.returncode, 0, result.stderr)
            return [line for line in result.stdout.splitlines() if "nothing ran sparse" in line]

        perplexity = ["perplexity", "--file", text, "--context", "96"]
        self.assertIn("below min_context, 2048; a smaller --min-context", *said(*perplexity))
        self.assertIn("within the budget, 128; a smaller --budget", *said(*perplexity, "--min-context", "0"))
        self.assertEqual(said(*perplexity, "--min-context", "0", "--budget", "16"), [])
        line, = said(*perplexity, "--min-context", "0", "--budget", "16,128")
        self.assertIn("with adamas dot 128: ", line)
        self.assertIn("below min_context, 2048", *said("passkey", "--lengths", "200", "--depths", "1"))
        self.assertEqual(said("passkey", "--lengths", "200", "--depths", "1", "--min-context", "0", "--budget", "64"), [])

    def test_a_flag_wins_over_a_variable(self):
        environment = clean_environment(ADAMAS_SINKS="40", ADAMAS_BUDGET="8")  # which do not go together
        text = self.folder / "text.txt"
        text.write_text("and again " * 100)
        result = call("eval", "perplexity", "--model", SMOLLM2, "--file", text, "--context", "64", "--threads", "1", "--budget", "48",
                      "--resume", self.folder / "finished", environment=environment)
        self.assertEqual(result.returncode, 0, result.stderr)


if __name__ == "__main__":
    unittest.main()
