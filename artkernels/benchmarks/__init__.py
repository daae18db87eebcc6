"""The benchmark suite: ours against stock PyTorch and inference engines, and against what the machine can do.

Cases are declared in bench_<op>.py; ``suite.py`` times them as tests of pytest-benchmark; ``runner.run`` is what the
command line calls.
"""
