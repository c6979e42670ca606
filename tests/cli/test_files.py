"""adamas check on files that are not what they should be: a sentence and exit 1, whatever the bytes."""

import random
import struct
import unittest

from command import HAS_READER, CommandTest, call
from gguf_writer import gguf, model, text


class Files(CommandTest):
    def setUp(self):
        super().setUp()
        if not HAS_READER:
            self.skipTest("built without ADAMAS_GGML_DIR")
        self.path = self.folder / "model.gguf"

    def check(self, data, policy="full"):  # no layer sparse, so no self-test, which takes most of the time
        self.path.write_bytes(data)
        return call("check", self.path, "--context", "4096", "--policy", policy)

    def assert_refused(self, data, *words):
        self.assert_fails(self.check(data), 1, *words)

    def test_no_file(self):
        self.assert_fails(call("check", self.folder / "none.gguf"), 1, "there is no such file")
        self.assert_fails(call("check", self.folder), 1, "is not a file")
        self.assert_fails(call("check", "/dev/zero"), 1, "is not a file")

    def test_junk(self):
        for data in (b"", b"G", b"GGUF", b"junk" * 1000, bytes(5000), random.Random(1).randbytes(5000)):
            with self.subTest(start=data[:8]):
                self.assert_refused(data, "is not a GGUF file that ggml can read")

    def test_truncated(self):
        data = model()
        for size in range(0, len(data), 23):
            with self.subTest(size=size):
                self.assert_refused(data[:size])

    def test_flipped_bits(self):
        whole, chance = model(), random.Random(2)
        for _ in range(150):
            data = bytearray(whole)
            position = chance.randrange(len(data))
            data[position] ^= 1 << chance.randrange(8)
            with self.subTest(position=position, byte=data[position]):
                result = self.check(bytes(data))
                self.assertIn(result.returncode, (0, 1), result.stderr)
                if result.returncode == 1:
                    self.assertRegex(result.stderr, r"\Aadamas: [^\n]+\n\Z")

    def test_huge_counts(self):
        huge = 2**62
        key = text("general.architecture")
        for data in (
            b"GGUF" + struct.pack("<IQQ", 3, huge, 0),
            b"GGUF" + struct.pack("<IQQ", 3, 0, huge),
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", huge),
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IQ", 8, huge),
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, 8, huge),
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, 4, 2**30),
        ):
            with self.subTest(data=data):
                self.assert_refused(data)

    def test_hostile_metadata(self):
        huge = 2**32 - 1
        for values, words in [
            (dict(layers=0), "block_count is 0"),
            (dict(layers=513, tensors=[]), "expected 1 to 512"),
            (dict(block_count=huge, tensors=[]), "block_count is 4294967295"),
            (dict(block_count="four"), 'block_count is "four"'),
            (dict(block_count=None), "has no llama.block_count"),
            (dict(block_count=-4), "block_count is -4"),
            (dict(attention__head_count=huge), "attention.head_count is 4294967295"),
            (dict(attention__head_count_kv=3), "8 query heads and 3 KV heads"),
            (dict(attention__head_count=[8, 8, 8]), "has 3 values for 4 layers"),
            (dict(attention__key_length=huge), "attention.key_length"),
            (dict(attention__sliding_window=-1), "sliding_window is -1"),
            (dict(embedding_length=0), "embedding_length is 0"),
        ]:
            with self.subTest(**values):
                self.assert_refused(model(**values), words)
        self.assert_refused(gguf({"general.name": "nameless"}), "does not name its architecture")

    def test_odd_but_harmless(self):
        for values in (
            dict(attn_logit_softcapping=float("nan")),
            dict(attn_logit_softcapping=float("inf")),
            dict(attention__head_count=2, attention__head_count_kv=1),  # head_dim 256
            dict(attention__head_count=256, attention__head_count_kv=256, embedding_length=256 * 64),
            dict(tensors=[]),
        ):
            with self.subTest(**values):
                result = self.check(model(**values), policy="adamas")
                self.assertEqual(result.returncode, 0, result.stderr)
        result = self.check(gguf({"general.architecture": b"\xff\xfe", "general.name": b"\x80\x81"}))
        self.assertEqual(result.returncode, 1)
        self.assertIn("block_count", result.stderr)


if __name__ == "__main__":
    unittest.main()
