"""The experiments, on a tiny random model and by hand."""

import json
import math
import random

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
import tiny  # noqa: E402
from adamas.eval import perplexity as of_perplexity  # noqa: E402
from adamas.eval import report  # noqa: E402
from adamas.eval.__main__ import main  # noqa: E402
from adamas.eval.answers import Question, ask  # noqa: E402
from adamas.eval.cases import Case, cases_of, parse_settings  # noqa: E402
from adamas.eval.model import Model, fork  # noqa: E402
from adamas.eval.perplexity import Text, Windows, perplexity  # noqa: E402
from adamas.eval.recall import recall, truth_of  # noqa: E402
from adamas.eval.records import Records  # noqa: E402
from adamas.eval.tasks import longbench, metrics, passkey, ruler  # noqa: E402
from adamas.eval.tasks.chains import chains  # noqa: E402
from adamas.transformers import Step, enable  # noqa: E402

ANYWHERE = {"min_context": ["0"], "max_noise": ["0"]}


class Silent:
    def update(self, count):
        pass

    def set_description(self, words):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder):
    return Model(folder, threads=1)


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path / "records.jsonl")


def text(model, tokens, seed=3):
    return model.tokens(chains(tokens, seed))[:tokens]


# ---- the door: rows of prompts ----


def test_every_row_of_a_prompt_selects_for_itself(model):
    """StreamingLLM is a mask: the first four tokens and the last sixty, in one piece and in several."""
    ids = torch.tensor([text(model, 400)])
    row, token = torch.arange(400)[:, None], torch.arange(400)
    mask = ((token < 4) | (row - token < 60)) & (token <= row)
    with torch.no_grad():
        expected = model.model(ids, attention_mask=mask[None, None]).logits
        for pieces in ([400], [100, 200, 63, 37]):
            cache, outs = model.cache(), []
            with enable(model.model, rows="all", policy="streaming", budget=64, min_context=0) as enabled:
                for piece in ids.split(pieces, dim=1):
                    outs.append(model.model(piece, **{model._parameter: cache}).logits)
            torch.testing.assert_close(torch.cat(outs, dim=1), expected, atol=2e-3, rtol=1e-3)
            assert enabled.stats["rows_sparse"] == 2 * (400 - 64)


def test_prompts_stay_the_models_by_default(model):
    with enable(model.model, policy="streaming", budget=64, min_context=0) as enabled, torch.no_grad():
        model.model(torch.tensor([text(model, 400)]))
    assert not enabled.stats


# ---- perplexity ----


def test_perplexity_is_the_models_and_a_budget_of_everything_changes_nothing(model, records):
    tokens = text(model, 300)
    cases = cases_of(["streaming", "oracle"], ["1000"], ANYWHERE)
    full, *others = perplexity(model, cases, [Text("a", tokens)], Windows(300), records, Silent())
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(
            model.model(torch.tensor([tokens])).logits[0, 150:299], torch.tensor(tokens[151:])
        )
    assert full["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-4)
    assert full["scored"] == 149 and full["ratio"] == 1 and full["kl"] == 0
    for row in others:
        assert row["ratio"] == pytest.approx(1, abs=1e-4) and row["kl"] < 1e-6 and row["same_top"] > 0.98


@pytest.mark.parametrize("prefix", ["sparse", "dense"])
def test_perplexity_of_streaming_is_that_of_its_mask(model, records, prefix):
    tokens = text(model, 300)
    [full, row] = perplexity(
        model, cases_of(["streaming"], ["64"], ANYWHERE), [Text("a", tokens)], Windows(300, prefix=prefix), records, Silent()
    )
    at, token = torch.arange(300)[:, None], torch.arange(300)
    mask = ((token < 4) | (at - token < 60)) & (token <= at)
    if prefix == "dense":
        mask[:150] = (token <= at)[:150]
    with torch.no_grad():
        log = model.model(torch.tensor([tokens]), attention_mask=mask[None, None]).logits[0, 150:299].log_softmax(-1)
        exact = model.model(torch.tensor([tokens])).logits[0, 150:299].log_softmax(-1)
    difference = (exact - log).gather(1, torch.tensor(tokens[151:])[:, None])[:, 0].double()
    assert row["ratio"] == pytest.approx(difference.mean().exp().item(), rel=1e-4)
    assert row["ratio_error"] == pytest.approx(row["ratio"] * difference.std(correction=1).item() / math.sqrt(149), rel=1e-3)
    assert row["kl"] == pytest.approx((exact.exp() * (exact - log)).sum(-1).mean().item(), rel=1e-3)
    assert row["tokens_read"] == 64


def test_divergence_of_what_is_impossible():
    full = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert of_perplexity.divergence(full, torch.tensor([[0.25, 0.75, 0.0]]).log()).item() == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    )


