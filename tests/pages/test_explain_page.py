"""The page of `adamas explain` in a browser, from made-up reads whose source is known."""

import unittest

import samples
from page_test import BrowserTest, need_browser

WORDS = [f"word{i}" for i in range(400)]
ANSWER = [" five", " words", " from", " the", " middle", "."]
SHADES = "[...document.querySelectorAll('#text .line span')].filter(one => /\\bh\\d/.test(one.className)).map(one => Number(one.id.slice(1)))"
DOCUMENT = f"({SHADES}).filter(token => token > 0 && token <= 400)"


class Explain(BrowserTest):
    def explain(self, *, width=1280, **changed):
        arguments = {"words": WORDS, "source": 200, "answer": ANSWER} | changed
        self.open(self.write("explain", samples.explain(**arguments)), width)

    def shades(self):
        return set(self.browser.script(f"return {DOCUMENT}"))

    def token(self, step):
        return f"#answer span[data-step='{step}']"

    def test_the_source_stands_out(self):
        self.explain()
        self.assertEqual(self.shades(), set(range(201, 206)))
        passage = self.browser.script("return document.querySelector('#passages q').textContent")
        for i in range(200, 205):
            self.assertIn(f"word{i}", passage)

    def test_pointing_at_a_token(self):
        self.explain()
        whole = self.shades()
        for step in (1, 3):
            self.browser.hover(self.token(step))
            self.browser.wait(f"document.querySelector('#what').textContent.includes('token {step + 1} of 6')")
            self.assertEqual(self.shades(), {201 + step})
        self.browser.hover("#question")
        self.browser.wait("document.querySelector('#what').textContent.includes('the whole answer')")
        self.assertEqual(self.shades(), whole)

    def test_a_pinned_token_stays(self):
        self.explain()
        self.browser.click(self.token(2))
        self.browser.hover("#question")
        self.browser.wait("document.querySelector('#answer [aria-selected=true]')")
        self.assertEqual(self.shades(), {203})
        self.browser.click("#release")
        self.assertEqual(self.shades(), set(range(201, 206)))

    def test_keys(self):
        self.explain()
        self.browser.script("document.querySelector('#answer [tabindex=\"0\"]').focus()")
        self.browser.press("Right", "Right", "Enter")
        self.assertEqual(self.browser.wait("document.querySelector('#answer [aria-selected=true]')?.dataset.step"), "2")
        self.assertEqual(self.shades(), {203})
        self.browser.press("Escape")
        self.browser.wait("!document.querySelector('#answer [aria-selected=true]')")
        self.browser.script("document.querySelector('#grid svg').focus()")
        self.browser.press("Right", "Down", "Enter")
        self.assertEqual(self.browser.script("return [layer.value, head.value]"), ["2", "1"])

    def test_layer_and_head(self):
        self.explain()
        self.browser.choose("#measure", "weight")
        whole = self.shades()
        self.browser.choose("#layer", "3")
        self.browser.choose("#head", "1")
        sharp = self.shades()
        self.assertLessEqual(set(range(201, 206)), sharp)
        self.assertIn("layer 3, head 1", self.browser.script("return what.textContent"))
        self.assertIn("head of layer 3", self.browser.script("return document.querySelector('#mass-title').textContent"))
        self.browser.click("#grid [data-layer='1'][data-head='0']")
        self.assertEqual(self.browser.script("return [layer.value, head.value]"), ["1", "0"])
        other = self.shades()
        self.assertFalse({202, 203} & other)
        self.browser.press("Escape")
        self.assertEqual(self.shades(), whole)

    def test_every_measure(self):
        self.explain()
        seen = []
        for name in ("surplus", "weight", "often"):
            self.browser.choose("#measure", name)
            seen.append(self.shades())
            self.assertTrue(self.browser.script("return meaning.textContent"))
        self.assertLess(seen[0], seen[2])

    def test_a_passage_is_jumped_to(self):
        self.explain(words=[f"word{i}" + "." * (i % 10 == 9) for i in range(3000)], source=2500)
        self.browser.script("document.documentElement.style.scrollBehavior = 'auto'")
        self.assertEqual(self.browser.script("return scrollY"), 0)
        self.browser.click("#passages a")
        self.browser.wait("(box => box.top > document.querySelector('#top').offsetHeight && box.bottom < innerHeight)"
                          "(document.querySelector('#t2501').getBoundingClientRect())")

    def test_the_map(self):
        self.explain(words=[f"word{i}" for i in range(3000)], source=2500)
        inked = "[...map.firstChild.getContext('2d').getImageData(0, 0, 1, 1).data].length && map.firstChild.height > 100"
        self.assertTrue(self.browser.wait(inked))
        self.browser.script("map.focus()")
        self.browser.press("Down")
        self.browser.wait("scrollY > 300")

    def test_what_was_not_seen_is_said(self):
        self.explain(unseen=(0, 2))
        text = self.browser.script("return footer.innerText")
        self.assertIn("The engine computed 2 of 4 layers itself", text)
        self.assertIn("A note & <b>more</b>.", text)
        self.assertEqual(self.browser.script("return layer.options.length"), 3)

    def test_nothing_selected(self):
        why = "nothing was selected: the context of 40 tokens is below min_context, 1024"
        self.explain(nothing=why)
        self.assertEqual(self.browser.script("return notice.textContent"), why.capitalize() + ".")
        self.assertFalse(self.browser.script("return side.checkVisibility()"))
        self.assertEqual(self.shades(), set())

    def test_hostile_texts(self):
        self.explain(words=samples.HOSTILE * 20, source=30, answer=samples.HOSTILE, question=samples.HOSTILE[0])
        text = self.browser.script("return document.querySelector('#text').textContent")
        for words in samples.HOSTILE:
            self.assertIn(words, text)
        self.assertEqual(self.browser.script("return question.textContent"), samples.HOSTILE[0])

    def test_one_token(self):
        self.explain(answer=["."])
        self.assertEqual(self.shades() & set(range(195, 210)), {201})

    def test_a_character_of_several_tokens(self):
        words = list(WORDS)
        self.open(self.write("explain", samples.explain(words, 200, ANSWER) | {}))
        document = samples.explain(words, 200, ANSWER)
        for token in (201, 202):  # their text is in the one after them
            document["prompt"]["tokens"][token] = ""
        self.open(self.write("explain", document))
        self.assertEqual(self.shades(), {203, 204, 205})

    def test_a_phone_and_the_dark(self):
        for theme in ("dark", "light"):
            self.browser.theme(theme)
            self.explain(width=390)
            self.browser.wait("map.firstChild.height > 0")
            self.assertEqual(self.shades(), set(range(201, 206)))

    def test_a_template_without_document(self):
        template = self.folder / "page.html"
        page = self.write("explain", {})
        text = page.read_text()
        template.write_text(text.replace('id="document">{}', 'id="document">{{document}}'))
        self.open(template)
        self.assertIn("template", self.browser.script("return notice.textContent"))


if __name__ == "__main__":
    need_browser()
    unittest.main()
