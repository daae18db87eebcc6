import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import cudaemu  # noqa: E402


@pytest.fixture(autouse=True)
def emulator():
    """In place of the project's fixture of this name: these tests open sessions of their own."""


@pytest.fixture(scope="session")
def kernels():
    """kernels(name, arch=...) compiles tests/cu/<name>.cu once and loads it (CUDAEMU_TEST_ARCH: another default)."""
    loaded = {}

    def get(name, arch=os.environ.get("CUDAEMU_TEST_ARCH", "compute_80"), **options):
        key = name, str(arch), str(sorted(options.items()))
        if key not in loaded:
            loaded[key] = cudaemu.load(cudaemu.compile([HERE / "cu" / f"{name}.cu"], arch, **options))
        return loaded[key]

    return get


@pytest.fixture
def run():
    """run(function, *values, **session settings) -> the session; fails the test when the launch did."""

    def call(function, *values, expect=None, **settings):
        with cudaemu.session(**settings) as s:
            code = function(*cudaemu.arguments(*values))
            if expect is None:
                assert code == 0, s.message
            else:
                assert code != 0, f"expected {expect}, but the launch succeeded"
                assert s.launches[-1].error_kind == expect, s.message
            s.launches
        return s

    return call
