#!/usr/bin/env python3
"""Draws a run's loss curve from its log.jsonl, as one self-contained SVG or HTML file. Standard library only.

    python3 dev/report/curve.py RUN [-o curve.html] [--title TEXT] [--sample FILE] [--log-x]

RUN is a run folder or a log.jsonl. Training loss is drawn light, its running mean on top, validation as points. The
suffix of the output decides the form; HTML adds a table of figures, and the text of FILE as a sample.
"""

import argparse
import html
import json
import math
import os
import sys

WIDTH, HEIGHT = 920, 520
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 76, 60
INK, MUTED, GRID, PAPER = "#1f2430", "#667085", "#e4e7ec", "#ffffff"
TRAIN, LIGHT, VAL = "#1668b8", "#a3c8ec", "#d1542b"
MAX_POINTS = 1500  # more than this many points to a line cannot be seen, and make the file heavy


def read_log(path):
    """The log's events; a last line cut short by a crash is left out, as a reader of a live log must do."""
    if os.path.isdir(path):
        path = os.path.join(path, "log.jsonl")
    events = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return events


def points(events, kind):
    """[(step, loss)] in order, finite only."""
    pairs = [(e["step"], e["loss"]) for e in events if e.get("event") == kind and isinstance(e.get("loss"), (int, float))]
    return [(step, loss) for step, loss in pairs if math.isfinite(loss)]


def running_mean(curve, half):
    """Mean over `half` points on each side, over fewer where the curve begins (it is steep there: the window stays
    centred) and over the past alone where it ends."""
    sums = [0.0]
    for _, value in curve:
        sums.append(sums[-1] + value)
    out = []
    for i, (step, _) in enumerate(curve):
        reach = min(half, i)
        end = min(len(curve), i + reach + 1)
        out.append((step, (sums[end] - sums[i - reach]) / (end - i + reach)))
    return out


def thin(curve):
    """Keeps the lowest and highest point of each bin, so that spikes survive."""
    if len(curve) <= MAX_POINTS:
        return curve
    size = math.ceil(2 * len(curve) / MAX_POINTS)
    out = []
    for i in range(0, len(curve), size):
        part = curve[i : i + size]
        out.extend(sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}))
    return out


def ticks(low, high, count):
    """Round values 1, 2, 2.5 or 5 times a power of ten, about `count` of them, all within [low, high]."""
    span = (high - low) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    values = []
    while first * step <= high + 1e-9 * span:
        values.append(first * step)
        first += 1
    return values, step


def label(value, step):
    if abs(value) >= 10000 and value % 1000 == 0:
        return f"{value / 1e6:g}M" if value % 1e6 == 0 else f"{value / 1e3:g}k"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if digits and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:  # steps of 0.25 need one more digit
        digits += 1
    return f"{value:.{digits}f}"


class Scale:
    def __init__(self, low, high, begin, end, logarithmic=False):
        self.log = logarithmic
        self.low, self.high = (math.log10(low), math.log10(high)) if logarithmic else (low, high)
        self.begin, self.end = begin, end

    def __call__(self, value):
        value = math.log10(value) if self.log else value
        return self.begin + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.begin)


def text(x, y, content, size=13, color=INK, anchor="start", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}"{extra}>{html.escape(content)}</text>'


def polyline(curve, x, y, color, width):
    path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in curve)
    return (f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}" '
            'stroke-linejoin="round" stroke-linecap="round"/>')  # fmt: skip


def svg(train, val, title, subtitle, log_x=False):
    half = max(1, len(train) // 60)
    smooth = running_mean(train, half)
    everything = [loss for _, loss in train + val]
    low, high = min(everything), max(everything)
    margin = 0.04 * ((high - low) or 1.0)
    low, high = low - margin, high + margin
    last = max(step for step, _ in train + val)
    first = min(step for step, _ in train + val) if log_x else 0
    x = Scale(first, max(last, first + 1), LEFT, WIDTH - RIGHT, log_x)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
           'font-family="system-ui, -apple-system, Segoe UI, DejaVu Sans, sans-serif">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
           text(LEFT, 30, title, 18, extra=' font-weight="600"'), text(LEFT, 52, subtitle, 13, MUTED)]  # fmt: skip
    values, step = ticks(low, high, 7)
    for value in values:
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{GRID}"/>')
        out.append(text(LEFT - 10, y(value) + 4.5, label(value, step), 13, MUTED, "end"))
    if log_x:
        values, step = [10.0**e for e in range(math.ceil(x.low - 1e-9), math.floor(x.high + 1e-9) + 1)], 1
    else:
        values, step = ticks(first, last, 8)
        values = [value for value in values if value == int(value)]  # there is no update 2.5
    for value in values:
        out.append(f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 5}" stroke="{MUTED}"/>')
        out.append(text(x(value), HEIGHT - BOTTOM + 21, label(value, step), 13, MUTED, "middle"))
    out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}" stroke="{MUTED}"/>')
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, "update", 13, MUTED, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out.append(text(20, middle, "loss (nats per token)", 13, MUTED, "middle", f' transform="rotate(-90 20 {middle:.1f})"'))

    out.append(polyline(thin(train), x, y, LIGHT, 1))
    out.append(polyline(thin(smooth), x, y, TRAIN, 2.2))
    out.append(polyline(val, x, y, VAL, 1.4) if len(val) > 1 else "")
    for step_, loss in val:
        out.append(f'<circle cx="{x(step_):.1f}" cy="{y(loss):.1f}" r="3.6" fill="{VAL}" stroke="{PAPER}" stroke-width="1.2"/>')

    entries = [(LIGHT, "training, every update", False), (TRAIN, f"training, mean of {2 * half + 1}", False)]
    entries += [(VAL, "validation", True)] if val else []
    left, row = WIDTH - RIGHT - 190, TOP + 14
    out.append(f'<rect x="{left - 12}" y="{row - 16}" width="202" height="{22 * len(entries) + 10}" rx="6" fill="{PAPER}" fill-opacity="0.88" stroke="{GRID}"/>')
    for color, name, dot in entries:
        out.append(f'<line x1="{left}" x2="{left + 24}" y1="{row}" y2="{row}" stroke="{color}" stroke-width="2.4"/>')
        if dot:
            out.append(f'<circle cx="{left + 12}" cy="{row}" r="3.6" fill="{color}"/>')
        out.append(text(left + 32, row + 4.5, name, 13))
        row += 22
    return "\n".join(filter(None, out + ["</svg>"]))


