"""A setting out of range is an error that names the range, and the engine that loaded us then runs plain."""

from pathlib import Path

from engine import MODEL, TEXT, check, complete, need, text_file

need(MODEL, TEXT)
prompt = text_file("settings.txt", 600)
plain = complete(prompt, backend=False, tokens=8, context=512)
for name, value in (("budget", "-1"), ("budget", "1e99"), ("budget", "nan"), ("policy", "best"), ("rows", "7")):
    bad = complete(prompt, tokens=8, context=512, min_context=0, **{name: value})
    sentences = [line for line in bad.err.splitlines() if "The engine goes on without it." in line]
    print("     ", *sentences)
    check(len(sentences) == 1, f"{name}={value}: one sentence")
    wanted = "1 to 2147483647" if name == "budget" else "streaming" if name == "policy" else "decode"
    check(wanted in sentences[0] and name in sentences[0].lower(), "... that names the setting and its range")
    check(bad.code == 0 and not bad.reports and bad.out == plain.out, "... and the engine runs plain")
good = complete(prompt, tokens=8, context=512, min_context=0, budget=32)
check(good.code == 0 and good["sparse_rows"] > 0, "a good setting runs sparse")

# A settings file: general lines for all, sections for some layers. The 30 layers run one after the other, 8 steps of decoding.
layers = Path("layers.conf")
layers.write_text("budget = 32\nmin_context = 0\nprompt = engine\n[layers 0-9,29]\npolicy = full\n[layers 10]\nbudget = 48\n")
some = complete(prompt, tokens=8, context=512, config=layers)
dense, sparse = some["dense_rows"], some["sparse_rows"]
steps = sparse // 19
warm_up = dense - 11 * steps  # two tokens through every layer, fewer than any budget
check(some.code == 0 and sparse == 19 * steps > 0 and warm_up == 2 * 30, f"11 of 30 layers are dense, as the file says ({dense} rows, {sparse} sparse)")
read = some["tokens_selected"] / sparse
check(abs(read - (18 * 32 + 48) / 19) < 1e-6, f"and one of the others reads 48 tokens and not 32 ({read:.2f} on average)")
text = text_file("long.txt", 6000)
for way in ("dense", "sparse"):  # to read a prompt; its rows are ours either way
    layers.write_text(f"prompt = {way}\n")
    one = complete(text, tokens=8, context=2048, config=layers)
    check(one.code == 0 and one["dense_rows"] > 30 * 1000, f"a prompt is read, {way} ({one['dense_rows']} rows)")
layers.write_text("budget = 32\n[layers 3\nbudget = 5\n")
bad = complete(prompt, tokens=8, context=512, config=layers)
check(bad.out == plain.out and "line 2 of layers.conf" in bad.err, "a file that is wrong is refused with its line, and the engine runs plain")
