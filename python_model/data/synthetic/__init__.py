"""The synthetic music service: a known world with drifting tastes, sessions, a logging policy and an oracle.

`generate` writes a prepared data set, `OracleScores` knows the truth behind it. The model is described, with its
equations, in docs/data.md.
"""

from python_model.data.synthetic.config import PRESETS, SyntheticConfig, preset
from python_model.data.synthetic.generate import generate
from python_model.data.synthetic.oracle import OracleScores

__all__ = ["PRESETS", "OracleScores", "SyntheticConfig", "generate", "preset"]
