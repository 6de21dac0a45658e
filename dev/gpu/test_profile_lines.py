#!/usr/bin/env python3
"""Tests of profile_lines.py on a CSV in the form that ncu writes; plain asserts: python3 dev/gpu/test_profile_lines.py"""
import csv
import io
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import profile_lines as formatter

METRICS = [metric for _, metric, _, _, _ in formatter.METRICS]
UNITS = ["nsecond", "byte", "byte", "%", "%", "%", "register/thread"]


def sample(rows, units=UNITS, metrics=METRICS):
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerow(["ID", "Process ID", formatter.RANGE, "Kernel Name", "Block Size", *metrics])
    writer.writerow([""] * 5 + units)
    for i, (ranges, name, values) in enumerate(rows):
        nested = " ".join(f'"<default domain>:{r}:none:none:none:none:none:none"' for r in ranges)
        writer.writerow([i, 7, f"7  {nested}" if ranges else "", name, "(128, 1, 1)", *values])
    return "==PROF== Connected to process 7\n" + out.getvalue() + "==PROF== Disconnected\n"


ROWS = [
    (["forward", "attention 0"], "void <unnamed>::attention_forward_sm90_kernel<Tile<64, 2>>(Maps, float *)",
     ["100,000", "2000000000", "1000000000", "50.0", "60.0", "25", "168"]),
    (["forward", "attention 1"], "void <unnamed>::attention_forward_sm90_kernel<Tile<64, 2>>(Maps, float *)",
     ["300000", "2000000000", "1000000000", "70.0", "40.0", "25", "168"]),
    (["forward", "seam 2"], "void seam_forward_kernel<(anonymous namespace)::Vanilla, Seam<(bool)1>, (int)1>(SeamForward)",
     ["50000", "500000000", "500000000", "91.5", "n/a", "80", "40"]),
    ([], "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", ["1000", "1", "1", "1", "90", "12", "168"]),
]


def run(text, *options):
    return subprocess.run([sys.executable, os.path.join(HERE, "profile_lines.py"), *options], input=text, capture_output=True, text=True)


def test_a_line_each():
    lines = run(sample(ROWS)).stdout.splitlines()
    assert len(lines) == 1 + 4 + 1, lines
    assert lines[1].split() == ["attention", "0", "attention_forward_sm90_kernel", "100.0", "2.000", "1.000", "50.0", "60.0",
                                "25.0", "168"], lines[1]
    assert lines[3].split() == ["seam", "2", "seam_forward_kernel", "50.0", "0.500", "0.500", "91.5", "-", "80.0", "40"], lines[3]
    assert lines[4].split()[0] == "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT"
    assert lines[5].split() == ["4", "kernels", "451.0", "4.500", "2.500", "-", "-", "-", "-"], lines[5]


def test_by_kernel():
    lines = run(sample(ROWS), "--by-kernel").stdout.splitlines()
    # Sums; shares are weighted by time: (100*50 + 300*70) / 400.
    assert lines[1].split() == ["attention", "2", "x", "attention_forward_sm90_kernel", "400.0", "4.000", "2.000", "65.0",
                                "45.0", "25.0", "168"], lines[1]
    assert len(lines) == 1 + 3 + 1


def test_what_a_card_lacks():
    rows = [(r, n, v[:4]) for r, n, v in ROWS]
    lines = run(sample(rows, UNITS[:4], METRICS[:4])).stdout.splitlines()
    assert lines[1].split()[-3:] == ["-", "-", "-"], lines[1]


def test_errors():
    for text, word in (("", "no CSV"), (sample([]), "no kernel"),
                       (sample(ROWS, ["usecond"] + UNITS[1:]), "--print-units base")):
        ran = run(text)
        assert ran.returncode == 1 and ran.stderr.count("\n") == 1 and word in ran.stderr, ran.stderr


if __name__ == "__main__":
    tests = [(name, test) for name, test in sorted(globals().items()) if name.startswith("test_")]
    for name, test in tests:
        test()
        print(f"{name}: passed")
    print(f"{len(tests)} passed, 0 failed, 0 skipped")
