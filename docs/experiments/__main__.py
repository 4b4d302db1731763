"""``python docs/experiments COMMAND``: the paper's experiments, in a checkout. Imported as the package ``experiments``."""

import sys
from pathlib import Path

from retract.errors import install


def main() -> None:
    """Run the command line; without the extra it needs, say so in one line."""
    sys.path[0] = str(
        Path(__file__).resolve().parents[1]
    )  # Python has put the package there, in place of the folder it is in
    try:
        from experiments.cli import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich", "matplotlib"):
            raise
        told = f"python docs/experiments needs {package}, which is not installed"
        sys.exit(f"{told}: add the extra with {install('experiments')}")
    app(prog_name="python docs/experiments")


if __name__ == "__main__":
    main()
