"""The tables of README.md and benchmarks/README.md that show results, made from the result files.

A document marks the place of a table by ``<!-- table: NAME -->`` and ``<!-- end -->``; what lies between is generated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.recording import RESULTS, Row, read

CPU = "amd-epyc-2-cores"
DOCUMENTS = (RESULTS.parents[1] / "README.md", RESULTS.parent / "README.md")
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES: dict[str, Callable[[], str]] = {}


def update() -> None:
    """Generate all tables in place."""
    for path in DOCUMENTS:
        path.write_text(generated(path.read_text()))


def generated(text: str) -> str:
    """A document with its tables as the results have them now."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def table(make: Callable[[], str]) -> Callable[[], str]:
    """Register a function under its name, words joined by hyphens."""
    TABLES[make.__name__.replace("_", "-")] = make
    return make


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, lines)])


def select(name: str, **wanted: Any) -> list[Row]:
    """Rows of results/NAME.json with the given values."""
    rows = [r for r in read(RESULTS / f"{name}.json")["rows"] if all(r.get(key) == wanted[key] for key in wanted)]
    if not rows:
        raise ValueError(f"{name}: expected a row with {wanted}, found none")
    return rows


def one(name: str, **wanted: Any) -> Row:
    (row,) = select(name, **wanted)
    return row


def digits(value: float, count: int) -> str:
    """`count` significant digits, thousands separated, no exponent."""
    rounded = float(f"{value:.{count}g}")
    whole = len(f"{abs(int(rounded))}") if abs(rounded) >= 1 else 0
    if rounded == 0 or whole >= count:
        return f"{rounded:,.0f}"
    return f"{rounded:.{count}g}" if abs(rounded) < 1 else f"{rounded:,.{count - whole}f}"


