"""``python -m adamas.eval``: a kind of experiment, then its report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import Error
from .cases import Case, cases_of, parse_settings
from .flags import parser

try:
    import matplotlib  # noqa: F401
    from tqdm import tqdm

    from . import report
    from .answers import Question, ask
    from .model import Model
    from .perplexity import Text, Windows, perplexity
    from .recall import recall
    from .records import Records, Rows
    from .tasks import longbench, passkey, ruler
    from .tasks.chains import chains_of
except ImportError as error:
    raise SystemExit(f"adamas.eval: {error}: pip install 'adamas[eval]' brings what the experiments stand on") from None

LAST_ROWS = 512  # of the arithmetic chains that stand beside another kind: rows that are sparse and scored


class Run:
    """One experiment: a method for each kind, which gives the rows of its section of the page."""

    def __init__(self, arguments: argparse.Namespace, model: Model, cases: Sequence[Case], records: Records) -> None:
        self.arguments, self.model, self.cases, self.records = arguments, model, cases, records

    def sections(self) -> dict[str, Rows]:
        kind = self.arguments.kind
        if kind == "perplexity":
            return {"perplexity": self.perplexity()}
        name = "scores" if kind in ("ruler", "longbench") else kind
        return {name: getattr(self, kind)(), "perplexity": self.on_chains()}

    def perplexity(self) -> Rows:
        of = self.arguments
        what = Windows(of.context, of.score_from, of.chunks, of.prefix)
        return self._perplexity([self._text(file) for file in of.file], what)

    def on_chains(self) -> Rows:
        """What every page has: the divergence on the last rows of a text in which every step matters."""
        of = self.arguments
        longest = of.context if of.kind == "recall" else self._length() if of.kind == "longbench" else max(of.lengths)
        return self._perplexity([], Windows(longest, longest - min(LAST_ROWS, longest // 2), prefix="dense"))

    def _perplexity(self, texts: list[Text], what: Windows) -> Rows:
        self._warn(what.context)
        texts.append(Text("arithmetic chains", chains_of(self.model, what.context * what.chunks)))
        with tqdm(total=len(texts) * len(self.cases) * what.chunks, unit="reading") as progress:
            return perplexity(self.model, self.cases, texts, what, self.records, progress)

    def recall(self) -> Rows:
        of = self.arguments
        self._warn(of.context)
        with tqdm(total=of.samples, unit="sample") as progress:
            return recall(self.model, self.cases, self._text(of.file), of.context, of.samples, of.enough, self.records, progress)

    def passkey(self) -> Rows:
        of = self.arguments
        self._warn(max(of.lengths))
        return self._ask(list(passkey.passkey(self.model, of.lengths, of.depths, of.seed, of.chat)))

    def ruler(self) -> Rows:
        of = self.arguments
        self._warn(max(of.lengths))
        names = list(ruler.TASKS) if of.tasks == ["all"] else of.tasks
        return self._ask(list(ruler.ruler(self.model, names, of.lengths, of.samples, of.seed, of.chat)))

    def longbench(self) -> Rows:
        of = self.arguments
        names = [] if of.tasks == ["all"] else of.tasks
        return self._ask(list(longbench.longbench(self.model, of.data, names, of.samples, self._length(), of.chat)))

    def _ask(self, questions: list[Question]) -> Rows:
        with tqdm(total=len(questions), unit="prompt") as progress:
            return ask(self.model, self.cases, questions, self.records, progress)

    def _length(self) -> int:
        return self.arguments.length or self.model.context - 512

    def _text(self, file: str) -> Text:
        try:
            return Text(Path(file).name, self.model.tokens(Path(file).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"adamas.eval: --file {file}: {error}") from None

    def _warn(self, tokens: int) -> None:
        if tokens > self.model.context:
            print(
                f"adamas.eval: {tokens} tokens are more than the {self.model.context} that the model was made for",
                file=sys.stderr,
            )


def main(given: Sequence[str]) -> None:
    if given[:1] == ["lm_eval"]:
        from .harness import main as harness

        return harness(list(given[1:]))
    arguments = parser().parse_args(given)
    if getattr(arguments, "tasks", None) == ["help"]:
        return print("\n".join(ruler.TASKS if arguments.kind == "ruler" else longbench.TASKS))
    try:
        cases = cases_of(arguments.policy, arguments.budget, parse_settings(arguments.set))
        page = arguments.out / f"{arguments.kind}.html"
        records = Records(page.with_suffix(".jsonl"), arguments.fresh)
        model = Model(arguments.model, arguments.dtype, arguments.threads)
        sections = Run(arguments, model, cases, records).sections()
    except Error as error:
        raise SystemExit(f"adamas.eval: {error}") from None
    report.print_tables(sections)
    report.plot(page.with_suffix(".svg"), sections)
    report.write_page(page, model, sections)
    print(f"adamas.eval: {page}", file=sys.stderr)
    if len(cases) > 1 and not any(row["tokens_read"] for row in sections["perplexity"]):
        print("nothing ran sparse: the context is within min_context or the budget, or no layer of the model is served")


if __name__ == "__main__":
    main(sys.argv[1:])
