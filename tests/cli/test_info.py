"""adamas info, help, version, and what every command does with wrong words and wrong values."""

import json
import os
import subprocess
import unittest

from command import COMMAND, CommandTest, call, clean_environment


def info(*arguments, **variables):
    result = call("info", "--json", *arguments, environment=clean_environment(**variables))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def setting(document, name):
    return next(s for s in document["settings"] if s["name"] == name)


class Info(CommandTest):
    def test_machine(self):
        document = info()
        self.assertIn(document["instruction_set"], document["instruction_sets"])
        self.assertEqual(document["head_dims"], [64, 80, 96, 112, 128, 192, 256])
        self.assertEqual(document["dtypes"], ["f32", "f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl", "f8_e4m3"])
        self.assertIn("\nK and V           f32, f16", call("info").stdout)
        self.assertRegex(document["version"], r"^\d+\.\d+\.\d+$")
        self.assertIn("\nGPUs              " + (", ".join(document["gpus"]) or "none: "), call("info").stdout)

    def test_text_names_every_setting(self):
        text = call("info").stdout
        for s in info()["settings"]:
            self.assertRegex(text, rf"(?m)^{s['name']} +{s['value']} ")
            self.assertTrue(s["range"] and s["meaning"])

    def test_where_a_value_comes_from(self):
        document = info("--budget", "77", "--dense-layers=1", ADAMAS_PRESET="paper", ADAMAS_RECENT="5", ADAMAS_BUDGET="9")
        expected = {
            "preset": ("paper", "environment"),
            "estimator": ("manhattan", "preset paper"),
            "budget": ("77", "flag"),
            "dense_layers": ("1", "flag"),
            "recent": ("5", "environment"),
            "policy": ("adamas", "default"),
            "isa": ("auto", "default"),
        }
        for name, (value, source) in expected.items():
            self.assertEqual((setting(document, name)["value"], setting(document, name)["source"]), (value, source), name)

    def test_every_instruction_set_can_be_forced(self):
        for isa in info()["instruction_sets"]:
            self.assertEqual(info("--isa", isa.lower())["instruction_set"], isa)
            self.assertEqual(info(ADAMAS_ISA=isa)["instruction_set"], isa)


class Words(CommandTest):
    def test_help_and_version(self):
        self.assertRegex(call("--version").stdout, r"^adamas \d+\.\d+\.\d+\n$")
        for arguments in ([], ["run"], ["info"], ["check"], ["explain"]):
            result = call(*arguments, "--help")
            self.assertEqual(result.returncode, 0)
            self.assertIn("Usage: adamas", result.stdout)
            self.assertIn("Exit codes", result.stdout)

    def test_wrong_words(self):
        for arguments, words in [
            ([], ["a command is missing"]),
            (["explian"], ["did you mean explain?"]),
            (["explain", "more"], ["more is one argument too many"]),
            (["rnu"], ["rnu is not a command", "did you mean run?"]),
            (["info", "--jsn"], ["--jsn", "did you mean --json?"]),
            (["run", "--bugdet", "3", "--", "true"], ["--bugdet", "did you mean --budget?"]),
            (["run", "--bugdet=3", "--", "true"], ["did you mean --budget?"]),
            (["check", "--contxt", "3", "x"], ["did you mean --context?"]),
            (["--nothing-like-it"], ["--nothing-like-it is not a flag"]),
            (["info", "more"], ["more is one argument too many"]),
            (["info", "--", "true"], ["only `adamas run`"]),
            (["info", "--budget"], ["--budget needs a value"]),
            (["info", "--budget="], ["--budget needs a value"]),
            (["run", "true"], ["write -- before the tool"]),
            (["run"], ["the tool is missing"]),
            (["run", "--"], ["the tool is missing"]),
            (["check"], ["the model is missing"]),
            (["check", "--context", "0", "x"], ["1 to 2147483647"]),
            (["check", "--context", "1e9", "x"], ["1 to 2147483647"]),
        ]:
            with self.subTest(arguments=arguments):
                self.assert_fails(call(*arguments), 2, *words)

    def test_hostile_values(self):
        for value in ["-1", "0", "1e99", "nan", "", " 5", "5x", "99999999999999999999", "2147483648", "\n", "ä"]:
            for arguments, variables in [
                (["info", "--budget", value], {}),
                (["run", "--budget", value, "--", "true"], {}),
                (["info"], {"ADAMAS_BUDGET": value}),
            ]:
                with self.subTest(arguments=arguments, variables=variables):
                    result = call(*arguments, environment=clean_environment(**variables))
                    self.assertEqual(result.returncode, 2)
                    self.assertEqual(result.stdout, "")
                    self.assertIn("1 to 2147483647", result.stderr)

    def test_other_hostile_settings(self):
        self.assert_fails(call("info", "--policy", "sparse"), 2, "adamas | full | quest | streaming")
        self.assert_fails(call("info", "--sinks", "100", "--recent", "100", "--budget", "128"), 2, "100 + 100", "budget, 128")
        self.assert_fails(call("info", "--isa", "AVX9"), 2, "AVX9", "auto")


class Output(CommandTest):
    def test_full_disk_and_closed_output(self):
        for arguments in (["info"], ["info", "--json"], ["--help"], ["--version"]):
            with self.subTest(arguments=arguments), open("/dev/full", "w") as full:
                for redirect in (dict(stdout=full), dict(preexec_fn=lambda: os.close(1))):
                    result = subprocess.run([COMMAND, *arguments], stderr=subprocess.PIPE, text=True, **redirect)
                    self.assertEqual(result.returncode, 1)
                    self.assertIn("cannot be written", result.stderr)


class SettingsFile(CommandTest):
    def test_what_is_no_file_of_settings(self):
        large = self.folder / "large.txt"
        large.write_bytes(b"\n" * ((1 << 20) + 1))
        for path, words in [("/dev/zero", "is not a file"), (self.folder, "is not a file"), (large, "larger than 1 MiB")]:
            result = call("info", "--config", path)
            self.assertEqual((result.returncode, result.stdout), (2, ""))
            self.assertIn(words, result.stderr)


class Variables(CommandTest):
    def test_a_misspelt_one_is_said(self):
        for name, words in [("ADAMAS_BUDGTE", "did you mean ADAMAS_BUDGET?"), ("ADAMAS_DENSE_LAYER", "did you mean ADAMAS_DENSE_LAYERS?")]:
            result = call("info", environment=clean_environment(**{name: "3"}))
            self.assertEqual(result.returncode, 0)
            self.assertRegex(result.stderr, rf"\Aadamas: the variable {name} is not known[^\n]+\n\Z")
            self.assertIn(words, result.stderr)
        known = {f"ADAMAS_{name}": "1" for name in ("OPS", "CACHE", "MODELS", "FAULT", "GRAPHS", "BUDGET", "SINKS", "SOMETHING_ELSE")}
        self.assertEqual(call("info", environment=clean_environment(**known)).stderr, "")


if __name__ == "__main__":
    unittest.main()
