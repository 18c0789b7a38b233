"""The synthetic music service: a simulator with drifting tastes, sessions, a logging policy and an oracle.

`generate` writes a prepared data set, `OracleScores` gives its true probabilities. docs/data.md describes the model
with its equations.
"""

from python_model.data.synthetic.config import PRESETS, SyntheticConfig, preset
from python_model.data.synthetic.generate import generate
from python_model.data.synthetic.oracle import OracleScores

__all__ = ["PRESETS", "OracleScores", "SyntheticConfig", "generate", "preset"]
