#!/usr/bin/env python3
"""A kernel a line from Nsight Compute's raw CSV (dev/gpu/profile.sh makes it), in the order of launches, then sums.

    ncu --import REPORT --csv --page raw --print-units base --nvtx | dev/gpu/profile_lines.py [--by-kernel]

Columns: the innermost NVTX range, the kernel, microseconds, gigabytes read from and written to DRAM, share of DRAM's peak
bandwidth, share of the time in which tensor pipes were busy, share of the warps that fit, registers of a thread. A column
that the card does not have is "-".
"""

import argparse
import csv
import re
import sys

RANGE = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
# Column, metric, its base unit, factor to what is shown, digits.
METRICS = [
    ("us", "gpu__time_duration.sum", ("ns", "nsecond"), 1e-3, 1),
    ("GB read", "dram__bytes_read.sum", ("byte",), 1e-9, 3),
    ("written", "dram__bytes_write.sum", ("byte",), 1e-9, 3),
    ("DRAM %", "dram__throughput.avg.pct_of_peak_sustained_elapsed", ("%",), 1, 1),
    ("tensor %", "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active", ("%",), 1, 1),
    ("warps %", "sm__warps_active.avg.pct_of_peak_sustained_active", ("%",), 1, 1),
    ("registers", "launch__registers_per_thread", ("register/thread", ""), 1, 0),
]
SUMMED = 3  # of those, the first ones add up


def innermost_range(text):
    """'7  "<default domain>:forward:none:..."  "<default domain>:attention 3:none:..."' -> 'attention 3'."""
    names = re.findall(r'"[^":]*:([^":]*):', text or "")
    return names[-1] if names else ""


def short_name(kernel):
    """Without return type, namespaces, template arguments and parameters."""
    name, depth = "", 0
    for ch in re.sub(r"\((anonymous namespace|unnamed namespace)\)::|<unnamed>::", "", kernel):
        if ch == "(" and not depth:
            break
        depth += (ch == "<") - (ch == ">")
        if not depth and ch != ">":
            name += ch
    return name.split("::")[-1].split()[-1]


def read_kernels(lines):
    """[(range, kernel, [value or None per metric])]; everything in front of the header is ncu's own talk."""
    lines = [line for line in lines if not line.startswith("==")]
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        sys.exit("profile_lines.py: no CSV of ncu on the input (its raw page has a line that begins with \"ID\")")
    rows = list(csv.DictReader(lines[start:]))
    if len(rows) < 2:
        sys.exit("profile_lines.py: ncu profiled no kernel")
    units, kernels = rows[0], []
    for _, metric, accepted, _, _ in METRICS:
        if metric in units and units[metric] not in accepted:
            sys.exit(f"profile_lines.py: {metric} is in {units[metric]}: use ncu --print-units base")
    for row in rows[1:]:
        values = []
        for _, metric, _, factor, _ in METRICS:
            text = (row.get(metric) or "").replace(",", "")
            values.append(float(text) * factor if re.fullmatch(r"[-+0-9.eE]+", text) else None)
        kernels.append((innermost_range(row.get(RANGE)), short_name(row["Kernel Name"]), values))
    return kernels


def by_kernel(kernels):
    """One line per range without its layer and kernel: sums, and means weighted by time."""
    groups = {}
    for where, name, values in kernels:
        groups.setdefault((re.sub(r" \d+$", "", where), name), []).append(values)
    out = []
    for (where, name), members in groups.items():
        values = []
        for i in range(len(METRICS)):
            known = [(v[0] or 0, v[i]) for v in members if v[i] is not None]
            weight = sum(t for t, _ in known)
            if not known:
                values.append(None)
            elif i < SUMMED:
                values.append(sum(x for _, x in known))
            else:
                values.append(sum(t * x for t, x in known) / weight if weight else known[0][1])
        out.append((where, f"{len(members)} x {name}", values))
    return sorted(out, key=lambda line: -(line[2][0] or 0))


def print_lines(lines, out):
    wide = [max([len(line[i]) for line in lines] + [len(("range", "kernel")[i])]) for i in (0, 1)]
    print("  ".join([f"{'range':{wide[0]}}", f"{'kernel':{wide[1]}}"] + [f"{m[0]:>9}" for m in METRICS]), file=out)
    for where, name, values in lines:
        cells = ["-" if v is None else f"{v:.{m[4]}f}" for v, m in zip(values, METRICS)]
        print("  ".join([f"{where:{wide[0]}}", f"{name:{wide[1]}}"] + [f"{c:>9}" for c in cells]), file=out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by-kernel", action="store_true", help="one line per operation, the slowest first")
    args = parser.parse_args()
    kernels = read_kernels(sys.stdin.read().splitlines())
    total = [sum(v[i] or 0 for _, _, v in kernels) for i in range(SUMMED)] + [None] * (len(METRICS) - SUMMED)
    lines = by_kernel(kernels) if args.by_kernel else kernels
    print_lines(lines + [("", f"{len(kernels)} kernels", total)], sys.stdout)


if __name__ == "__main__":
    main()
