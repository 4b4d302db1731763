"""The paper's experiments, behind ``python -m retract``. Needs the extra ``experiments``."""
