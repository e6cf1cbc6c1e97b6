"""The example that ships with the project: a 1.8 M-parameter model that does sums, made by `build.py`."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
