"""The paper's experiments but for Figure 1, which is ``python -m retract``. Needs the extra ``experiments``."""