def human(count):
    for factor, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g}{suffix}"
    return f"{count:g}"


def find(tree, kind, *names):
    """The first value of this type under one of these keys, anywhere in nested objects."""
    if isinstance(tree, dict):
        for name in names:
            if isinstance(tree.get(name), kind) and tree[name] != "":
                return tree[name]
        for value in tree.values():
            if (got := find(value, kind, *names)) is not None:
                return got
    return None


def figures(events, train, val):
    """[(name, value)] worth stating about the run; what the log does not hold is left out."""
    start = next((e for e in events if e.get("event") == "start"), {})
    steps = [e for e in events if e.get("event") == "step"]
    rows = []
    if model := find(start, str, "model_name", "preset", "model"):
        rows.append(("model", model))
    if parameters := find(start, (int, float), "parameters", "num_params"):
        rows.append(("parameters", human(parameters)))
    if rule := find(start, str, "residual"):
        rows.append(("residual", rule))
    if steps and isinstance(steps[-1].get("tokens"), (int, float)):
        rows.append(("tokens", human(steps[-1]["tokens"])))
    speeds = sorted(e["tokens_per_s"] for e in steps[1:] if isinstance(e.get("tokens_per_s"), (int, float)))
    if speeds:
        rows.append(("tokens/s", f"{speeds[len(speeds) // 2]:,.0f}"))
    rows.append(("updates", f"{train[-1][0]:,}"))
    last = [loss for _, loss in train[-20:]]
    rows.append((f"training loss, last {len(last)}", f"{sum(last) / len(last):.4f}"))
    if val:
        rows.append(("final validation loss", f"{val[-1][1]:.4f}"))
        unit = "byte" if find(start, int, "vocab_size") == 256 else "token"  # a vocabulary of bytes
        rows.append((f"bits per {unit}", f"{val[-1][1] / math.log(2):.4f}"))
    return rows


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 2rem auto; max-width: 960px; padding: 0 1rem; background: #f5f6f8; color: #1f2430;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif }}
figure, section {{ background: #fff; border: 1px solid #e4e7ec; border-radius: 10px; padding: 1rem; margin: 0 0 1rem }}
svg {{ display: block; width: 100%; height: auto }}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: .8rem; margin: 0 }}
dt {{ color: #667085; font-size: 13px }} dd {{ margin: 0; font-weight: 600; font-variant-numeric: tabular-nums }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13.5px; margin: 0 }} h2 {{ font-size: 15px; margin: 0 0 .6rem }}
</style></head><body>
<figure>{svg}</figure>
<section><dl>{rows}</dl></section>
{sample}</body></html>
"""


def page(picture, title, rows, sample):
    cells = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in rows)
    block = f"<section><h2>A sample of its text</h2><pre>{html.escape(sample)}</pre></section>\n" if sample else ""
    return PAGE.format(title=html.escape(title), svg=picture, rows=cells, sample=block)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="run folder or log.jsonl")
    parser.add_argument("-o", "--out", help="output, .svg or .html (default: loss.html beside the log)")
    parser.add_argument("--title", help="default: the model's name")
    parser.add_argument("--sample", help="a text file to show in an HTML page")
    parser.add_argument("--log-x", action="store_true", help="updates on a logarithmic axis")
    options = parser.parse_args()
    try:
        events = read_log(options.run)
        sample = open(options.sample, encoding="utf-8", errors="replace").read() if options.sample else ""
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
    train, val = points(events, "step"), points(events, "val")
    if not train:
        sys.exit(f"{options.run}: no updates are logged yet")

    rows = figures(events, train, val)
    facts = dict(rows)
    title = options.title or f"Training {facts.get('model', 'run')}"
    parts = [f"{facts['parameters']} parameters"] if "parameters" in facts else []
    parts += [f"{facts['tokens']} tokens"] if "tokens" in facts else []
    parts += [f"{facts['tokens/s']} tokens/s"] if "tokens/s" in facts else []
    final = "final validation loss" if val else next(name for name in facts if name.startswith("training loss"))
    parts.append(f"{final} {facts[final]}")
    picture = svg(train, val, title, "  ·  ".join(parts), options.log_x)

    folder = options.run if os.path.isdir(options.run) else os.path.dirname(options.run)
    out = options.out or os.path.join(folder, "loss.html")
    with open(out, "w", encoding="utf-8") as file:
        file.write(page(picture, title, rows, sample) if out.endswith((".html", ".htm")) else picture + "\n")
    print(f"loss curve: {out}")


if __name__ == "__main__":
    main()
