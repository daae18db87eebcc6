"""The pooled allocator changes where CPU tensors lie and nothing else, in threads, forks, workers and at exit.

It belongs to the process, so most of these tests run in one of their own.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import artkernels
from artkernels import pooled_allocator

pytestmark = pytest.mark.cpu_only

ROOT = Path(__file__).resolve().parents[1]
CXX = os.environ.get("CXX", "g++")

PRELUDE = """
import os, sys, torch, artkernels
from artkernels import pooled_allocator_statistics as statistics, release_pooled_memory, use_pooled_allocator
MiB = 2**20
def tensor(size): return torch.empty(size, dtype=torch.uint8)
"""

# Runs the code of each request in a fork of itself, for importing torch takes seconds; answers with its exit status.
SERVER = """
import json, os, signal, sys, torch, artkernels
for line in sys.stdin:
    code, sys.argv[1:], *outputs = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        for descriptor, path in enumerate(outputs, 1): os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
        exec(code, {"__name__": "__main__"})
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "KINETO_LOG_LEVEL": "99"}  # the profiler reports at length that there is no GPU
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        yield server


@pytest.fixture
def run(server: subprocess.Popen, tmp_path: Path) -> Callable[..., str]:
    """The output of a process of its own, which must end well, in time and without a word on stderr."""

    def run(code: str, *arguments: str) -> str:
        directory = Path(tempfile.mkdtemp(dir=tmp_path))
        outputs = directory / "stdout", directory / "stderr"
        request = [PRELUDE + textwrap.dedent(code), arguments, *map(str, outputs)]
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        stdout, stderr = (path.read_text() for path in outputs)
        assert (status, stderr) == (0, "")
        return stdout

    return run


# ---- what it does ----------------------------------------------------------------------------------------------------


def test_it_is_off_until_asked_for_and_can_be_turned_off_again(run: Callable[..., str]) -> None:
    run("""
        assert not artkernels.build_info()["pooled_allocator"] and statistics().max_bytes == 0
        use_pooled_allocator(64 * MiB)
        assert artkernels.build_info()["pooled_allocator"] and statistics().max_bytes == 64 * MiB
        kept = tensor(4 * MiB)
        del kept
        use_pooled_allocator(0)
        assert not artkernels.build_info()["pooled_allocator"]
        assert statistics().bytes_kept == 0 and statistics().released == 1
        x = tensor(4 * MiB).fill_(7)
        assert statistics().bytes_in_use == 0 and statistics().misses == 1
        use_pooled_allocator(8 * MiB)
        del x
        y = tensor(4 * MiB)
        assert statistics().max_bytes == 8 * MiB and statistics().misses == 2
    """)


def test_memory_of_the_same_size_is_used_again(run: Callable[..., str]) -> None:
    run("""
        use_pooled_allocator()
        x = tensor(5 * MiB)
        first = x.data_ptr()
        y = tensor(5 * MiB)
        assert y.data_ptr() != first
        del x
        assert statistics().bytes_kept == 5 * MiB
        x = tensor(5 * MiB - 1000)
        assert x.data_ptr() == first
        assert (statistics().hits, statistics().misses) == (1, 2)
    """)


def test_it_saves_the_page_faults(run: Callable[..., str]) -> None:
    run("""
        import resource
        def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        def count():
            before = faults()
            for _ in range(4): tensor(64 * MiB).zero_()
            return faults() - before
        stock = count()
        use_pooled_allocator()
        tensor(64 * MiB).zero_()
        pooled = count()
        assert pooled < 100 and pooled < stock / 10, (pooled, stock)
    """)


def test_small_and_empty_tensors_are_left_to_pytorch(run: Callable[..., str]) -> None:
    run("""
        use_pooled_allocator()
        small = [torch.ones(size, dtype=torch.uint8) for size in [0, 1, 4096, MiB - 1] * 100]
        assert all((x == 1).all() for x in small)
        empty = torch.empty(3, 0, 5)
        assert empty.data_ptr() == 0
        del small, empty
        assert statistics().hits + statistics().misses == 0
    """)


