"""The parts that all benchmarks share: cases, clocks, verification against float64, and records of results."""
