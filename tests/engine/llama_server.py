"""llama-server as a test drives it: started plain or through `adamas run`, asked through the OpenAI client, ended by a signal."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from engine import MODEL, SKIPPED, THREADS, TOOLS, Run, check, environment, need

try:
    import openai
except ImportError:
    print("skipped: this Python has no package openai (make test gets it: tools/client.sh)")
    sys.exit(SKIPPED)

os.environ["NO_PROXY"] = "127.0.0.1"  # whatever proxy there is for the rest
COMMAND = os.environ["ADAMAS_COMMAND"]
TOOL = TOOLS / "llama-server"
need(TOOL, MODEL)


class Server:
    """One that listens on a port of its own choice. Without settings it is the plain engine."""

    def __init__(self, name, *arguments, **settings):
        self.log = Path(f"{name}.txt")
        command = [TOOL, "-m", MODEL, "-t", THREADS, "--host", "127.0.0.1", "--port", "0", "--no-ui", *map(str, arguments)]
        command = [COMMAND, "run", "--", *command] if settings else [*command, "-fa", "on"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment(**settings), stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT)
        try:
            self.address = self.listening()
        except BaseException:
            self.process.kill()
            raise
        # No second try: a request that fails is to be seen.
        self.client = openai.OpenAI(base_url=self.address + "/v1", api_key="none", max_retries=0, timeout=300)

    def listening(self):
        while self.process.poll() is None:
            if found := re.search(r"listening on (http://\S+)\n", self.log.read_text(errors="replace")):
                return found[1]
            time.sleep(0.05)
        print(self.log.read_text(errors="replace")[-4000:])
        check(False, "llama-server listens")

    def ask(self, prompt, tokens=24, **more):
        """A greedy answer: .text, .cached (tokens of the prompt that were there already), .drafted and .accepted."""
        done = self.client.completions.create(model="any", prompt=prompt, max_tokens=tokens, temperature=0, seed=1,
                                              extra_body={"ignore_eos": True, **more})
        done.text = done.choices[0].text
        done.cached = done.timings["cache_n"]
        done.drafted, done.accepted = done.timings.get("draft_n", 0), done.timings.get("draft_n_accepted", 0)
        return done

    def slot(self, number, action, **body):
        return self.client.post(f"{self.address}/slots/{number}?action={action}", body=body, cast_to=dict[str, object])

    def end(self, by=signal.SIGTERM):
        """Exit code, output and the back end's report."""
        self.process.send_signal(by)
        code = self.process.wait(timeout=60)
        return Run(subprocess.CompletedProcess([], code, b"", self.log.read_bytes()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