def test_no_more_is_kept_than_allowed_and_what_was_freed_first_goes_first(run: Callable[..., str]) -> None:
    run("""
        use_pooled_allocator(16 * MiB)
        tensors = [tensor(4 * MiB) for _ in range(10)]
        places = [x.data_ptr() for x in tensors]
        assert statistics().bytes_in_use == 40 * MiB
        while tensors:
            del tensors[0]
            assert statistics().bytes_kept <= 16 * MiB
        assert statistics().bytes_kept == 16 * MiB and statistics().released == 6
        too_large = tensor(20 * MiB)
        del too_large                                   # goes by itself, not instead of the others
        assert statistics().bytes_kept == 16 * MiB and statistics().released == 7
        again = [tensor(4 * MiB) for _ in range(4)]
        assert {x.data_ptr() for x in again} == set(places[6:])
        again.clear()
        use_pooled_allocator(7 * MiB)
        assert statistics().bytes_kept == 4 * MiB
    """)


def test_released_memory_goes_back_to_the_system(run: Callable[..., str]) -> None:
    run("""
        def resident():
            with open("/proc/self/statm") as file: return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        use_pooled_allocator()
        before = resident()
        tensors = [tensor(64 * MiB).fill_(1) for _ in range(4)]
        del tensors
        assert resident() - before > 250 * MiB
        assert release_pooled_memory() == 256 * MiB
        assert resident() - before < 10 * MiB
        assert release_pooled_memory() == 0
        assert statistics().released == 4
    """)


def test_statistics_add_up(run: Callable[..., str]) -> None:
    run("""
        import random
        def block(size):
            step = 2 ** (size.bit_length() - 4)
            return -(-size // step) * step
        random.seed(0)
        use_pooled_allocator(40 * MiB)
        tensors, made, peak = [], 0, 0
        for _ in range(2000):
            if tensors and random.random() < 0.5:
                tensors.pop(random.randrange(len(tensors)))
            else:
                size = random.randrange(MiB, 9 * MiB)
                assert size <= block(size) <= size * 9 / 8
                tensors.append(tensor(size))
                made += 1
            s = statistics()
            peak = max(peak, s.bytes_in_use + s.bytes_kept)
            assert s.bytes_in_use == sum(block(x.numel()) for x in tensors)
            assert s.bytes_kept <= s.max_bytes == 40 * MiB
            assert s.hits + s.misses == made and s.peak_bytes == peak
        assert s.hits > 100 and s.misses > 100
        tensors.clear()
        release_pooled_memory()
        s = statistics()
        assert s.bytes_in_use == s.bytes_kept == 0 and s.released == s.misses
    """)


STEP = """
import hashlib
if sys.argv[1] == "pooled": use_pooled_allocator()
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.InstanceNorm2d(32), torch.nn.ReLU(),
    torch.nn.ConvTranspose2d(32, 16, 4, 2, 1), torch.nn.BatchNorm2d(16), torch.nn.LeakyReLU(),
    torch.nn.Conv2d(16, 3, 3))
adam = torch.optim.Adam(net.parameters())
x, style = torch.randn(2, 3, 96, 96), torch.randn(1, 16, 96, 96)
for _ in range(2):
    y = net(x)
    features = net[:5](x)
    loss = y.square().mean() + artkernels.functional.gram_mse_loss(features, artkernels.functional.gram_matrix(style))
    loss = loss + torch.cat([features, features], 1).sort(-1).values.std() + torch.fft.rfft2(y).abs().mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
digest = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in [y, loss, *net.state_dict().values()]))
print(digest.hexdigest(), statistics().hits > 20)
"""


def test_training_computes_the_same_bits(run: Callable[..., str]) -> None:
    stock, pooled = run(STEP, "stock").split(), run(STEP, "pooled").split()
    assert (stock[1], pooled[1]) == ("False", "True")
    assert stock[0] == pooled[0]