def test_a_run_goes_on_where_it_was_stopped(model, tmp_path, monkeypatch):
    path, cases = tmp_path / "records.jsonl", cases_of(["streaming"], ["64"], ANYWHERE)
    texts, what = [Text("a", text(model, 200))], Windows(200)
    first = perplexity(model, cases, texts, what, Records(path), Silent())
    lines = path.read_text().splitlines()
    assert len(lines) == 2 and set(json.loads(lines[0])) == {"part", "rows"}
    path.write_text("\n".join(lines) + '\n{"part": {"ki')  # it was killed within a line
    monkeypatch.setattr(model, "predict", None)  # nothing is read again
    assert perplexity(model, cases, texts, what, Records(path), Silent()) == first
    monkeypatch.undo()
    assert len(perplexity(model, cases_of(["streaming"], ["64", "32"], ANYWHERE), texts, what, Records(path), Silent())) == 3
    assert len(path.read_text().splitlines()) == 3, "one case was new"
    assert not Records(path, fresh=True).rows


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.jsonl").write_text("my notes\n")
    with pytest.raises(SystemExit, match="line 1"):
        Records(tmp_path / "notes.jsonl")
    assert (tmp_path / "notes.jsonl").read_text() == "my notes\n"


def test_settings():
    assert parse_settings(["share=0.1,0.2"]) == {"share": ["0.1", "0.2"]}
    with pytest.raises(SystemExit, match="NAME=VALUE"):
        parse_settings(["share"])
    with pytest.raises(SystemExit, match="there are"):
        cases_of(["dense"], ["auto"], {})
    cases = cases_of(["full", "streaming", "paper", "adamas"], ["auto", "64"], {"share": ["0.1", "0.2"], "sinks": ["2"]})
    assert [case.name for case in cases] == [
        "full", "streaming 128", "streaming 64", "paper 128 share=0.1", "paper 128 share=0.2", "paper 64 share=0.1", "paper 64 share=0.2",
        "adamas auto share=0.1", "adamas auto share=0.2", "adamas 64 share=0.1", "adamas 64 share=0.2",
    ]  # fmt: skip
    paper = Case("paper", (("budget", "64"),)).config()
    assert (paper.preset, paper.estimator, paper.dense_layers, paper.budget) == ("paper", "manhattan", "2", "64")


# ---- recall ----


def test_recall_of_the_oracle_and_of_everything(model, records):
    cases = cases_of(["oracle", "streaming", "adamas"], ["48"], ANYWHERE)
    rows = recall(model, cases, Text("a", text(model, 400)), 400, 3, 0.9, records, Silent())
    of = {policy: [row for row in rows if row["policy"] == policy] for policy in ("oracle", "streaming", "adamas")}
    assert [(row["layer"], row["head"]) for row in of["oracle"]] == [(layer, head) for layer in range(2) for head in range(4)]
    # Two tokens of nearly one score may change places.
    assert all(row["top_found"] > 0.97 and row["tokens"] == 48 for row in of["oracle"])
    assert all(row["mass_estimated"] == pytest.approx(row["mass_true"], abs=1e-4) for row in of["oracle"])
    assert all(a["mass_true"] >= b["mass_true"] for a, b in zip(of["oracle"], of["streaming"]))
    assert report.mean([row["top_found"] for row in of["streaming"]]) < report.mean([row["top_found"] for row in of["adamas"]])


def test_truth_by_hand():
    class Plan:
        def selection(self, head):
            return torch.tensor([0, 3]).numpy()

    class Result:
        mass = noise = torch.zeros(1, 1, 1)

    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    key = torch.zeros(1, 1, 4, 64)
    key[0, 0, :, 0] = weights.log()
    query = torch.zeros(1, 1, 1, 64)
    query[..., 0] = 2.0
    [truth] = truth_of(Step(0, query, key, 0.5, 0.0, None, Plan(), Result()), enough=0.85)
    assert truth["top_found"] == 0.5 and truth["tokens"] == 2 and truth["needed"] == 3
    assert truth["mass_true"] == pytest.approx(0.5)
    [truth] = truth_of(Step(0, query, key, 0.5, 0.0, torch.tensor([0.0]), Plan(), Result()), enough=0.85)
    assert truth["mass_true"] == pytest.approx(0.25), "a sink logit of weight 1 holds half of the softmax"