def unique(rows: Sequence[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


@table
def bottleneck_cpu() -> str:
    rows = select(f"{CPU}-bottleneck")
    lines = []
    for name in unique(rows, "implementation"):
        own = {row["pass"]: row for row in rows if row["implementation"] == name}
        times = [f"{own[what]['median_ms']:.0f}" for what in ("forward", "backward", "both")]
        lines.append([name, *times, f"{own['both']['saved_for_backward_mb']:.0f}"])
    return markdown(["", "forward", "backward", "both", "MB kept for the backward pass"], lines)


@table
def bottleneck_resources() -> str:
    rows = select("compiled-bottleneck", part="resources", case="ViT-Tiny bf16")

    def cell(row: Row) -> str:
        passes = row["kernel"].removeprefix("backward ") + " " if row["kernel"].startswith("backward") else ""
        return f"{passes}{row['registers']} / {row['stack']} / {row['shared']:,}"

    architectures = unique(rows, "arch")
    lines = [
        [kernel, *("; ".join(cell(r) for r in rows if r["arch"] == arch and r["kernel"].split()[0] == kernel)
        for arch in architectures)]
        for kernel in ("pack", "unmerge", "forward", "backward")
    ]  # fmt: skip
    return markdown(["ViT-Tiny, bf16", *(f"sm_{arch}" for arch in architectures)], lines)


@table
def bottleneck_predicted() -> str:
    counts = ("instructions", "floating_point", "special_function", "tensor_core", "shared_memory", "barriers")
    lines = [
        [row["kernel"].replace(" ", ", "), *(f"{row[count]:,}" for count in counts), f"{row['issue_us']:.1f}"]
        for row in select("compiled-bottleneck", part="prediction")
    ]
    shown = ["all", *(f"of them {counts[1].replace('_', ' ')}", *(c.replace("_", " ") for c in counts[2:]))]
    return markdown(["", *shown, "µs to issue a layer, batch 256"], lines)


@table
def information() -> str:
    rows = select(f"{CPU}-information", part="sums")
    lines = []
    for d in unique(rows, "d"):
        of = {row["implementation"]: row for row in rows if row["d"] == d}
        rate = of["native"]["median_pairs_per_s"] / 1e9
        ratios = [digits(of[peer]["ratio_of_native"], 2 if of[peer]["ratio_of_native"] < 100 else 3)
                  for peer in ("keops", "torch", "float64")]  # fmt: skip
        lines.append([f"{d}", digits(rate, 3), f"{of['native']['share_of_multiply_add']:.0%}", *ratios])
    head = ["d", "10⁹ pairs/s", "share of multiply-add rate (higher is better)"]
    return markdown(
        [*head, "times as fast as KeOps", "as torch GEMM + logsumexp", "as the float64 transcription"], lines
    )


@table
def data_loaders() -> str:
    rows = select(f"{CPU}-data", part="loading")
    lines = []
    for rand in (True, False):
        for cores in unique(rows, "cores"):
            of = {row["loader"]: row for row in rows if (row["cores"], row["rand_augment"]) == (cores, rand)}
            cells = [f"{of['plain']['median_images_per_s']:,.0f}"]
            for loader in ("torchvision", "torchvision, cached", "dali", "dali, cached"):
                cells.append(f"{of[loader]['median_images_per_s']:,.0f}, {of[loader]['ratio_to_plain']:.1f} ×")
            number = {1: "one core", 2: "two cores"}[cores]
            lines.append([f"{'RandAugment' if rand else 'without'}, {number}", *cells])
    return markdown(["", "plain", "ours on torchvision", "cached", "DALI", "DALI, cached"], lines)


@table
def training_step_cpu() -> str:
    lines = [
        [row["variant"], f"{row['median_ms']:.0f}", f"{row['images_per_s']:,.0f}", f"{row['ratio_to_full']:.2f}"]
        for row in select(f"{CPU}-train")
    ]
    return markdown(["", "ms per step", "images/s", "time relative to full (lower is better)"], lines)


@table
def step_graph() -> str:
    rows = select("step-graph", kind="all")
    lines = []
    for variant in unique(rows, "variant"):
        eager, fused = (one("step-graph", kind="all", variant=variant, how=how) for how in ("eager", "fused"))
        lines.append(
            [
                variant, f"{eager['launches']:,}", f"{eager['gb']:.1f}", f"{eager['ms']:.1f}", f"{fused['launches']:,}",
                f"{fused['gb']:.1f}", f"{fused['ms']:.2f}", digits(fused["images_per_s"], 3),
                f"{fused['gb_per_block']:.2f}",
            ]
        )  # fmt: skip
    head = ["", "eager: launches", "GB", "ms", "fused: launches", "GB", "ms", "images/s", "GB per block"]
    return markdown(head, lines)


@table
def scaling_estimate() -> str:
    lines = [
        [
            *(f"{row[key]}" for key in ("batch", "gpus", "images_per_gpu")),
            f"{row['ms']:.2f}", digits(row["images_per_s"], 4), f"{row['efficiency']:.0%}",
        ]
        for row in select("scaling-estimate")
    ]  # fmt: skip
    head = ["global batch", "GPUs", "images per GPU", "ms per step", "images/s", "efficiency (higher is better)"]
    return markdown(head, lines)


@table
def repetition() -> str:
    rows = select(f"{CPU}-spectrum", part="run", data="repetition")
    lines = []
    for attention, beta in dict.fromkeys((row["attention"], row["beta"]) for row in rows):
        runs = [row for row in rows if (row["attention"], row["beta"]) == (attention, beta)]
        nats = [digits(run["nats_per_patch"], 1 if run["nats_per_patch"] < 0.01 else 2) for run in runs
                if run["nats_per_patch"] is not None]  # fmt: skip
        cells = [", ".join(digits(100 * run["accuracy"], 3) for run in runs)]
        for key in ("active_heads", "heads_active_on_average"):
            cells.append(", ".join(f"{run[key]}" for run in runs) if attention == "ib" else "–")
        name = f"β = {beta:g}" if attention == "ib" else {"none": "no attention", "full": "full attention"}[attention]
        lines.append([name, (nats[0] if attention == "none" else ", ".join(nats)) or "–", *cells])
    return markdown(["", "nats per patch", "accuracy, %", "active heads of 4", "active on average"], lines)


@table
def measured_where() -> str:
    loop, batched, fused = (
        one(f"{CPU}-bottleneck", **{"implementation": name, "pass": "both"})["median_ms"]
        for name in ("per-head loop", "batched reference", "fused")
    )
    steps = [
        one(f"{CPU}-train", variant=variant)["ratio_to_full"]
        for variant in ("ib, loop over heads, eager", "ib, reference, eager", "ib, fused")
    ]
    keops = [row["ratio_of_native"] for row in select(f"{CPU}-information", part="sums", implementation="keops")]
    narrow, wide = (one(f"{CPU}-information", part="nmi", active=active) for active in (1, 3))
    dali, dali_cached, cached = (
        one(f"{CPU}-data", part="loading", cores=2, rand_augment=True, loader=loader)["ratio_to_plain"]
        for loader in ("dali", "dali, cached", "torchvision, cached")
    )
    lines = [
        [
            "bottleneck",
            f"CPU library right against float64; {loop / fused:.1f} times as fast as the loop over heads, "
            f"{batched / fused:.1f} times as fast as the batched reference (12 layers of ViT-Tiny, batch 4, forward "
            "and backward); Triton's kernels right in its interpreter, compiled for sm_80, sm_90, sm_100",
        ],
        [
            "training step",
            "every way agrees over 200 steps; digits recipe, time relative to the unmodified ViT's step (lower is "
            f"better): {steps[0]:.1f} with a loop over heads, {steps[1]:.1f} by the reference, {steps[2]:.1f} fused",
        ],
        [
            "estimator",
            f"{', '.join(f'{ratio:.0f}' for ratio in keops)} times as fast as KeOps at d = 1, 16, 32; NMI of two heads "
            f"over {narrow['components']:,} patches in {narrow['wall_s']:.1f} s (one active dimension each), "
            f"{wide['wall_s']:.1f} s (three, standard error {wide['nmi_se']:.3f})",
        ],
        [
            "data, RandAugment",
            f"DALI {dali:.1f} times as fast as plain torchvision; cached {dali_cached:.1f} times (through torchvision "
            f"{cached:.1f} times)",
        ],
    ]
    head = ["", "CPU (2 cores of an AMD EPYC, Zen 3)", "GPU"]
    return markdown(head, [[*line, "not run"] for line in lines])