def test_every_way_to_make_and_to_keep_a_tensor_works(run: Callable[..., str]) -> None:
    run("""
        import io, numpy
        before = torch.arange(2 * MiB)                      # allocated by PyTorch, freed after the change
        use_pooled_allocator()
        x = torch.arange(2 * MiB)
        assert x.untyped_storage().nbytes() == 16 * MiB
        assert torch.equal(x, before)
        before.resize_(4 * MiB)
        assert torch.equal(before[:2 * MiB], x)
        del before
        y = x.clone().resize_(3 * MiB)
        assert torch.equal(y[:2 * MiB], x)
        y.untyped_storage().resize_(0)
        z = x.clone().share_memory_()
        assert z.is_shared() and torch.equal(z, x)
        lazy = torch._lazy_clone(x)
        lazy[0] = 5
        assert x[0] == 0 and torch.equal(lazy[1:], x[1:])
        array = x.clone().numpy()                           # outlives its tensor
        assert (array == numpy.arange(2 * MiB)).all()
        assert torch.equal(torch.from_numpy(numpy.arange(2 * MiB)) + 0, x)
        file = io.BytesIO()
        torch.save(x, file)
        file.seek(0)
        assert torch.equal(torch.load(file), x)
        views = x.view(2, -1)[1].set_(x.untyped_storage(), 3, (4,))
        assert views.tolist() == [3, 4, 5, 6]
        copy = torch.Tensor([1.0]).expand(MiB).contiguous().to(torch.float64)
        copy.data = torch.zeros(MiB)
        dirty = torch.ones(MiB); del dirty
        torch.use_deterministic_algorithms(True)
        assert torch.empty(MiB).isnan().all()               # torch.utils.deterministic.fill_uninitialized_memory
    """)


def test_the_profiler_sees_the_same_memory(run: Callable[..., str]) -> None:
    run("""
        from torch.autograd.profiler import profile
        def measured():
            with profile(profile_memory=True, use_kineto=False) as run:
                x = tensor(3 * MiB + 5)
                del x
            return [(e.name, e.self_cpu_memory_usage) for e in run.function_events]
        stock = measured()
        use_pooled_allocator()
        assert measured() == measured() == stock
        assert ("aten::empty", 3 * MiB + 5) in stock
    """)


def test_tensors_alive_at_exit_do_no_harm(run: Callable[..., str]) -> None:
    run("""
        import atexit, builtins
        use_pooled_allocator(8 * MiB)
        builtins.immortal = [torch.ones(4 * MiB) for _ in range(3)]
        torch.nn.immortal = tensor(2 * MiB)
        atexit.register(lambda: tensor(2 * MiB))
    """)


# ---- when memory runs out --------------------------------------------------------------------------------------------


def test_out_of_memory_is_pytorchs_own_error(run: Callable[..., str]) -> None:
    run("""
        def message(size):
            try: tensor(size)
            except RuntimeError as error: return str(error)
        for size in (1 << 50, 1 << 60, (1 << 63) - 1):
            use_pooled_allocator(0)
            stock = message(size)
            use_pooled_allocator()
            assert message(size) == stock
            assert f"can't allocate memory: you tried to allocate {size} bytes" in stock and "\\n" not in stock
        assert tensor(4 * MiB).fill_(1).sum() == 4 * MiB
    """)


def test_what_is_kept_is_released_before_memory_runs_out(run: Callable[..., str]) -> None:
    run("""
        import resource
        torch.set_num_threads(1)
        use_pooled_allocator()
        with open("/proc/self/statm") as file: size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + 400 * MiB, resource.RLIM_INFINITY))
        x = tensor(256 * MiB)
        del x
        assert statistics().bytes_kept == 256 * MiB
        x = tensor(320 * MiB).fill_(1)
        assert statistics().bytes_kept == 0 and statistics().bytes_in_use == 320 * MiB
    """)


