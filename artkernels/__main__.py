"""The command `artkernels`, as installed and as `python -m artkernels`."""

import sys
from contextlib import suppress

__all__ = ["main"]

_PACKAGES = {"typer": "typer", "PIL": "pillow", "tqdm": "tqdm", "yaml": "pyyaml"}


def main() -> int:
    """Run the command line; returns the exit code (0 done, 2 wrong input, 130 interrupted)."""
    try:
        try:
            from artkernels import use_pooled_allocator
            from artkernels.cli import run
        except ModuleNotFoundError as error:
            if error.name not in _PACKAGES:
                raise
            package = _PACKAGES[error.name]
            print(f'artkernels: the command line needs {package}: pip install "artkernels[cli]"', file=sys.stderr)
            return 2
        # Not in run(), which may be called in somebody else's process. A process that was given another allocator on
        # purpose keeps it: the commands run with any, and doctor says which.
        with suppress(RuntimeError):
            use_pooled_allocator()
        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
