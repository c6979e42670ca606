"""A setting out of range is an error that names the range, and the engine that loaded us then runs plain."""

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
