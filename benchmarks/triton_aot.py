"""The Triton kernels, compiled for GPUs that need not be here: what each uses, and whether it reaches the tensor cores.

    python benchmarks/triton_aot.py [--targets sm_90,gfx942]

Registers and spilled bytes are per thread, shared memory per program. A program of a product makes 128x128 results with
256 threads; "matrix" is the tensor core instruction and how often it stands in the code (sm_90: four of k = 32 are the
128 products between two promotions). Takes about a minute. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time

import triton

from fathom.kernels.triton import build

COLUMNS = "{:<28} {:<7} {:>9} {:>8} {:>8} {:>8} {:>8}  {}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(build.TARGETS), help="default: %(default)s")
    targets = parser.parse_args().targets.split(",")
    if unknown := set(targets) - set(build.TARGETS):
        parser.error(f"target {', '.join(sorted(unknown))} is not known; use {', '.join(build.TARGETS)}")
    rows, failed = [], []
    print(COLUMNS.format("kernel", "target", "registers", "spilled", "shared", "binary", "seconds", "matrix"))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # compile, do not look up
        for target in targets:
            for kernel in build.kernels():
                start = time.perf_counter()
                try:
                    row = build.compile_kernel(kernel, target)
                except Exception as error:
                    failed.append({"kernel": kernel.name, "target": target, "error": str(error).strip()[:300]})
                    print(f"{kernel.name:<28} {target:<7} does not compile: {failed[-1]['error']}")
                    continue
                row["seconds"] = round(time.perf_counter() - start, 1)
                rows.append(row)
                matrix = f"{row['matrix_count']} x {', '.join(row['matrix'])}" if row["matrix"] else "-"
                keys = ("kernel", "target", "registers", "spilled", "shared", "binary", "seconds")
                print(COLUMNS.format(*(row[key] for key in keys), matrix), flush=True)
    print(json.dumps({"triton": triton.__version__, "compiled": len(rows), "failed": failed, "kernels": rows}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
