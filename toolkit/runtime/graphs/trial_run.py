"""Run by `trial` in a process of its own, as a script: opens a model and sends one blank image through it, within limits."""

from __future__ import annotations

import sys


def main() -> None:
    """Arguments: the model's file, seconds of processor time, MiB of memory beyond what the imports take."""
    import resource
    from pathlib import Path

    import numpy as np
    import onnxruntime as ort

    path, seconds, mebibytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + (mebibytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (spent, spent + 1))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    feeds = {}
    for value in session.get_inputs():
        dims = [size if isinstance(size, int) and size > 0 else 224 if place else 1 for place, size in enumerate(value.shape)]
        names = {"tensor(float)": "float32", "tensor(double)": "float64"}
        feeds[value.name] = np.zeros(dims, dtype=names.get(value.type, value.type.removeprefix("tensor(").removesuffix(")")))
    session.run(None, feeds)


if __name__ == "__main__":
    main()
