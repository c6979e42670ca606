"""older_header.py adamas.h OUT: the header as it was before the last fields of each growing struct came, for a program that is run with today's library."""

import pathlib
import re
import sys

LAST_FIELDS = {  # of each struct that may grow, last first; together as large as its alignment, so that the struct is shorter without them
    "adamas_config": ["prompt", "stats", "rows"],
    "adamas_cache_params": ["origin", "memory"],
    "adamas_step_stats": ["rows_stale"],
    "adamas_step_times": ["dense"],
    "adamas_plan_params": ["max_rows"],
    "adamas_step_params": ["v_scale", "k_scale", "workspace_bytes", "workspace", "stream", "times"],
}


def without(header, struct, field):
    body = re.search(rf"typedef struct {struct} \{{\n(.*?)\}} {struct};", header, re.S)
    shorter, count = re.subn(rf"\n[^\n;]*\b\*?{field};[^\n]*\n$", "\n", "\n" + body.group(1))
    if count != 1:
        sys.exit(f"{struct} does not end with {field}: add the new last field here")
    return header[: body.start(1)] + shorter[1:] + header[body.end(1) :]


def main():
    header = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
    for struct, fields in LAST_FIELDS.items():
        for field in fields:
            header = without(header, struct, field)
    out = pathlib.Path(sys.argv[2])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(header, encoding="utf-8")


if __name__ == "__main__":
    main()
