"""The first minutes on a GPU, as one program: `python -m benchmarks.gpu_session run | report` (docs/gpu.md).

`run` spends at most the given seconds on steps that each have a budget and processes of their own; what they find is
one line of JSON each in `results.jsonl`, whole whenever the program is cut off. `report` makes tables, a tuning table
and golden vectors of the lines.
"""
