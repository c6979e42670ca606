"""A host with another ggml is refused with a sentence and lives on; so is one with half a ggml, or none."""

import os

from engine import BACKEND, check, run

fake, bare = os.environ["ADAMAS_FAKE_HOST"], os.environ["ADAMAS_BARE_HOST"]
for host, version, words in ((fake, "9.9.9", "runs ggml 9.9.9"), (fake, "0.9.4", "runs ggml 0.9.4"),
                             (fake, "same", "lacks functions"), (bare, "none", "no ggml_version()")):
    done = run(host, BACKEND, version)
    sentences = [line for line in done.err.splitlines() if line.startswith("adamas: ")]
    print("     ", *sentences)
    check(done.code == 0, f"ggml {version}: the host still works")
    check(len(sentences) == 1 and words in sentences[0], "... one sentence, though it tried twice")
    check("refused" in done.out and not done.reports, "... and no back end")
