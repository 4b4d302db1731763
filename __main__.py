"""``python -m retract EXPERIMENT``: the paper's experiments from the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without the extra it needs, say so in one line."""
    from .manifolds.errors import install

    try:
        from .psi.experiments.cli import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich", "sklearn", "matplotlib"):
            raise
        sys.exit(
            f"python -m retract needs {package}, which is not installed: add the extra with {install('experiments')}"
        )
    app()


if __name__ == "__main__":
    main()