# ---- threads, forks, workers -----------------------------------------------------------------------------------------


def test_threads_hand_tensors_to_each_other(run: Callable[..., str]) -> None:
    run("""
        import queue, random, threading
        torch.set_num_threads(1)
        use_pooled_allocator(64 * MiB)
        handed, made, wrong = queue.Queue(), [], []
        def work(seed):
            choose, count = random.Random(seed), 0
            while count < 400:
                value = choose.randrange(256)
                x = tensor(choose.randrange(MiB, 6 * MiB)).fill_(value)
                handed.put((value, x))
                count += 1
                del x
                if handed.qsize() > 12:
                    value, x = handed.get()
                    if not (x[0] == x[-1] == x[x.numel() // 2] == value): wrong.append(value)
                    del x
                if count % 100 == 0: release_pooled_memory()
            made.append(count)
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert not wrong and sum(made) == 3200
        handed = None
        s = statistics()
        assert s.hits + s.misses == 3200 and s.hits > 1000 and s.bytes_in_use == 0 and s.bytes_kept <= 64 * MiB
    """)


def test_a_fork_while_threads_allocate_leaves_a_child_that_works(run: Callable[..., str]) -> None:
    run("""
        import signal, threading, warnings
        warnings.simplefilter("ignore")                     # that a process with threads forks is what is tested
        torch.set_num_threads(1)
        use_pooled_allocator()
        mine, stop = tensor(3 * MiB).fill_(9), threading.Event()
        def work():
            while not stop.is_set(): tensor(2 * MiB), tensor(3 * MiB)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        for _ in range(40):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                good = statistics().bytes_kept == 0 and (mine == 9).all()
                for _ in range(5): good = good and (tensor(2 * MiB).fill_(3) == 3).all()
                mine = None
                os._exit(0 if good and statistics().hits > 0 else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads: thread.join()
    """)


