"""adamas run, with a tool that writes down what it was given. The command is copied into an installation of its own, so
that the back end and the engine's tools beside it can be there or not."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import unittest

from command import COMMAND, HAS_READER, CommandTest, call, clean_environment, soname

LIBRARY = pathlib.Path(os.environ["ADAMAS_LIBRARY"]).resolve()

WITNESS = f"""#!{sys.executable}
import json, os, sys
wanted = ("ADAMAS_", "GGML_", "LLAMA_")
print(json.dumps([sys.argv, {{k: v for k, v in os.environ.items() if k.startswith(wanted)}}]))
"""


class Run(CommandTest):
    def setUp(self):
        super().setUp()
        for name in ("bin", "lib", "llama/bin", "path"):
            (self.folder / name).mkdir(parents=True)
        self.command = self.folder / "bin/adamas"
        shutil.copy(COMMAND, self.command)
        (self.folder / "lib" / soname(LIBRARY)).symlink_to(LIBRARY)
        self.back_end = self.folder / "lib/libggml-adamas.so"
        self.back_end.touch()
        self.witness = self.tool("path/witness", WITNESS)

    def tool(self, name, text, mode=0o755):
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def run_tool(self, *arguments, **variables):
        path = f"{self.folder / 'path'}:{os.environ['PATH']}"
        return call("run", *arguments, command=self.command, environment=clean_environment(PATH=path, **variables))

    def given(self, *arguments, **variables):
        result = self.run_tool(*arguments, **variables)
        self.assertEqual(result.returncode, 0, result.stderr)
        argv, environment = json.loads(result.stdout)
        return argv, environment, result.stderr

    def test_arguments_arrive_as_they_are(self):
        odd = ["-m", "a b", "", "{}", "[1,2]", "--", "-x", "--budget", "5", "--help", "*", "ü", "-1"]
        argv, _, _ = self.given("--", "witness", *odd)
        self.assertEqual(argv[1:], odd + ["-fa", "on"])

    def test_variables(self):
        _, environment, complaints = self.given(
            "--budget", "64", "--policy=quest", "--dense-layers", "2", "--isa", "auto", "--", "witness", ADAMAS_SINKS="1"
        )
        self.assertEqual(environment.pop("GGML_BACKEND_PATH"), str(self.back_end))
        self.assertEqual(
            environment,
            {
                "ADAMAS_BUDGET": "64",
                "ADAMAS_POLICY": "quest",
                "ADAMAS_DENSE_LAYERS": "2",
                "ADAMAS_ISA": "auto",
                "ADAMAS_SINKS": "1",
            },
        )
        self.assertEqual(complaints, "")

    def test_a_flag_wins_over_its_variable(self):
        _, environment, _ = self.given("--budget", "64", "--", "witness", ADAMAS_BUDGET="32")
        self.assertEqual(environment["ADAMAS_BUDGET"], "64")

    def test_the_users_flash_attention_stays(self):
        for chosen in (["-fa", "off"], ["--flash-attn", "auto"], ["-x", "-fa"]):
            argv, _, _ = self.given("--", "witness", *chosen)
            self.assertEqual(argv[1:], chosen)
        argv, _, _ = self.given("--", "witness", LLAMA_ARG_FLASH_ATTN="off")
        self.assertEqual(argv[1:], [])

    def test_llama_bench_takes_a_number(self):
        self.tool("path/llama-bench", WITNESS)
        argv, _, _ = self.given("--", "llama-bench", "-p", "0", LLAMA_ARG_FLASH_ATTN="off")  # which it does not read
        self.assertEqual(argv[1:], ["-p", "0", "-fa", "1"])

    def test_the_users_back_end_stays_and_is_named(self):
        _, environment, complaints = self.given("--", "witness", GGML_BACKEND_PATH="/their/own.so")
        self.assertEqual(environment["GGML_BACKEND_PATH"], "/their/own.so")
        self.assertEqual(complaints, "adamas: GGML_BACKEND_PATH is set; the back end is /their/own.so\n")

    def test_no_back_end(self):
        self.back_end.unlink()
        self.assert_fails(self.run_tool("--", "witness"), 1, "libggml-adamas.so is not there")

    def test_without_an_engine_only_check_fails(self):
        model = self.folder / "model.gguf"
        model.write_bytes(b"GGUF")
        environment = {k: v for k, v in clean_environment().items() if k != "LD_LIBRARY_PATH"}
        self.assertEqual(call("info", command=self.command, environment=environment).returncode, 0)
        result = call("check", model, command=self.command, environment=environment)
        self.assert_fails(result, 1, "libggml-base.so is not there" if HAS_READER else "built without llama.cpp")

    def test_where_tools_are_found(self):
        engine = self.tool("llama/bin/llama-witness", WITNESS)
        self.assertEqual(self.given("--", "llama-witness")[0][0], str(engine))
        self.assertEqual(self.given("--", str(self.witness))[0][0], str(self.witness))
        self.tool("path/llama-witness", WITNESS)  # PATH comes first
        self.assertEqual(self.given("--", "llama-witness")[0][0], str(self.folder / "path/llama-witness"))

    def test_tools_that_cannot_run(self):
        plain = self.tool("path/plain", "text", mode=0o644)
        for tool, code, words in [
            ("no-such-tool", 127, "there is no such tool"),
            (self.folder / "nothing", 127, "there is no such file"),
            ("", 127, "empty"),
            (self.folder, 126, "is a folder"),
            (plain, 126, "is not executable"),
            ("plain", 126, "is not executable"),
            (self.tool("path/broken", "#!/no/such/interpreter\n"), 126, "cannot be started"),
        ]:
            with self.subTest(tool=tool):
                self.assert_fails(self.run_tool("--", tool), code, words)

    def test_settings_are_checked_before_anything_starts(self):
        mark = self.folder / "started"
        self.tool("path/marks", f"#!/bin/sh\ntouch {mark}\n")
        self.assert_fails(self.run_tool("--budget", "-1", "--", "marks"), 2, "1 to 2147483647")
        self.assert_fails(self.run_tool("--", "marks", ADAMAS_POLICY="x"), 2, "streaming")
        self.assertFalse(mark.exists())

    def test_exit_codes(self):
        self.tool("path/exits", "#!/bin/sh\nexit $1\n")
        for code in (0, 1, 2, 42, 255):
            self.assertEqual(self.run_tool("--", "exits", code).returncode, code)

    def test_death_by_signal(self):
        self.tool("path/dies", "#!/bin/sh\nkill -KILL $$\n")
        self.assertEqual(self.run_tool("--", "dies").returncode, -signal.SIGKILL)

    def test_signals_reach_the_tool(self):
        self.tool("path/waits", f"#!{sys.executable}\nimport signal, sys\n"
                  "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('ready', flush=True)\nsignal.pause()\n")
        path = f"{self.folder / 'path'}:{os.environ['PATH']}"
        with subprocess.Popen([self.command, "run", "--", "waits"], env=clean_environment(PATH=path),
                              stdout=subprocess.PIPE, text=True) as process:
            self.assertEqual(process.stdout.readline(), "ready\n")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(timeout=30), 7)


if __name__ == "__main__":
    unittest.main()
