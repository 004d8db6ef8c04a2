"""What a delta between two bundles saves, and what it costs: python benchmarks/delta.py OLD NEW [NEW ...]."""

from __future__ import annotations

import bz2
import sys
import tempfile
import time
from pathlib import Path

from kit import delta, files


def main(old: Path, news: list[Path]) -> None:
    """Print one line for each new bundle."""
    heads = "    bytes       bz2     delta  share  made s applied s"
    print(f"{'from ' + old.name:40} {heads}")
    with tempfile.TemporaryDirectory() as scratch:
        patch, made = Path(scratch) / "patch", Path(scratch) / "made"
        for new in news:
            data = new.read_bytes()
            began_s = time.perf_counter()
            n_bytes = delta.make(old, new, patch)
            made_s = time.perf_counter() - began_s
            if n_bytes is None:
                print(f"{new.name:40} {len(data):9,} {len(bz2.compress(data)):9,}   none is smaller")
                continue
            sha256 = files.sha256_bytes(data)
            began_s = time.perf_counter()
            delta.apply(old, patch, made, size_bytes=len(data), sha256=sha256)
            applied_s = time.perf_counter() - began_s
            share = n_bytes / len(data)
            print(
                f"{new.name:40} {len(data):9,} {len(bz2.compress(data)):9,} {n_bytes:9,} {share:6.1%} "
                f"{made_s:7.3f} {applied_s:9.4f}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
