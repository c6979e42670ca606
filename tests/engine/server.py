"""llama-server through `adamas run`: several slots, separate and unified KV, prompt cache, saved slots, context shift, drafted
tokens. With a full budget the answers are the plain engine's; without it the same requests run sparse."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine import MODEL, TEXT, check, need
from llama_server import Server

need(TEXT)
# Every prompt ends in a refrain. What follows is certain, so no tie between two words decides, though batches are composed
# differently from run to run. Each client has its own: an answer from another's slot would be seen.
REFRAINS = ("The wind goes toward the south, and turns about to the north.",
            "The rivers run into the sea, and the sea is not full.",
            "One generation goes, another comes, and the earth remains.",
            "The sun rises, and the sun goes down, and hurries to its place.")
CHARACTERS = (5000, 2100, 2100, 1000, 2100, 2100)  # of the clients' documents, some 1,400, 580 and 280 tokens, and of two others
SPARSE = {"min_context": 512, "stats": 1}
LAYERS = 30


def document(number):
    return TEXT.read_text()[100000 * number:][:CHARACTERS[number]]


def refrain(client, lines):
    return (REFRAINS[client] + "\n") * lines


# ", and" goes on in two ways here: two tokens that are looked up draft wrong ones as well.
TWO_WAYS = document(1) + "\n" + refrain(3, 6)
LOOK_UP = ("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", 2)


def converse(server, client):
    """One client's requests: a document, the same with one line more, something short that takes a slot away, the document again."""
    first = document(client) + "\n" + refrain(client, 6)
    other = (client + 1) % len(REFRAINS)
    return [server.ask(prompt, tokens=16) for prompt in (first, first + refrain(client, 1), refrain(other, 6), first)]


def all_at_once(server):
    with ThreadPoolExecutor(len(REFRAINS)) as clients:
        return list(clients.map(lambda client: converse(server, client), range(len(REFRAINS))))


def texts(conversations):
    return [[answer.text for answer in answers] for answers in conversations]


def right(conversations):
    return all(refrain(client if turn != 2 else (client + 1) % len(REFRAINS), 9).startswith(answer.text) and answer.text
               for client, answers in enumerate(conversations) for turn, answer in enumerate(answers))


def check_cached(conversations):
    """The later requests with the document find it read already, in their slot or in the prompt cache."""
    missed = [(client, turn) for client, answers in enumerate(conversations) for turn in (1, 3)
              if answers[turn].cached < answers[0].usage.prompt_tokens - 1]
    check(not missed, f"... the prompt cache had what came before (missed by client, turn: {missed})")


def ended(server, by=signal.SIGTERM):
    run = server.end(by)
    check(run.code == 0 and len(run.reports) == 1, f"... {by.name} ends it cleanly, with one report (code {run.code})")
    check(run["stale_rows"] == 0, "... no stale row")
    return run


def saved_slot(server):
    """A text that goes on freely: it would change if the codes were not those of the rows that came back. In a slot that nobody used:
    in a used one, tokens that were taken back stay in the codes of the last block until others take their cells."""
    prompt = document(4)
    server.ask(prompt, tokens=1, id_slot=0)
    saved = server.slot(0, "save", filename="slot.bin")
    before = server.ask(prompt, id_slot=0)
    server.slot(0, "erase")
    server.ask(document(5), id_slot=0)
    restored = server.slot(0, "restore", filename="slot.bin")
    after = server.ask(prompt, id_slot=0)
    tokens = before.usage.prompt_tokens
    check(saved["n_saved"] == restored["n_restored"] >= tokens and after.cached == tokens - 1, f"slot 0, sparse: "
          f"{saved['n_saved']} tokens saved, erased and restored, {after.cached} of {tokens} not read again")
    check(after.text == before.text, f"... and the answer is the one before ({before.text!r}, {after.text!r})")


folder = Path.cwd()
slots = ("-c", 8192, "-np", 4, "--slot-save-path", folder)
for kind, full in (("separate", {"policy": "full", "budget": 1000000}), ("unified", {"budget": 1600})):
    arguments = (*slots, "--kv-unified" if kind == "unified" else "--no-kv-unified")
    if kind == "separate":  # what the plain engine answers does not depend on where its KV lies
        with Server("plain", *arguments) as server:
            plain = all_at_once(server)
            undrafted = server.ask(TWO_WAYS, tokens=32)
            check(right(plain), "4 slots, 4 clients with 4 requests each: the plain engine's answers are the refrains")
            check_cached(plain)
            check(server.end().code == 0, "... SIGTERM ends it cleanly")

    with Server(f"{kind}_full", *arguments, **SPARSE | full) as server:
        check(texts(all_at_once(server)) == texts(plain), f"{kind} KV, a budget above every request's tokens: the same answers")
        run = ended(server, signal.SIGINT)
        check(run["dense_rows"] > 0 and run["sparse_rows"] == 0, f"... {run['dense_rows']} query rows, dense, by our attention")

    with Server(f"{kind}_sparse", *arguments, **SPARSE) as server:
        if kind == "separate":
            saved_slot(server)
        sparse = all_at_once(server)
        check(right(sparse), f"{kind} KV, sparse: every answer is right")
        check_cached(sparse)
        run = ended(server)
        read = run["tokens_selected"] / run["sparse_rows"]
        seen = run["tokens_visible"] / run["sparse_rows"]
        check(run["sparse_rows"] > 64 * LAYERS, f"... {run['sparse_rows']} query rows were sparse")
        check(68 <= read < seen, f"... and read {read:.0f} of {seen:.0f} tokens")

COUNTED = SPARSE | {"prompt": "engine"}  # where every row that we compute is one that is decoded
with Server("shift", "-c", 1024, "-np", 1, "--context-shift", **COUNTED) as server:
    answer = server.ask(TEXT.read_text()[:3200] + "\n" + refrain(0, 6), tokens=120)
    total = answer.usage.total_tokens
    check(total > 1024 and answer.usage.completion_tokens == 120, f"context shift: {total} tokens in a context of 1024")
    check(refrain(0, 30).startswith(answer.text), "... and the text goes on as it should")
    run = ended(server)
    check("slot context shift" in run.err, "... the engine says that it shifted")
    check(run["sparse_rows"] == run["steps"] >= 119 * LAYERS, "... every step was sparse")

for kind, arguments, least in (("n-gram lookup", (*LOOK_UP, "--spec-ngram-simple-size-m", 4), 1.5), ("n-gram lookup of long drafts", LOOK_UP, 9),
                               ("draft model", ("-md", MODEL, "--spec-type", "draft-simple", "--spec-draft-n-max", 3), 1.5)):
    for budget, settings in (("a full budget", {"policy": "full", "budget": 1000000}), ("sparse", {})):
        with Server(f"{kind} {budget}".replace(" ", "_"), "-c", 2048, "-np", 1, *arguments, **COUNTED | settings) as server:
            answer = server.ask(TWO_WAYS, tokens=32)
            check(answer.text == undrafted.text, f"{kind}, {budget}: the plain engine's answer")
            check(answer.accepted > 0, f"... {answer.accepted} of {answer.drafted} drafted tokens were right")
            if kind == "n-gram lookup":
                check(answer.accepted < answer.drafted, "... and the others were taken back")
            run = ended(server)
            rows = run["dense_rows"] + run["sparse_rows"]
            check(rows > least * run["steps"], f"... {rows / run['steps']:.1f} query rows a step")
            check(run["dense_rows" if settings else "sparse_rows"] == rows > 0, "... all " + ("dense" if settings else "sparse"))
