"""The report in a browser: every section, tables that sort, drawings that tell their values, hostile texts shown as texts."""

import unittest

import samples
from page_test import BrowserTest, need_browser

LOOK = """
const all = selector => [...document.querySelectorAll(selector)];
return {sections: all('main > section[id]').map(one => one.id), texts: document.body.innerText,
        points: all('#perplexity svg .point').length, cells: all('#passkey svg rect').length, heads: all('#recall svg rect').length,
        averages: all('#scores svg .point').length, means: (document.querySelector('#scores table') || {innerText: ''}).innerText,
        axes: all('svg .strong').map(one => one.textContent)}"""


class Report(BrowserTest):
    def test_sections_and_drawings(self):
        self.open(self.write("report", samples.report()))
        self.browser.wait("document.querySelectorAll('#perplexity svg .point').length")
        look = self.browser.script(LOOK)
        self.assertEqual(look["sections"], ["perplexity", "passkey", "needle", "scores", "recall"])
        self.assertEqual(look["points"], 2 * (5 * 6 + 1), "a point a budget, and the automatic one")
        self.assertEqual(look["cells"], 4 * 20)
        self.assertEqual(look["heads"], 30 * 9)
        self.assertEqual(look["averages"], 2 * 3 * 2, "a point for each length, policy and budget")
        self.assertEqual(look["means"].count("37.5 %"), 2 * 7 * 3, "the mean of 1/4 and 2/4, of each task and of both")
        for words in ("tokens that a query head reads in full (log scale)", "ratio (to dense)", "dense attention", "depth",
                      "length of the text (tokens)", "layer", "query head", "true mass (share of the softmax)"):
            self.assertIn(words, look["axes"])
        for words in ("adamas eval --model smollm2.gguf", "one that was made up", "7.759", "1.1100", "19 of 20 found"):
            self.assertIn(words, look["texts"])

    def test_a_table_sorts(self):
        self.open(self.write("report", samples.report()))
        column = "[...document.querySelectorAll('#perplexity tbody tr')].map(row => row.cells[5].textContent)"
        before = self.browser.script(f"return {column}")
        self.browser.click("#perplexity th:nth-child(6) button")
        rising = [float(value) for value in self.browser.script(f"return {column}")]
        self.assertEqual(rising, sorted(rising))
        self.assertNotEqual(before, [f"{value:.3f}" for value in rising])
        self.browser.click("#perplexity th:nth-child(6) button")
        self.assertEqual([float(value) for value in self.browser.script(f"return {column}")], rising[::-1])
        self.assertEqual(self.browser.script("return document.querySelector('#perplexity th:nth-child(6)').ariaSort"), "descending")

    def test_pointing_and_keys_tell_values(self):
        self.open(self.write("report", samples.report()))
        self.browser.wait("document.querySelectorAll('#perplexity svg .point').length")
        self.browser.script("document.querySelector('#perplexity figure').scrollIntoView()")
        self.browser.hover("#perplexity svg .point")
        self.assertIn("ratio (to dense): 1.", self.browser.wait("!tip.hidden && tip.textContent"))
        self.browser.press("Escape")
        self.browser.wait("tip.hidden")
        # Scrolling hides the tip, a frame later: only then are keys pressed.
        self.browser.script("document.querySelector('#passkey svg').focus(); window.settled = false;"
                            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => { window.settled = true; }, 50)))")
        self.browser.wait("window.settled")
        self.browser.press("Right")
        first = self.browser.wait("!tip.hidden && tip.textContent")
        self.browser.press("Down")
        self.assertNotEqual(self.browser.script("return tip.textContent"), first)

    def test_a_choice_draws_anew(self):
        self.open(self.write("report", samples.report()))
        read = "document.querySelector('#recall figure h3').textContent"
        before = self.browser.script(f"return {read}")
        self.browser.script("const choice = document.querySelectorAll('#recall select')[1]; choice.selectedIndex = 3;"
                            "choice.dispatchEvent(new Event('change'))")
        self.assertIn("noise", self.browser.script(f"return {read}"))
        self.assertNotIn("noise", before)

    def test_hostile_texts(self):
        hostile = " ".join(samples.HOSTILE)
        self.open(self.write("report", samples.report(hostile)))
        texts = self.browser.script(LOOK)["texts"]
        for words in ("</script><script>window.broken = true</script>", "<img src=x", "&amp; {{document}}", "שלום"):
            self.assertIn(words, texts)

    def test_what_is_absent(self):
        report = samples.report()
        for given in ([], ["passkey"], ["perplexity", "recall"]):
            with self.subTest(given=given):
                self.open(self.write("report", {name: report[name] for name in given}))
                self.assertEqual(self.browser.script(LOOK)["sections"], given)
        self.open(self.write("report", {"perplexity": [{"policy": "full", "perplexity": 5, "kl": None}], "recall": [{"layer": 0, "head": 0, "noise": None}]}))
        self.assertEqual(self.browser.script(LOOK)["sections"], ["perplexity", "recall"])

    def test_a_phone(self):
        self.open(self.write("report", samples.report()), 390, 844)
        self.browser.wait("document.querySelectorAll('#perplexity svg .point').length")


if __name__ == "__main__":
    need_browser()
    unittest.main()
