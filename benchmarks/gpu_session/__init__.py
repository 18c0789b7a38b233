"""The first minutes on a GPU, as one program: `python -m benchmarks.gpu_session run | report` (docs/gpu.md).

`run` spends at most the given seconds on steps; each has its own budget and processes. Each result is one line of JSON
in `results.jsonl`, which stays readable if the program is killed. `report` makes tables, a tuning table and golden
vectors from the lines.
"""