# ---- answers ----


def test_answers_are_greedy_decoding(model, records):
    prompts = [text(model, 300), text(model, 300)[:200] + text(model, 100, seed=4), text(model, 250)]
    questions = [Question(prompt, ["x"], 12, lambda answer: float("x" in answer), {"task": "t"}) for prompt in prompts]
    rows = ask(model, cases_of(["streaming", "oracle"], ["1000", "64"], ANYWHERE), questions, records, Silent())
    for i, prompt in enumerate(prompts):
        own = rows[5 * i : 5 * i + 5]
        with torch.no_grad():
            out = model.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        for row in (own[0], own[1], own[3]):  # full, and the budgets of everything
            assert row["answer"] == model.text(out[0, len(prompt) :])
            assert row["kl"] < 1e-6 and row["steps"] == min(12, len(out[0]) - len(prompt))
        assert own[2]["kl"] > 1e-4 and own[2]["tokens_read"] == 64


def test_a_fork_leaves_its_cache_as_it_is(model):
    tokens, cache = text(model, 120), model.cache()
    model.read(tokens[:100], cache)
    first = model.predict(tokens[100:], fork(cache))
    with enable(model.model, policy="streaming", budget=16, min_context=0):
        model.predict(tokens[100:101], fork(cache))
    assert cache.get_seq_length() == 100
    assert torch.equal(model.predict(tokens[100:], fork(cache)), first)


def test_passkeys(model):
    # The numbers and lengths of `adamas eval passkey --lengths 300,400 --depths 3 --json`.
    assert [passkey.number_of(1, length, depth) for length in (300, 400) for depth in (0.0, 0.5, 1.0)] == [
        98805,
        82044,
        20594,
        86144,
        33837,
        74355,
    ]
    for question in passkey.passkey(model, [1500], 3):
        prompt = model.text(question.prompt)
        assert 1400 < len(question.prompt) <= 1500 and prompt.count(question.expected[0]) == 2
        place = prompt.index("The pass key is") / len(prompt)
        assert abs(place - question.fields["depth"]) < 0.2
        assert question.score(f" {question.expected[0]}. The pass key") == 1 and question.score("12345") == 0
    with pytest.raises(SystemExit, match="no room"):
        list(passkey.passkey(model, [100], 1))


# ---- RULER ----


@pytest.mark.parametrize("name", ruler.TASKS)
def test_rulers_prompts_hold_their_answers_and_fill_their_length(model, name):
    length = 8000 if name == "cwe" else 3000
    first, second = ruler.ruler(model, [name], [length], 2)
    assert first.prompt != second.prompt
    for question in (first, second):
        prompt = model.text(question.prompt)
        assert 0.9 * length < len(question.prompt) + question.most <= length
        if name != "sums":
            assert all(one in prompt for one in question.expected)
        assert question.score(" ".join(question.expected)) == 1 and question.score("") == 0


def test_rulers_answers_follow_from_their_texts():
    for seed in range(20):
        made = ruler.variables(random.Random(seed), 30)
        chain = made.text.rsplit("Memorize", 1)[1]
        values = {}
        for line in chain.splitlines():
            if line.startswith("VAR"):
                _, name, _, value = line.split(maxsplit=3)
                values[name] = values[value[4:]] if value.startswith("VAR") else value
        assert [name for name, value in values.items() if value in made.question] == made.expected and len(made.expected) == 5

        made = ruler.sums(random.Random(seed), 30)
        values = {}
        exec(
            "\n".join(
                line.replace("VAR ", "") for line in made.text.rsplit("Memorize", 1)[1].splitlines() if line.startswith("VAR")
            ),
            values,
        )
        assert [str(values[made.lead.split()[-2]])] == made.expected

        made = ruler.common_words(random.Random(seed), 40)
        listed = made.text.rsplit("most often.\n", 1)[1].split()[1::2]
        assert {word for word in listed if listed.count(word) == 30} == set(made.expected) and len(made.expected) == 10

        made = ruler.frequent_words(random.Random(seed), 400)
        coded = made.text.split("coded words. ")[1].split()
        ranked = sorted(set(coded), key=coded.count, reverse=True)
        assert ranked[0] == "..." and ranked[1:4] == made.expected

        made = ruler.needles("text", keys=4, values=2, queries=2)(random.Random(seed), 40)
        asked = made.lead.split(" for ")[1].split(" mentioned")[0].replace("and ", "").split(", ")
        found = [
            sentence.split("is: ")[1] for name in asked for sentence in made.text.split(". ") if f"for {name} is:" in sentence
        ]
        assert sorted(one.rstrip(".") for one in found) == sorted(made.expected) and len(found) == 4


