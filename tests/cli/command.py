"""The command under test: where it is, how to call it, and what every one of its failures must look like."""

import os
import pathlib
import subprocess
import tempfile
import unittest

COMMAND = os.environ["ADAMAS_COMMAND"]
HAS_READER = os.environ.get("ADAMAS_HAS_READER") == "1"
MODELS = os.environ.get("ADAMAS_TEST_MODELS", "")


def clean_environment(**variables):
    """The environment without any setting of ours, plus `variables`."""
    ours = ("ADAMAS_", "GGML_BACKEND_PATH", "LLAMA_ARG_FLASH_ATTN")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | variables


def call(*arguments, command=COMMAND, environment=None, **options):
    return subprocess.run(
        [command, *map(str, arguments)],
        env=clean_environment() if environment is None else environment,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def soname(library):
    """The name by which programs ask for a shared library: libadamas.so.0.1 of libadamas.so.0.1.0."""
    return library.name.rsplit(".", 1)[0]


class CommandTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name).resolve()

    def assert_fails(self, result, code, *words):
        """One sentence on standard error, nothing on standard output, that exit code."""
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertRegex(result.stderr, r"\Aadamas: [^\n]+\n\Z")
        for word in words:
            self.assertIn(word, result.stderr)
