#!/usr/bin/env python3
"""Draw the curves of one or several runs: loss, learning rate, gradient norm and throughput, as one picture.

Reads log.jsonl of each run folder, also while the run goes on. Needs Python 3.9 or later and matplotlib; where the
Python that runs this has none, it goes on in the one of .venv.
"""
from __future__ import annotations

import argparse
import io
import json
import math
import os
import pathlib
import sys
from dataclasses import dataclass, field
from typing import Iterator, NoReturn, Optional

from support.messages import printable
from support.packages import go_on_in_venv
from support.regular_files import open_regular, write_whole

EXAMPLES = """\
examples:
  python3 scripts/plot.py runs/tiny                                    writes runs/tiny/plot.png
  python3 scripts/plot.py runs/tiny runs/rope --output both.png        two runs in one picture, by name
  python3 scripts/plot.py runs/tiny --x tokens --smooth 1              over tokens, nothing smoothed

Loss, gradient norm and throughput are noisy: the line is an average over about --smooth steps, the values themselves
stand faint behind it. Skipped steps are marked below the loss; values that are not finite, or beyond 1e100, leave a
gap.
"""


def stop(message: str) -> NoReturn:
    print(f"plot: error: {printable(message)}", file=sys.stderr)
    sys.exit(2)


def note(message: str) -> None:
    print(f"plot: {printable(message)}", file=sys.stderr)


# ---- reading --------------------------------------------------------------------------------------------------------

FIELDS = ("loss", "val_loss", "lr", "grad_norm", "tokens_per_second")
MAX_LINE_BYTES = 1 << 20  # the lines of ./train have less than 1000
MAX_DRAWN = 1e100  # an axis computes with squares of what is drawn
MIN_DRAWN = 1e-100
MAX_COUNT = 2**53  # axes count in float64


@dataclass
class Run:
    """Holds one value per step and field, in the order of the steps; NaN stands where a value does not apply or is not
    finite."""
    name: str
    steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in FIELDS})
    skipped: list[int] = field(default_factory=list)  # indices into steps


def number(value: object) -> float:
    """Reads a logged value as what can be drawn: NaN for null (the value does not apply) and for non-finite values,
    which are logged as strings."""
    if isinstance(value, (list, dict)):
        raise ValueError("it is no number")
    try:
        value = math.nan if value is None else float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.nan
    if abs(value) < MIN_DRAWN:
        return 0.0
    return value if abs(value) <= MAX_DRAWN else math.nan  # NaN fails the comparison


