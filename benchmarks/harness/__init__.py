"""What every benchmark stands on: cases, clocks, judgement against float64 truth, and records of results."""
