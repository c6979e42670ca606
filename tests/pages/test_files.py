"""The pages as files: whole, self-contained, and their document safe inside them."""

import html.parser
import json
import os
import re
import stat
import unittest

import samples
from page_test import PageTest


class Reader(html.parser.HTMLParser):
    """What an HTML parser sees: every element, and the text of the one that holds the document."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.document, self.inside = [], "", False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = ("id", "document") in attributes

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.document += data


class Files(PageTest):
    def pages(self):
        hostile = " ".join(samples.HOSTILE)
        yield "report", samples.report(hostile)
        yield "explain", samples.explain(samples.HOSTILE * 4, 3, [" a", " b", hostile, ""], question=hostile)

    def test_the_document_comes_back(self):
        for kind, document in self.pages():
            with self.subTest(kind=kind):
                text = self.write(kind, document).read_text(encoding="utf-8")
                reader = Reader(text)
                self.assertEqual(json.loads(reader.document), document)
                self.assertEqual([tag for tag, _ in reader.tags].count("script"), 2)
                self.assertNotIn("<", reader.document)
                self.assertIsNone(re.search("[\u2028\u2029]", text))

    def test_nothing_comes_from_elsewhere(self):
        for kind, document in self.pages():
            with self.subTest(kind=kind):
                reader = Reader(self.write(kind, document).read_text(encoding="utf-8"))
                for tag, attributes in reader.tags:
                    self.assertNotIn("src", attributes, tag)
                    self.assertEqual(attributes.get("href", "data:,"), "data:,", tag)
                policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
                self.assertIn("default-src 'none'", policy)

    def test_a_file_is_replaced_as_a_whole(self):
        page = self.folder / "page.html"
        page.write_text("old")
        link = self.folder / "link.html"
        link.symlink_to(page)
        self.write("report", {}, "link.html")
        self.assertTrue(link.is_symlink())
        self.assertIn("<!doctype html>", page.read_text())
        self.assertEqual([path.name for path in self.folder.glob("*.partial")], [])
        self.assertEqual(stat.S_IMODE(page.stat().st_mode) & 0o600, 0o600)

    def test_what_cannot_be_written(self):
        done = self.write("report", {}, "none/page.html", check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("none/page.html cannot be written: No such file", done.stderr)
        done = self.write("report", {}, "/dev/full", check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("No space left", done.stderr)
        self.assertTrue(stat.S_ISCHR(os.stat("/dev/full").st_mode))


if __name__ == "__main__":
    unittest.main()