def test_chains_are_what_an_interpreter_prints():
    values, lines = {}, chains(300, seed=7).split("\n")
    for line, after in zip(lines, [*lines[1:], ""]):
        if " = " in line:
            exec(line[4:], values)
        elif line.startswith(">>> "):
            assert after == str(eval(line[4:], values))
    assert len(lines) == 900


# ---- LongBench ----


def test_metrics_by_hand():
    # "cat sat on mat" and "cat on mat": 3 words in common, of 4 and 3.
    assert metrics.qa_f1("The cat sat on the mat.", "A cat on the mat") == pytest.approx(2 * 3 / 7)
    assert metrics.qa_f1("nothing", "else") == 0 and metrics.qa_f1("", "else") == 0
    classes = ["Number", "Number of days", "Date", "Place"]
    assert metrics.classification("Date", "Date", classes) == 1
    assert metrics.classification("a Date or a Place", "Date", classes) == 0.5
    assert metrics.classification("Number of days", "Number of days", classes) == 1, "a part of its name does not count"
    assert metrics.classification("a Place", "Date", classes) == 0
    assert metrics.count("There are 7 of 10, so 7", "7") == pytest.approx(2 / 3) and metrics.count("none", "7") == 0
    assert metrics.retrieval("Paragraph 12", "Paragraph 12") == 1 and metrics.retrieval("3 or 12", "Paragraph 12") == 0.5
    assert metrics.retrieval_zh("段落12", "段落12") == 1
    assert longbench.score("hotpotqa", ["Paris", "the city of Paris"], [], "city of Paris") == 1, "the best of several"
    assert longbench.score("trec", ["Date"], classes, "\nDate\nPlace") == 1, "the first line alone"


def test_rouge_by_hand():
    pytest.importorskip("rouge")
    # The longest common subsequence of 'a b c d' and 'a c d e' is 'a c d': 3 of 4, 3 of 4.
    assert metrics.rouge("a b c d", "a c d e") == pytest.approx(0.75, abs=1e-6)
    assert metrics.rouge("", "a") == 0


def test_code_similarity_by_hand():
    pytest.importorskip("rapidfuzz")
    # "abcd" and "abce": 3 characters of each in common: 2 * 3 / 8.
    assert metrics.code_similarity("\n# a comment\nabcd\nmore", "abce") == 0.75
    assert metrics.code_similarity("# only a comment", "abce") == 0


def test_chinese_by_hand():
    pytest.importorskip("jieba")
    assert metrics.qa_f1_zh("北京。", "北京") == 1 and metrics.qa_f1_zh("上海", "北京") == 0
    assert metrics._words_zh("北京，上海。") == ["北京", "上海"]


ENTRIES = {
    "hotpotqa": {
        "input": "Where is the tower?",
        "context": "The tower stands in Paris. " * 90,
        "answers": ["Paris"],
        "all_classes": None,
    },
    "trec_e": {
        "input": "Question: When?\nType:",
        "context": "Question: Where?\nType: Place\n" * 30,
        "answers": ["Date"],
        "all_classes": ["Date", "Place"],
    },
}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    for name, entry in ENTRIES.items():
        lines = [json.dumps({"length": 1, "dataset": name, "language": "en", "_id": str(i), **entry}) for i in range(3)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "data" / "notes.jsonl").write_text("of something else")
    return tmp_path / "data"


def test_longbenchs_files(model, data):
    questions = list(longbench.longbench(model, data, [], 2, 1000))
    assert [question.fields["task"] for question in questions] == ["hotpotqa"] * 2 + ["trec_e"] * 2
    assert (
        len(questions[0].prompt) == 1000 and questions[0].most == 32 and questions[0].stop is None and questions[2].stop == "\n"
    )
    prompt = model.text(questions[0].prompt)
    assert prompt.startswith("The tower stands") and prompt.endswith("Question: Where is the tower?\nAnswer:")
    assert questions[0].score("in Paris") == pytest.approx(2 / 3) and questions[2].score("Date") == 1

    (data / "dataset2prompt.json").write_text(json.dumps({"hotpotqa": "<{context}> {input}!"}))
    (data / "dataset2maxlen.json").write_text(json.dumps({"hotpotqa": 5}))
    [question] = longbench.longbench(model, data, ["hotpotqa"], 1, 4000)
    assert model.text(question.prompt) == f"<{ENTRIES['hotpotqa']['context']}> Where is the tower?!" and question.most == 5
    assert question.fields["prompts"] == "LongBench"

    with pytest.raises(SystemExit, match="no file for qasper"):
        list(longbench.longbench(model, data, ["qasper"], 0, 1000))
    (data / "qasper.jsonl").write_text('{"input": "?"}')
    with pytest.raises(SystemExit, match="line 1 of .*qasper.jsonl"):
        list(longbench.longbench(model, data, ["qasper"], 0, 1000))


