"""adamas explain with what cannot be: a sentence before any minute is spent. What it makes is looked at in tests/pages."""

import os
import pathlib
import shutil
import unittest

from command import COMMAND, HAS_READER, MODELS, CommandTest, call
from gguf_writer import model

SMOLLM2 = pathlib.Path(MODELS) / "SmolLM2-135M-Instruct.Q4_1.gguf"
ENGINE = pathlib.Path(COMMAND).parent.parent / "llama" / "bin" / "libllama.so"


class Explain(CommandTest):
    def setUp(self):
        super().setUp()
        if not HAS_READER:
            self.skipTest("built without ADAMAS_GGML_DIR")
        self.text = self.folder / "text.txt"
        self.text.write_text("A text. " * 50)
        self.model = self.folder / "model.gguf"
        self.model.write_bytes(model())
        self.html = self.folder / "out.html"

    def explain(self, *more, command=COMMAND, **changed):
        arguments = {"model": self.model, "file": self.text, "ask": "What?", "html": self.html} | changed
        flags = [word for name, value in arguments.items() if value is not None for word in (f"--{name}", value)]
        return call("explain", *flags, *more, command=command)

    def assert_refused(self, result, code, *words):
        self.assert_fails(result, code, *words)
        self.assertFalse(self.html.exists())
        self.assertEqual(list(self.folder.glob("*.partial")), [])

    def test_a_flag_is_missing(self):
        for flag in ("model", "file", "ask", "html"):
            with self.subTest(flag=flag):
                self.assert_refused(self.explain(**{flag: None}), 2, f"explain: --{flag} is missing", "adamas explain --model")

    def test_values(self):
        for flag, value in [("--tokens", "0"), ("--tokens", "x"), ("--context", "-1"), ("--threads", "1e3"), ("--budget", "0")]:
            with self.subTest(flag=flag, value=value):
                self.assert_refused(self.explain(flag, value), 2)
        self.assert_refused(self.explain("--tokens", "3", "--tokens", "4"), 2, "--tokens is given twice")
        self.assert_refused(self.explain("--tokns", "3"), 2, "did you mean --tokens?")

    def test_the_document(self):
        self.assert_refused(self.explain(file=self.folder / "none.txt"), 1, "none.txt: there is no such file")
        self.assert_refused(self.explain(file=self.folder), 1, "is a folder")
        self.text.write_text(" \n\t\n")
        self.assert_refused(self.explain(), 1, "text.txt is empty")

    def test_the_model(self):
        if not ENGINE.exists():
            self.skipTest("there is no engine beside the command")
        self.assert_refused(self.explain(model=self.folder / "none.gguf"), 1, "none.gguf: there is no such file")
        self.model.write_bytes(b"junk" * 100)
        self.assert_refused(self.explain(), 1, "not a GGUF file")
        self.model.write_bytes(model())  # whole, and without a single weight
        self.assert_refused(self.explain(), 1, "the engine cannot load")

    def test_where_the_page_goes(self):
        self.assert_refused(self.explain(html=self.folder / "none" / "out.html"), 1, "cannot be written", "No such file")
        self.assert_refused(self.explain(html=self.folder), 1, "cannot be written", "directory")
        self.assert_refused(self.explain(json=self.html), 2, "cannot be both")
        before = self.text.read_bytes()
        self.assert_fails(self.explain(html=self.text), 2, "is read, and would be written over")
        self.assertEqual(self.text.read_bytes(), before)

    @unittest.skipUnless(SMOLLM2.exists() and ENGINE.exists(), "no model or no engine")
    def test_longer_than_the_context(self):
        self.assert_refused(self.explain("--context", "100", model=SMOLLM2), 1, "more than the 100 of --context")
        self.text.write_bytes(bytes(range(1, 256)) * 400000)
        self.assert_refused(self.explain(model=SMOLLM2), 1, "text.txt has 102000000 bytes", "cannot fit into the 8192 tokens")
        self.text.write_text("A text. " * 5000)
        self.assert_refused(self.explain(model=SMOLLM2), 1, "text.txt and the question are", "more than the 8192 of the model's context")

    def test_no_engine(self):
        alone = self.folder / "bin" / "adamas"
        alone.parent.mkdir()
        shutil.copy(COMMAND, alone)
        environment = {"LD_LIBRARY_PATH": str(pathlib.Path(os.environ["ADAMAS_LIBRARY"]).parent)}
        result = call("explain", "--model", self.model, "--file", self.text, "--ask", "What?", "--html", self.html, command=alone,
                      environment=environment)
        self.assert_refused(result, 1, "is not there")


if __name__ == "__main__":
    unittest.main()
