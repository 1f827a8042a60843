"""How fast Fathom's engine is, beside other engines on the same weights, machine, prompts and threads.

    python benchmarks/serving.py [--quick] [--rivals llama,vllm] [--dtypes float32,bfloat16]

Measured: decoding with 1, 8 and 16 streams (prompts of 16 tokens, answers of 200, greedy) and reading a prompt of 1,000
tokens. Tokens per second; decoding excludes the prompts. Contenders:

    fathom           as it comes (drafts with the MTP module where that pays), and with drafts never and always
    transformers     generate(); every implementation it has for the model is tried, also a compiled one
    llama.cpp, vLLM  with --rivals, in environments of their own (made on first use, see rivals/environments.py)

How a comparison is kept fair
 1. All load the same BF16 checkpoint, made from the model by `fathom convert`; --dtypes says what they compute in.
    Fathom also tries the model as it is stored (variant "stored": minnow's FP8 weights, computed with in FP32), since
    no other contender reads that.
 2. Each is a process of its own; they take turns within each repeat, so that a slow minute hits all of them.
 3. Every variant of every contender is tried first; the repeats use the best one for each measurement.
 4. The first 20 greedy tokens of each must be Fathom's, else the row says that it computes something else.
 5. Medians over the repeats; ratios are medians of the ratios within a repeat.

"floor" is what memory bandwidth (decoding) or arithmetic (prompt) allows on this machine, measured in the same repeats
(rivals/machine_runner.py, rivals/workload.py). The last line is one JSON document; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parent / "rivals"))
from contender import Contender, Unable
from environments import RIVALS, NotInstalled, python_of
from workload import LONG, Measure, floor_rate, measures, prompts, step_bytes

from fathom.checkpoint.convert import convert
from fathom.checkpoint.plan import Options
from fathom.config import ModelConfig
from fathom.models.resolve import resolve
from fathom.text.tokenizer import Tokenizer

AGREE = 20  # first tokens that must be the same
START_SECONDS, ANSWER_SECONDS = 300, 900  # a first answer may include minutes of compiling
MATMUL_SIZE = 1536
DRAM_BYTES = 512 * 2**20
FATHOM = {"fathom": "auto", "fathom, no drafts": False, "fathom, drafts": True}
VALUE_BYTES = {"stored": 1.33, "float32": 4, "bfloat16": 2, "float16": 2}  # stored: FP8, the head in BF16
T = TypeVar("T")
Encode = Callable[[str], list[int]]
Rates = dict[str, dict[str, list[float]]]  # contender -> measurement -> one rate per repeat


def say(text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minnow", help="a folder or the bundled model")
    parser.add_argument("--quick", action="store_true", help="short answers, one repeat, nothing compiled")
    parser.add_argument("--repeats", type=int, help="default 5, with --quick 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", default="float32", help="to compute in; each contender's best is taken")
    parser.add_argument("--rivals", default="", help="any of llama, vllm; commas between")
    parser.add_argument(
        "--envs", type=Path, default=Path.home() / ".cache/fathom/bench", help="folder of their environments"
    )
    args = parser.parse_args()
    args.repeats = args.repeats or (1 if args.quick else 5)
    args.rivals = [name for name in args.rivals.split(",") if name]
    args.dtypes = args.dtypes.split(",")
    if unknown := [name for name in args.rivals if name not in RIVALS]:
        parser.error(f"--rivals has {unknown[0]!r}; known are {', '.join(RIVALS)}")
    if unknown := [name for name in args.dtypes if name not in VALUE_BYTES]:
        parser.error(f"--dtypes has {unknown[0]!r}; known are {', '.join(VALUE_BYTES)}")
    if args.repeats < 1 or args.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    return args


@dataclass
class Field:
    """Who runs, and why the others do not."""

    machine: Contender
    running: dict[str, Contender]
    failed: dict[str, str]

    def drop(self, key: str, why: Exception) -> None:
        """It cannot go on."""
        self.failed[key] = str(why)
        self.running.pop(key).stop()
        say(f"{key} is out: {why}")


def start_all(args: argparse.Namespace, weights: Path, work: Path, stack: ExitStack) -> Field:
    """Every contender in a process of its own, which ends with `stack`."""
    common = {"model": str(weights), "threads": args.threads, "dtypes": args.dtypes, "compiled": not args.quick}
    planned: dict[str, tuple[str | None, str, dict[str, Any]]] = {
        **{key: (None, "fathom_runner.py", {"speculative": how, "stored": args.model}) for key, how in FATHOM.items()},
        "transformers": (None, "transformers_runner.py", {}),
        **{name: (name, RIVALS[name].script, {"gguf": str(work)}) for name in args.rivals},
    }
    machine = Contender.start("machine", sys.executable, "machine_runner.py", common, work, START_SECONDS)
    stack.callback(machine.stop)
    field = Field(machine, {}, {})
    for key, (rival, script, more) in planned.items():
        try:
            python = sys.executable if rival is None else python_of(rival, args.envs, say)
            contender = Contender.start(key, python, script, common | more, work, START_SECONDS)
            stack.callback(contender.stop)
            field.running[key] = contender
            say(f"{key}: {contender.name}")
        except (Unable, NotInstalled) as error:
            field.failed[key] = str(error)
            say(f"{key} does not run: {error}")
    return field


def choose_variants(contender: Contender, all_measures: list[Measure], encode: Encode) -> list[int]:
    """Find the best variant for each measurement (point 3). The first greedy tokens of the first variant."""
    check = Measure("check", 1, AGREE)
    _, answers = contender.rate(
        ANSWER_SECONDS, do="decode", variant=contender.variants[0], prompts=prompts(check, 0, encode), new=AGREE
    )
    rates: dict[str, dict[str, float]] = {m.name: {} for m in all_measures}
    for variant in contender.variants:
        for measure in all_measures:
            warm_up = measure if variant.endswith("compiled") else replace(measure, new=min(measure.new, 8))
            try:
                run(contender, warm_up, variant, 998, encode)
                rates[measure.name][variant] = run(contender, measure, variant, 999, encode)
            except Unable as error:
                say(f"{contender.key}, {variant}, {measure.name}: {error}")
        got = ", ".join(f"{m.name} {rates[m.name][variant]:.0f}" for m in all_measures if variant in rates[m.name])
        say(f"{contender.key}, {variant}: {got}")
    for name, by_variant in rates.items():
        if not by_variant:
            raise Unable(f"no variant could do {name}")
        contender.best[name] = max(by_variant, key=lambda variant: by_variant[variant])
    return answers[0]


def run(contender: Contender, measure: Measure, variant: str, round_: int, encode: Encode) -> float:
    """Tokens per second of one measurement."""
    do, asked = "decode" if measure.streams else "prefill", prompts(measure, round_, encode)
    return contender.rate(ANSWER_SECONDS, do=do, variant=variant, prompts=asked, new=measure.new)[0]


def limits(machine: Contender, sizes: dict[str, int]) -> dict[str, float]:
    """Bandwidth for each number of bytes, in bytes/s, and operations/s."""
    asked = {name: ("bandwidth", size) for name, size in sizes.items()} | {"matmul": ("matmul", MATMUL_SIZE)}
    return {name: machine.rate(60, do="decode", variant=what, prompts=[], new=size)[0]
            for name, (what, size) in asked.items()}  # fmt: skip


def compete(field: Field, args: argparse.Namespace, config: ModelConfig, encode: Encode) -> dict[str, Any]:
    """Choose variants, repeat the measurements, compare."""
    all_measures, firsts = measures(args.quick), dict[str, list[int]]()
    for key, contender in list(field.running.items()):
        try:
            firsts[key] = choose_variants(contender, all_measures, encode)
        except Unable as error:
            field.drop(key, error)
    if "fathom" not in field.running:
        sys.exit(f"fathom does not run: {field.failed['fathom']}")
    value = VALUE_BYTES[field.running["fathom"].best[all_measures[0].name]]
    sizes = {m.name: int(step_bytes(config, m.streams, m.new, value)) for m in all_measures if m.streams}
    rates: Rates = {key: {m.name: [] for m in all_measures} for key in field.running}
    found: list[dict[str, float]] = []
    for round_ in range(args.repeats):
        found.append(limits(field.machine, sizes | {"DRAM": DRAM_BYTES}))
        for measure in all_measures:
            for key, contender in rotated(list(field.running.items()), round_):
                try:
                    rate = run(contender, measure, contender.best[measure.name], round_, encode)
                    rates[key][measure.name].append(rate)
                except Unable as error:
                    field.drop(key, error)
            newest = ", ".join(f"{key} {rates[key][measure.name][-1]:.0f}" for key in field.running)
            say(f"repeat {round_ + 1} of {args.repeats}, {measure.name}: {newest}")
    limit = {name: max(each[name] for each in found) for name in found[0]}
    return make_report(config, field.running, rates, limit, firsts, all_measures, value)


def rotated(items: list[T], by: int) -> list[T]:
    """Nobody always goes first."""
    by %= len(items)
    return items[by:] + items[:by]


def make_report(
    config: ModelConfig, running: dict[str, Contender], rates: Rates, limit: dict[str, float],
    firsts: dict[str, list[int]], all_measures: list[Measure], value: float,
) -> dict[str, Any]:  # fmt: skip
    floor = {
        m.name: floor_rate(config, m, value, limit.get(m.name, limit["DRAM"]), limit["matmul"]) for m in all_measures
    }
    rows = dict[str, Any]()
    for key, contender in running.items():
        same = sum(a == b for a, b in zip(firsts[key], firsts["fathom"], strict=True))
        note = contender.name if same == AGREE else f"{contender.name}; ONLY {same} OF {AGREE} TOKENS ARE FATHOM'S"
        rows[key] = {"note": note, "tokens_that_agree": same}
        for m in all_measures:
            got = rates[key][m.name]
            rows[key][m.name] = {
                "rate": round(median(got), 1), "all": [round(rate, 1) for rate in got],
                "variant": contender.best[m.name], "of_floor": round(median(got) / floor[m.name], 3),
            }  # fmt: skip
            if "transformers" in running:
                theirs = rates["transformers"][m.name]
                rows[key][m.name]["times_transformers"] = round(ratio(got, theirs), 2)
    speedup = {}
    if "fathom, drafts" in running and "fathom, no drafts" in running:
        on, off = rates["fathom, drafts"], rates["fathom, no drafts"]
        speedup = {m.name: round(ratio(on[m.name], off[m.name]), 2) for m in all_measures if m.streams}
    return {
        "contenders": rows, "floor": {name: round(rate, 1) for name, rate in floor.items()},
        "limits": {name: round(each) for name, each in limit.items()}, "drafts_speedup": speedup,
    }  # fmt: skip


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios within each repeat (point 5)."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def print_table(report: dict[str, Any], all_measures: list[Measure]) -> None:
    names = [m.name for m in all_measures]
    width = max(len(key) for key in [*report["contenders"], *report["failed"]]) + 2
    print(
        f"\nTokens per second, median of {report['repeats']}; of the floor; times transformers ({report['machine']})\n"
    )
    print(" " * width + "".join(f"{name:>24}" for name in names))
    for key, row in report["contenders"].items():
        cells = ""
        for name in names:
            got = row[name]
            times = f"{got['times_transformers']:.1f}x" if "times_transformers" in got else ""
            cells += f"{got['rate']:>10.0f} {100 * got['of_floor']:>5.0f}% {times:>6}"
        print(f"{key:<{width}}{cells}  {row['note']}".rstrip())
    print(f"{'floor':<{width}}" + "".join(f"{report['floor'][name]:>10.0f}{'':14}" for name in names))
    for key, why in report["failed"].items():
        print(f"{key:<{width}}  {why}")
    limit = report["limits"]
    print(f"\nbandwidth {limit['DRAM'] / 1e9:.1f} GB/s from memory, {limit[names[0]] / 1e9:.1f} GB/s over one token's "
          f"weights; matrix product {limit['matmul'] / 1e9:.0f} GFLOP/s")  # fmt: skip
    for name, speedup in report["drafts_speedup"].items():
        print(f"drafts, {name}: {speedup:.2f} times as fast as without")


def main() -> None:
    args, started = options(), time.perf_counter()
    source = resolve(args.model)
    config, tokenizer = ModelConfig.from_pretrained(source), Tokenizer.from_pretrained(source)
    if config.max_position_embeddings < LONG + 1:
        sys.exit(f"the context of {args.model} is {config.max_position_embeddings}; {LONG + 1} is needed")
    with tempfile.TemporaryDirectory(prefix="fathom-serving-") as folder, ExitStack() as stack:
        work = Path(folder)
        convert(source, work / "bf16", Options("bf16"))
        field = start_all(args, work / "bf16", work, stack)
        report = compete(field, args, config, lambda text: tokenizer.encode(text, add_bos=True))
    report |= {"model": args.model, "threads": args.threads, "repeats": args.repeats, "machine": field.machine.name}
    report |= {"failed": field.failed, "seconds": round(time.perf_counter() - started, 1)}
    print_table(report, measures(args.quick))
    print(json.dumps({"benchmark": "serving", **report}))


if __name__ == "__main__":
    main()