def count_of(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError("it is no number of steps or tokens")
    return value


def read_lines(log: pathlib.Path) -> Iterator[bytes]:
    try:
        with open_regular(str(log)) as file:
            while line := file.readline(MAX_LINE_BYTES):
                yield line
    except OSError as error:
        stop(f"cannot read {log}: {error.strerror}, name a run folder (it holds log.jsonl once a step is done)")


def read_run(path: pathlib.Path) -> Run:
    log = path / "log.jsonl" if path.is_dir() else path
    if not path.exists():
        stop(f"there is no {path}, name a run folder such as runs/tiny")
    entries: dict[int, tuple[int, bool, list[float]]] = {}
    unreadable = []
    index = 0
    for index, line in enumerate(read_lines(log), 1):
        try:
            entry = json.loads(line)
            values = [number(entry.get(name)) for name in FIELDS]
            # A run that was killed and not yet resumed may hold a step twice: the later one counts.
            entries[count_of(entry["step"])] = (count_of(entry["tokens"]), bool(entry["skipped"]), values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            unreadable.append(index)
    if not entries:
        stop(f"{log} holds no step yet, " + ("is it the log of a run?" if unreadable else "wait for the first one"))
    if unreadable and unreadable != [index]:  # a torn last line is what a killed or a running program leaves
        note(f"{log}: left out {len(unreadable)} lines that are no log entries, the first is line {unreadable[0]}")
    run = Run((log.parent if log.name == "log.jsonl" else log).resolve().name)
    for place, (step, (tokens, skipped, values)) in enumerate(sorted(entries.items())):
        run.steps.append(step)
        run.tokens.append(tokens)
        for name, value in zip(FIELDS, values):
            run.values[name].append(value)
        if skipped:
            run.skipped.append(place)
    return run


def smooth(values: list[float], span: float) -> list[float]:
    """Returns the exponential moving average with the weight of a mean over `span` values, without the pull of its
    start (Adam's bias correction). NaN stays NaN and does not spoil the values after it."""
    keep = max(0.0, 1 - 2 / (span + 1))
    mean = weight = 0.0
    result = []
    for value in values:
        if math.isnan(value):
            result.append(math.nan)
            continue
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(mean / weight)
    return result


def distinct_names(runs: list[Run], paths: list[pathlib.Path]) -> None:
    """Names runs by their paths where two folders have the same name."""
    names = [run.name for run in runs]
    for run, path in zip(runs, paths):
        if names.count(run.name) > 1:
            run.name = str(path)


# ---- drawing --------------------------------------------------------------------------------------------------------

# Okabe and Ito's palette (2008): the colour-blind can tell its colours apart, too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#999999", "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.8, "xtick.color": "#444444",
    "ytick.color": "#444444", "legend.frameon": False, "figure.facecolor": "white", "savefig.facecolor": "white",
    "lines.linewidth": 1.8, "lines.solid_capstyle": "round",
}


def label(name: str) -> str:
    """Returns a run's name as matplotlib takes it: a dollar sign would begin a formula."""
    return printable(name).replace("$", r"\$")


def short_count(value: float, _position: object = None) -> str:
    """Writes 1234567 as "1.23M"."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def finite(values: list[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def draw_noisy(axis, x: list[int], values: list[float], span: float, color: str, label: Optional[str]) -> None:
    if span > 1:
        axis.plot(x, values, color=color, alpha=0.25, linewidth=0.9)
    averaged = smooth(values, span)
    axis.plot(x, averaged, color=color, label=label, marker="o" if len(finite(values)) == 1 else None)


def draw_loss(axis, run: Run, x: list[int], span: float, color: str, is_alone: bool) -> None:
    draw_noisy(axis, x, run.values["loss"], span, color, "training" if is_alone else label(run.name))
    points = [(at, value) for at, value in zip(x, run.values["val_loss"]) if not math.isnan(value)]
    if points:
        axis.plot(*zip(*points), color=COLORS[1] if is_alone else color, linestyle="-" if is_alone else "--",
                  marker="o", markersize=4.5, markeredgecolor="white", markeredgewidth=0.8,
                  label="validation" if is_alone else None)
        if is_alone:
            at, value = points[-1]
            axis.annotate(f"{value:.3f}", (at, value), xytext=(0, 7), textcoords="offset points", ha="right",
                          color=COLORS[1], fontsize=9, fontweight="bold")
    if run.skipped:
        # The marks stand on the lower edge of the axis, since the loss of a skipped step may not be finite.
        axis.plot([x[index] for index in run.skipped], [0.015] * len(run.skipped), linestyle="none", marker="x",
                  color="#c00000" if is_alone else color, markersize=5, transform=axis.get_xaxis_transform(),
                  label=f"skipped ({len(run.skipped)})" if is_alone else None, clip_on=False)


def choose_norm_scale(axis, runs: list[Run], ticker) -> None:
    """Makes the axis linear from 0, or logarithmic where one spike would flatten the rest of the curve."""
    values = sorted(value for run in runs for value in finite(run.values["grad_norm"]))
    if values and values[0] > 0 and values[-1] > 10 * values[len(values) // 2]:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _position: f"{value:g}"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    else:
        axis.set_ylim(bottom=0)


def draw(runs: list[Run], x_axis: str, smoothing: Optional[float], matplotlib):
    from matplotlib import figure, ticker

    with matplotlib.rc_context(STYLE):
        picture = figure.Figure(figsize=(10, 6.6), layout="constrained")
        grid = picture.add_gridspec(2, 3, height_ratios=(1.7, 1))
        loss = picture.add_subplot(grid[0, :])
        lr, norm, speed = (picture.add_subplot(grid[1, column]) for column in range(3))
        is_alone = len(runs) == 1
        for index, run in enumerate(runs):
            color = COLORS[index % len(COLORS)]
            x = run.steps if x_axis == "steps" else run.tokens
            span = smoothing or max(1.0, len(run.steps) / 50)
            draw_loss(loss, run, x, span, color, is_alone)
            lr.plot(x, run.values["lr"], color=color, marker="o" if len(x) == 1 else None)
            draw_noisy(norm, x, run.values["grad_norm"], span, color, None)
            draw_noisy(speed, x, run.values["tokens_per_second"], span, color, None)
        loss.set_title(f"{label(runs[0].name)}: loss" if is_alone else "Loss (dashed: validation; x: a skipped step)")
        loss.set_ylabel("nats per token")
        lr.set_title("Learning rate")
        norm.set_title("Gradient norm")
        speed.set_title("Tokens per second")
        lr.set_ylim(bottom=0)
        lr.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _position: f"{value:g}"))
        choose_norm_scale(norm, runs, ticker)
        speed.set_ylim(bottom=0)
        speed.yaxis.set_major_formatter(ticker.FuncFormatter(short_count))
        for axis in (loss, lr, norm, speed):
            axis.set_xlabel("step" if x_axis == "steps" else "tokens")
            axis.xaxis.set_major_formatter(ticker.FuncFormatter(short_count))
            num_ticks = 8 if axis is loss else 4
            axis.xaxis.set_major_locator(ticker.MaxNLocator(num_ticks, integer=True, steps=(1, 2, 5, 10)))
            axis.margins(x=0.02)
        loss.legend(loc="upper right", ncol=1 if is_alone else max(1, math.ceil(len(runs) / 8)))
    return picture


# ---- the command line -----------------------------------------------------------------------------------------------


def import_matplotlib():
    """Returns matplotlib, or starts the program again in the Python of .venv, which may have it."""
    try:
        import matplotlib
        return matplotlib
    except ImportError:
        stop("matplotlib is missing, get it with:  "
             f"{go_on_in_venv(pathlib.Path(__file__).resolve(), ['matplotlib'])}")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        stop(f"{message}, see --help")


def smoothing(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 1e9")
    return value


def main() -> int:
    parser = Parser(prog="plot", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                    description="Draw loss, learning rate, gradient norm and throughput of runs.", epilog=EXAMPLES)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="a run folder, such as runs/tiny")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE",
                        help="where the picture goes: .png, .svg or .pdf (default: plot.png in the first run's folder)")
    parser.add_argument("--x", choices=("steps", "tokens"), default="steps", help="what runs along (default: steps)")
    parser.add_argument("--smooth", type=smoothing, metavar="STEPS",
                        help="average over about so many steps; 1: none (default: a fiftieth of the run)")
    args = parser.parse_args()
    runs = [read_run(path) for path in args.runs]
    distinct_names(runs, args.runs)
    first = args.runs[0]
    output = args.output or (first if first.is_dir() else first.parent) / "plot.png"
    if output.suffix not in (".png", ".svg", ".pdf"):
        stop(f"--output {output} must end in .png, .svg or .pdf")
    matplotlib = import_matplotlib()
    picture = draw(runs, args.x, args.smooth, matplotlib)
    drawn = io.BytesIO()
    picture.savefig(drawn, dpi=120, format=output.suffix[1:])
    if output.is_symlink() or (output.exists() and not output.is_file()):
        stop(f"cannot write {output}: it is a link or no regular file, choose another --output")
    try:
        write_whole(str(output), drawn.getvalue(), f"{output}.{os.getpid()}.tmp")
    except OSError as error:
        stop(f"cannot write {output}: {error.strerror}, choose another --output")
    print(printable(f"wrote {output}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
