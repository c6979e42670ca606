"""adamas explain with a small model: the page of a real answer shows where it was read."""

import json
import os
import pathlib
import subprocess
import unittest

from page_test import BrowserTest, need, need_browser

COMMAND = pathlib.Path(os.environ["ADAMAS_COMMAND"])
MODELS = pathlib.Path(os.environ.get("ADAMAS_TEST_MODELS") or "models")
MODEL, TEXT = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf", MODELS / "kjv.txt"
FACT = "The telephone number of the museum is 555-2368."


class Real(BrowserTest):
    def explain(self, document, *more):
        text, page, answer = self.folder / "text.txt", self.folder / "page.html", self.folder / "answer.json"
        text.write_text(document)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ADAMAS_")}
        done = subprocess.run([COMMAND, "explain", "--model", MODEL, "--file", text, "--ask", "What is the telephone number of the museum?",
                               "--tokens", "24", "--threads", "1", "--html", page, "--json", answer, *more],
                              env=environment, capture_output=True, text=True, timeout=100)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done, page, json.loads(answer.read_text())

    def verses(self, count):
        return [line.split(" ", 1)[1] for line in TEXT.read_text().splitlines()[:count]]

    def test_the_source_is_found(self):
        lines = self.verses(24)
        lines.insert(15, FACT)
        done, page, answer = self.explain("\n".join(lines), "--min-context", "256", "--budget", "64")
        self.assertIn("555-2368", done.stdout)
        self.assertIn("shows what it was read from", done.stderr)
        self.assertEqual(answer["reads"]["steps"], len(answer["answer"]["tokens"]))
        self.assertIsNone(answer["nothing"])
        self.assertEqual("".join(answer["prompt"]["tokens"]).count(FACT), 1)
        self.assertLess(page.stat().st_size, 4_000_000)

        self.open(page)
        self.assertIn("555-2368", self.browser.script("return answer.textContent"))
        self.assertIn("555-2368", self.browser.script("return document.querySelector('#passages q').textContent"))

        # Each digit is read where it stands in the text; "555" are three tokens, so one of them.
        tokens = answer["answer"]["tokens"]
        step = max(i for i, token in enumerate(tokens) if token.strip() == "3")
        self.browser.hover(f"#answer span[data-step='{step}']")
        self.browser.wait(f"what.textContent.includes('token {step + 1} of')")
        hottest = self.browser.script("return [...document.querySelectorAll('#text .document .h20')].map(one => one.textContent)")
        self.assertEqual(hottest, ["3"])

        whole = self.browser.script("return document.querySelector('#shares').ariaLabel")
        self.browser.choose("#layer", "0")
        self.assertNotEqual(self.browser.script("return document.querySelector('#shares').ariaLabel"), whole)

    def test_a_short_text(self):
        done, page, answer = self.explain(FACT)
        self.assertIn("nothing was selected", done.stderr)
        self.assertIn("below min_context, 2048", answer["nothing"])
        self.open(page)
        self.assertIn("below min_context, 2048", self.browser.script("return notice.textContent"))
        _, page, answer = self.explain(FACT, "--min-context", "1", "--budget", "16")
        self.assertIsNone(answer["nothing"])


if __name__ == "__main__":
    need_browser()
    for path in (MODEL, TEXT, COMMAND.parent.parent / "llama" / "bin" / "libllama.so"):
        need(path.exists(), path)
    unittest.main()