LOADER = """
import sys, torch, artkernels

class Pictures(torch.utils.data.Dataset):
    def __len__(self): return 24
    def __getitem__(self, i):
        return torch.full((3, 512, 512), float(i)), torch.tensor(artkernels.build_info()["pooled_allocator"])

if __name__ == "__main__":
    artkernels.use_pooled_allocator()
    context = sys.argv[1]
    loader = torch.utils.data.DataLoader(Pictures(), batch_size=4, num_workers=2, multiprocessing_context=context)
    for epoch in range(2 if context == "fork" else 1):  # a spawned worker starts afresh every time
        for i, (pictures, pooled) in enumerate(loader):
            assert (pictures.mean((1, 2, 3)) == torch.arange(4 * i, 4 * i + 4)).all()
            assert bool(pooled.all()) == bool(pooled.any()) == (context == "fork")
            assert (pictures * 2).sum() > 0 or i == 0
    assert artkernels.pooled_allocator_statistics().hits > 0
"""


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers_return_large_tensors(context: str, tmp_path: Path) -> None:
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, script, context], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sanitizer", ["", "thread", "address,undefined"])
def test_the_pool_holds_under_stress(sanitizer: str, tmp_path: Path) -> None:
    if shutil.which(CXX) is None:
        pytest.skip(f"no {CXX}")
    flags = ["-std=c++20", "-O1", "-g", "-pthread", *([f"-fsanitize={sanitizer}"] if sanitizer else [])]
    trial = tmp_path / "trial.cpp"
    trial.write_text("int main() {}")
    if subprocess.run([CXX, *flags, trial, "-o", tmp_path / "trial"], capture_output=True).returncode:
        pytest.skip(f"{CXX} has no sanitizer: {sanitizer}")
    program, csrc = tmp_path / "stress", ROOT / "csrc"
    sources = [ROOT / "tests" / "block_pool_stress.cpp", csrc / "block_pool.cpp"]
    subprocess.run([CXX, *flags, f"-I{csrc}", *sources, "-o", program], check=True)
    forks = "0" if sanitizer else "100"  # a sanitizer's own threads and locks do not survive a fork
    done = subprocess.run([program, "2000", forks], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


# ---- what it refuses -------------------------------------------------------------------------------------------------


def test_another_allocator_is_not_replaced(run: Callable[..., str]) -> None:
    message = run("""
        torch._C._set_default_mobile_cpu_allocator()
        try: use_pooled_allocator()
        except RuntimeError as error: print(error)
        assert not artkernels.build_info()["pooled_allocator"] and tensor(2 * MiB).fill_(1)[0] == 1
        torch._C._unset_default_mobile_cpu_allocator()
        use_pooled_allocator()
        assert artkernels.build_info()["pooled_allocator"]
        torch._C._set_default_mobile_cpu_allocator()        # one that came later is left alone too
        assert not artkernels.build_info()["pooled_allocator"]
        try: use_pooled_allocator()
        except RuntimeError: print("refused again")
    """)
    assert message.startswith(
        "use_pooled_allocator: the CPU allocator must be PyTorch's default one, and it is c10::DefaultMobile"
    )
    assert message.endswith("already\nrefused again\n")
    assert message.count("\n") == 2


def test_a_change_that_takes_no_effect_is_an_error(run: Callable[..., str]) -> None:
    """PyTorch ignores an allocator whose priority is lower than that of the one it has, and says nothing."""
    message = run("""
        import ctypes, pathlib
        c10 = ctypes.CDLL(pathlib.Path(torch.__file__).parent / "lib" / "libc10.so")
        default = c10._ZN3c1022GetDefaultCPUAllocatorEv
        default.restype = ctypes.c_void_p
        set_allocator = c10._ZN3c1012SetAllocatorENS_10DeviceTypeEPNS_9AllocatorEh
        set_allocator.argtypes = [ctypes.c_int8, ctypes.c_void_p, ctypes.c_uint8]
        set_allocator(0, default(), 200)
        try: use_pooled_allocator()
        except RuntimeError as error: print(error)
        assert not artkernels.build_info()["pooled_allocator"] and statistics().max_bytes == 0
    """)
    assert "set with a priority above 100" in message
    assert message.count("\n") == 1


def test_wrong_limits_are_refused_before_anything_changes() -> None:
    with pytest.raises(ValueError, match="use_pooled_allocator: max_bytes must be at least 0, got -1"):
        artkernels.use_pooled_allocator(-1)
    with pytest.raises(TypeError, match="float"):
        artkernels.use_pooled_allocator(1e9)  # type: ignore[arg-type]
    assert not artkernels.build_info()["pooled_allocator"]


@pytest.mark.parametrize(
    ("container", "expected"), [("max\n", 4 * 2**30), ("8589934592\n", 2 * 2**30), ("1099511627776\n", 4 * 2**30)]
)
def test_by_default_it_keeps_at_most_a_quarter_of_the_memory(container: str, expected: int, monkeypatch) -> None:
    monkeypatch.setattr(pooled_allocator.os, "sysconf", {"SC_PHYS_PAGES": 2**24, "SC_PAGE_SIZE": 2**12}.get)
    monkeypatch.setattr(pooled_allocator.Path, "read_text", lambda self: container)
    assert pooled_allocator._default_max_bytes() == expected


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_has_it_on() -> None:
    done = subprocess.run([sys.executable, "-m", "artkernels", "doctor"], capture_output=True, text=True, timeout=120)
    assert "CPU allocator  pooled\n" in done.stdout


def test_the_command_line_runs_with_another_allocator_too(run: Callable[..., str]) -> None:
    report = run("""
        torch._C._set_default_mobile_cpu_allocator()
        from artkernels.__main__ import main
        sys.argv = ["artkernels", "doctor"]
        assert main() == 0
    """)
    assert "CPU allocator  not pooled\n" in report
