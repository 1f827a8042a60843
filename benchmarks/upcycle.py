"""What upcycled models lose: each beside the original, on the same held-out text, which the original reads once.

    python benchmarks/upcycle.py SRC MODEL [MODEL ...] --text FILE [--tokens 100000] [--row 512]

SRC is what `fathom upcycle` was given, MODEL a folder that came of it: as converted, trained (an export), rounded to
another format. The last third of the text is read, as by `fathom upcycle --calibrate FILE --held-out TOKENS`: what a
conversion with the same text was fitted to is not in it. Losses and KL(original || model) in nats a token, FP32
arithmetic on the weights as they are stored; the end of a row is its last quarter. A table, then one JSON document.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from fathom.runtime import progress
from fathom.text.tokenizer import Tokenizer
from fathom.upcycle.calibrate import Walk, read_rows
from fathom.upcycle.measure import compare, result_head, result_hidden
from fathom.upcycle.open import open_source


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--row", type=int, default=512)
    args = parser.parse_args()

    source = open_source(args.source)
    rows = read_rows(args.text, Tokenizer.from_pretrained(args.models[0]), 0, args.tokens, args.row, args.row)
    walk = Walk(source, rows)
    with progress("original", source.config.num_hidden_layers, unit="layers") as bar:
        for layer in range(source.config.num_hidden_layers):
            walk.step(layer)
            bar.advance(1)
    original = walk.normed(walk.held_out)
    tied = source.config.tie_word_embeddings
    head = source.tensor("model.embed_tokens.weight" if tied else "lm_head.weight")

    figures: dict[str, object] = {}
    print(f"{'':32} {'loss':>8} {'':>8} {'divergence':>10} {'same token':>10} {'end of row':>10}")
    for folder in args.models:
        c = compare(rows.held_out, original, head, result_hidden(folder, rows.held_out), result_head(folder))
        if not figures:
            print(f"{'original':32} {c.original:8.4f} {'':>8} {'':>10} {'':>10} {c.original_end:10.4f}")
        change = c.result / c.original - 1
        print(
            f"{folder.name:32} {c.result:8.4f} {change:+8.2%} {c.divergence:10.4f} {c.same_choice:10.1%} "
            f"{c.result_end:10.4f}",
            flush=True,
        )
        figures[str(folder)] = asdict(c)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
