"""What the tests of the pages share: a folder, a page made of any document, and a skip that ctest shows."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import browser

WRITE_PAGE = os.environ["ADAMAS_WRITE_PAGE"]
SKIPPED = 77  # ctest shows the test as skipped, not as passed


def need(truth, what):
    if not truth:
        print(f"skipped: there is no {what}")
        sys.exit(SKIPPED)


def need_browser():
    need(browser.CHROMIUM and browser.DRIVER, "chromium and chromedriver")


class PageTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name).resolve()

    def write(self, kind, document, name="page.html", check=True):
        source = self.folder / "document.json"
        source.write_text(json.dumps(document), encoding="utf-8")
        done = subprocess.run([WRITE_PAGE, kind, source, self.folder / name], capture_output=True, text=True)
        if check:
            self.assertEqual(done.returncode, 0, done.stderr)
            return self.folder / name
        return done


class BrowserTest(PageTest):
    """One browser for all tests of the class."""

    @classmethod
    def setUpClass(cls):
        cls.browser = browser.Browser()
        cls.addClassCleanup(cls.browser.__exit__)

    def open(self, path, width=1280, height=900):
        self.browser.size(width, height)
        self.browser.open(path)

    def tearDown(self):
        self.assertEqual(self.browser.complaints(), [])
        self.assertEqual(self.browser.requests(), [])
        self.assertIsNone(self.browser.script("return window.broken || null"))
        self.assertLessEqual(self.browser.script("return document.documentElement.scrollWidth - innerWidth"), 0, "wider than the window")
