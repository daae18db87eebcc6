"""The command `artkernels`, as installed and as `python -m artkernels`."""

import sys

__all__ = ["main"]

_PACKAGES = {"typer": "typer", "PIL": "pillow", "tqdm": "tqdm"}


def main() -> int:
    """Run the command line; returns the exit code (0 done, 2 wrong input, 130 interrupted)."""
    try:
        try:
            from artkernels.cli import run
        except ModuleNotFoundError as error:
            if error.name not in _PACKAGES:
                raise
            package = _PACKAGES[error.name]
            print(f'artkernels: the command line needs {package}: pip install "artkernels[cli]"', file=sys.stderr)
            return 2
        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
