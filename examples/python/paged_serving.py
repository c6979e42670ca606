"""Serving on torch alone: requests come and go, their rows lie in pages, and those that begin alike share pages and codes.

    python examples/python/paged_serving.py

A model of one attention layer with random weights, which is enough to show the loop that an engine has: take in a request, share the
pages of its prompt that others have, decode one token of every running request in one step, give pages back. At the end one step is
compared with dense attention over the same pages.
"""

import adamas
import torch

VOCABULARY, Q_HEADS, KV_HEADS, HEAD_DIM = 500, 8, 2, 64
PAGE, PAGES, SLOTS, LONGEST = 64, 128, 4, 2048  # tokens of a page; pages; requests that run at a time; tokens of a request

torch.manual_seed(0)
embedding = torch.randn(VOCABULARY, Q_HEADS * HEAD_DIM)
wq, wk, wv = (torch.randn(Q_HEADS * HEAD_DIM, n * HEAD_DIM) / 16 for n in (Q_HEADS, KV_HEADS, KV_HEADS))


class Pool:
    """Pages of K and V, and which of them hold the beginning of a prompt that somebody else has as well."""

    def __init__(self):
        self.k, self.v = (torch.zeros(PAGES, KV_HEADS, PAGE, HEAD_DIM) for _ in range(2))
        self.table = torch.zeros(SLOTS, LONGEST // PAGE, dtype=torch.int32)
        self.free, self.users = list(range(PAGES)), [0] * PAGES
        self.known = {}  # the tokens up to the end of a page -> the page

    def take(self, slot, tokens):
        """Pages for a prompt. Returns how many of its first tokens are there already: those of shared pages."""
        shared = 0
        for i in range(0, len(tokens), PAGE):
            begin = tuple(tokens[: i + PAGE])
            page = self.known.get(begin) if shared == i and len(begin) == i + PAGE else None
            if page is None:
                page = self.free.pop()
                if len(begin) == i + PAGE:
                    self.known[begin] = page
            else:
                shared = i + PAGE
            self.users[page] += 1
            self.table[slot, i // PAGE] = page
        return min(shared, len(tokens) - 1)  # the last token is computed in any case: it says what comes next

    def write(self, slot, first, x):
        """Rows of K and V of tokens from `first` on, [tokens, features]."""
        at = torch.arange(first, first + len(x))
        pages, inside = self.table[slot, at // PAGE].long(), at % PAGE
        self.k[pages, :, inside] = (x @ wk).view(-1, KV_HEADS, HEAD_DIM)
        self.v[pages, :, inside] = (x @ wv).view(-1, KV_HEADS, HEAD_DIM)

    def grow(self, slot, first):
        """A page for tokens from `first` on."""
        self.table[slot, first // PAGE] = page = self.free.pop()
        self.users[page] += 1

    def give_back(self, slot, pages):
        for page in self.table[slot, :pages].tolist():
            self.users[page] -= 1
            if self.users[page] == 0:
                self.free.append(page)
                self.known = {begin: at for begin, at in self.known.items() if at != page}


config = adamas.Config(min_context=0, budget=128)
cache = adamas.Cache(KV_HEADS, HEAD_DIM, LONGEST, SLOTS, config=config)
plan = adamas.Plan(Q_HEADS, KV_HEADS, HEAD_DIM, LONGEST, config=config)
pool = Pool()
opening = torch.randint(VOCABULARY, (600,)).tolist()  # the system prompt of every request
waiting = [(i, opening + torch.randint(VOCABULARY, (40 * i + 1,)).tolist(), 20 + 5 * i) for i in range(6)]
running, worst = {}, 0.0

while waiting or running:
    while waiting and len(running) < SLOTS:  # prompts: dense attention would be the model's own; here their rows are all that counts
        slot = min(set(range(SLOTS)) - set(running))
        number, tokens, wanted = waiting.pop(0)
        shared = pool.take(slot, tokens)
        twin = next((other for other, r in running.items() if shared and r["tokens"][:shared] == tokens[:shared]), None)
        if twin is not None:
            cache.share(twin, slot, shared)
        else:
            cache.clear(slot)
            shared = 0
        pool.write(slot, shared, embedding[tokens[shared:-1]])
        pages = adamas.Pages(pool.table.numpy(), PAGE)
        cache.append(slot, shared, len(tokens) - 1 - shared, pool.k, pool.v, pages=pages)
        room = -(-len(tokens) // PAGE)
        running[slot] = dict(number=number, tokens=tokens, prompt=len(tokens), wanted=wanted, shared=shared // PAGE, pages=room)

    slots = sorted(running)
    x = torch.stack([embedding[running[slot]["tokens"][-1]] for slot in slots])
    lengths = [len(running[slot]["tokens"]) for slot in slots]
    for slot, row, length in zip(slots, x, lengths):
        if length > running[slot]["pages"] * PAGE:
            pool.grow(slot, length - 1)
            running[slot]["pages"] += 1
        pool.write(slot, length - 1, row[None])
    pages = adamas.Pages(pool.table.numpy(), PAGE)
    for slot, length in zip(slots, lengths):
        cache.append(slot, length - 1, 1, pool.k, pool.v, pages=pages)
    q = (x @ wq).view(len(slots), 1, Q_HEADS, HEAD_DIM)
    out = plan.step(cache, q, pool.k, pool.v, lengths=lengths, sequences=slots, pages=pages).out

    # The last request of the batch beside attention over the tokens that a step read, from the pages.
    own = pool.table[slots[-1], : -(-lengths[-1] // PAGE)].long()
    keys, values = (of[own].transpose(0, 1).reshape(KV_HEADS, -1, HEAD_DIM)[:, : lengths[-1]] for of in (pool.k, pool.v))
    for head in range(Q_HEADS):
        read = torch.from_numpy(plan.selection(head))
        group = head * KV_HEADS // Q_HEADS
        weights = (keys[group, read] @ q[-1, 0, head] / HEAD_DIM**0.5).softmax(0)
        worst = max(worst, float((weights @ values[group, read] - out[-1, 0, head]).abs().max()))

    for slot, logits in zip(slots, out.reshape(len(slots), -1) @ embedding.T):
        request = running[slot]
        request["tokens"].append(int(logits.argmax()))
        made = len(request["tokens"]) - request["prompt"]
        if made == request["wanted"]:
            print(
                f"request {request['number']}: {len(request['tokens'])} tokens, {made} of them generated, "
                f"{request['shared']} pages shared with another request"
            )
            pool.give_back(slot, request["pages"])
            del running[slot]

print(f"outputs at most {worst:.1e} from attention over the tokens that were read; {PAGES - len(pool.free)} pages in use")