# ---- the command ----


def run(folder, out, *arguments):
    main([*arguments, "--model", folder, "--threads", "1", "--out", str(out), "--set", "min_context=0"])
    [kind] = arguments[:1]
    page = (out / f"{kind}.html").read_text()
    document = json.loads(page.split('id="document">')[1].split("</script>")[0])
    assert (out / f"{kind}.svg").read_text().startswith("<?xml")
    chains = [row for row in document["perplexity"] if row["file"] == "arithmetic chains"]
    assert all(math.isfinite(row["kl"]) for row in chains) and any(row["tokens_read"] for row in chains)
    return document


def test_each_command(folder, tmp_path, data, capsys):
    file = tmp_path / "a <b>.txt"
    file.write_text(chains(200))
    out = tmp_path / "out"
    common = ["--policy", "streaming,adamas", "--budget", "auto,32"]
    document = run(folder, out, "perplexity", "--file", str(file), "--context", "300", *common)
    assert len(document["perplexity"]) == 2 * 5 and document["perplexity"][0]["file"] == "a <b>.txt"
    assert document["meta"]["model"] and "transformers" in document["meta"]["engine"]
    document = run(folder, out, "recall", "--file", str(file), "--context", "300", "--samples", "2", *common)
    assert len(document["recall"]) == 4 * 2 * 4
    document = run(folder, out, "passkey", "--lengths", "600,700", "--depths", "2", *common)
    assert len(document["passkey"]) == 4 * 5 and {row["found"] for row in document["passkey"]} == {False}
    document = run(folder, out, "ruler", "--lengths", "1200", "--tasks", "niah_single_1,sums", "--samples", "1", *common)
    assert {row["task"] for row in document["scores"]} == {"niah_single_1", "sums"}
    document = run(folder, out, "longbench", "--data", str(data), "--samples", "1", "--length", "500", *common)
    assert {row["task"] for row in document["scores"]} == {"hotpotqa", "trec_e"}
    printed = capsys.readouterr().out
    assert "arithmetic chains  adamas dot auto" in printed and "niah_single_1" in printed


def test_bad_input_gets_a_sentence(folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="--file"):
        main(["perplexity", "--model", folder, "--file", "nowhere.txt"])
    with pytest.raises(SystemExit, match="there are niah_single_1"):
        main(["ruler", "--model", folder, "--tasks", "qa_1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="nothing to score"):
        main(["perplexity", "--model", folder, "--score-from", "300", "--context", "300", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "longbench" in capsys.readouterr().out


def test_what_runs_dense_is_said(folder, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(chains(200))
    main(
        [
            "recall",
            "--model",
            folder,
            "--threads",
            "1",
            "--out",
            str(tmp_path),
            "--file",
            str(tmp_path / "a.txt"),
            "--context",
            "300",
            "--samples",
            "1",
        ]
    )
    assert "nothing ran sparse" in capsys.readouterr().out


# ---- lm-evaluation-harness ----


def test_the_harness(folder, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from pathlib import Path

    monkeypatch.chdir(Path(__file__).parent / "lm_eval_task")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import adamas.eval.harness  # noqa: F401  # it registers the class
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    def results(name, **settings):
        model = get_model(name)(pretrained=folder, device="cpu", **settings)
        found = lm_eval.simple_evaluate(
            model,
            tasks=["adamas_chains_generated", "adamas_chains_chosen"],
            task_manager=TaskManager(include_path=".", include_defaults=False),
        )
        return model, [[one["resps"] for one in found["samples"][task]] for task in sorted(found["samples"])]

    _, plain = results("hf")
    ours, all_of_it = results("adamas", budget=100000, min_context=0)
    torch.testing.assert_close(torch.tensor(numbers(all_of_it)), torch.tensor(numbers(plain)), atol=2e-3, rtol=1e-3)
    assert all_of_it[1] == plain[1], "what is generated"
    ours, few = results("adamas", budget=32, policy="streaming", min_context=0)
    assert ours.enabled.stats["rows_sparse"] > 1000 and numbers(few) != numbers(plain)


def numbers(results):
    return [float(one[0][0]) for responses in results[0] for one in responses]
