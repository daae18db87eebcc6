"""A packed weight is used again as long as the weight is the same, and never for a weight that has changed."""

import gc
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import artkernels
from artkernels import _C

pytestmark = pytest.mark.cpu_only

KiB, MiB = 2**10, 2**20
SMALL, LARGE = (16, 8, 3, 3), (256, 128, 3, 3)  # all of its bytes are hashed; 64 KiB of them
statistics = artkernels.packed_weight_statistics


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    artkernels.clear_packed_weights()
    with torch.no_grad():
        yield
    artkernels.limit_packed_weights(2**30)
    artkernels.clear_packed_weights()


def packed(weight: Tensor, *key: int) -> Tensor:
    """What a kernel would be given: a copy in another order."""
    return _C.packed_weight(weight, key, lambda: weight.detach().flatten().flip(0))


def is_fresh(weight: Tensor, *key: int) -> bool:
    """Whether the weight had to be packed; in any case the packing must be of the weight as it is."""
    misses = statistics().misses
    assert torch.equal(packed(weight, *key), weight.detach().flatten().flip(0))
    return statistics().misses > misses


# ---- the same weight -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SMALL, LARGE, (3,), (0, 4, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_call_uses_the_packing_of_the_first(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.randn(shape).to(dtype))
    before = statistics()
    first = packed(weight)
    assert packed(weight).data_ptr() == packed(weight.detach()).data_ptr() == first.data_ptr()
    after = statistics()
    assert (after.hits - before.hits, after.misses - before.misses) == (2, 1)
    assert (after.entries, after.bytes) == (1, weight.nbytes)


def test_inference_mode_and_no_grad_share_packings() -> None:
    weight = nn.Parameter(torch.randn(SMALL))
    with torch.inference_mode():
        assert is_fresh(weight)
        assert not is_fresh(weight)
    assert not is_fresh(weight)


def test_packings_of_one_weight_are_told_apart_by_their_key() -> None:
    weight = torch.randn(SMALL)
    keys = [(), (0,), (1,), (1, 2), (2, 1)]
    assert all(is_fresh(weight, *key) for key in keys)
    assert not any(is_fresh(weight, *key) for key in keys)
    assert statistics().entries == len(keys)


def test_views_of_one_storage_are_told_apart() -> None:
    storage = torch.randn(2, 16, 16, 4)
    views = [storage[0], storage[1], storage[0].permute(2, 0, 1), storage[0].view(256, 2, 2)]
    views += [storage[0].view(torch.int32).view(torch.float32).permute(1, 0, 2), storage[:, :8].select(0, 0)]
    assert all(is_fresh(view) for view in views)
    assert not any(is_fresh(view) for view in views)
    assert not is_fresh(storage[1])  # a new view of the same elements


# ---- a weight that has changed ---------------------------------------------------------------------------------------


def sgd_step(weight: nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()


def adam_step(weight: nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.Adam([weight], lr=0.1, foreach=True).step()


def load_state_dict(weight: nn.Parameter) -> None:
    module = nn.Module()
    module.weight = weight
    module.load_state_dict({"weight": weight + 1})


def in_place_in_inference_mode(weight: nn.Parameter) -> None:
    with torch.inference_mode():
        weight.mul_(2)


def one_element(weight: nn.Parameter) -> None:
    weight[-1, 0, 1, 1] += 1


def spectral_norm(weight: nn.Parameter) -> None:
    weight.copy_(weight / torch.linalg.matrix_norm(weight.flatten(1), 2))


def averaged_as_old_code_does(weight: nn.Parameter) -> None:
    weight.data.mul_(0.999).add_(torch.randn_like(weight), alpha=0.001)


def copied_behind_torch(weight: nn.Parameter) -> None:
    weight.data.copy_(weight.data + 1)


def new_data(weight: nn.Parameter) -> None:
    weight.data = torch.randn_like(weight)


def through_numpy(weight: nn.Parameter) -> None:
    weight.detach().numpy()[...] += 3


def signs_through_numpy(weight: nn.Parameter) -> None:
    array = weight.detach().numpy()
    array *= -1


def reversed_through_numpy(weight: nn.Parameter) -> None:
    array = weight.detach().numpy()
    array[...] = array[::-1].copy()


def one_channel_behind_torch(weight: nn.Parameter) -> None:
    weight.data[weight.shape[0] // 2] *= 1.01


CHANGES = [sgd_step, adam_step, load_state_dict, in_place_in_inference_mode, one_element, spectral_norm]
CHANGES += [averaged_as_old_code_does, copied_behind_torch, new_data, through_numpy, signs_through_numpy]
CHANGES += [reversed_through_numpy, one_channel_behind_torch]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
def test_a_change_is_seen(change: Callable[[nn.Parameter], None], shape: tuple[int, ...]) -> None:
    weight = nn.Parameter(torch.randn(shape))
    assert is_fresh(weight)
    for _ in range(3):
        change(weight)
        assert is_fresh(weight), change.__name__
        assert not is_fresh(weight)
    assert statistics().entries == 1  # of the old states nothing is kept


def test_a_weight_moved_to_shared_memory_is_packed_again() -> None:
    weight = torch.randn(SMALL)
    assert is_fresh(weight)
    weight.share_memory_()  # the same storage with other memory
    assert is_fresh(weight)
    assert not is_fresh(weight)


def test_every_single_byte_of_a_small_weight_is_seen() -> None:
    weight = torch.randint(256, (8, 5, 3, 3), dtype=torch.uint8)  # ends within a line of 64 bytes
    bytes_ = weight.numpy().reshape(-1)
    assert is_fresh(weight)
    for i in range(bytes_.size):
        for bit in (1, 128):
            bytes_[i] ^= bit
            assert is_fresh(weight), i


def test_swapped_lines_of_a_small_weight_are_seen() -> None:
    weight = torch.arange(64.0).view(4, 16)  # four lines of 64 bytes
    lines = weight.numpy()
    assert is_fresh(weight)
    for i, j in [(0, 1), (1, 3), (0, 2)]:
        lines[[i, j]] = lines[[j, i]]
        assert is_fresh(weight)


@pytest.mark.parametrize("size", [256 * KiB + 4, 1_000_004, 20 * MiB])
def test_a_contiguous_512th_of_a_large_weight_is_seen(size: int) -> None:
    weight = torch.zeros(size, dtype=torch.uint8)
    bytes_, run, choose = weight.numpy(), size // 512 + 128, random.Random(0)
    assert is_fresh(weight)
    for begin in [0, size - run, *(choose.randrange(size - run) for _ in range(20))]:
        bytes_[begin : begin + run] += 1
        assert is_fresh(weight), begin


def test_clearing_is_the_remedy_for_what_is_not_seen() -> None:
    weight = torch.zeros(16 * MiB, dtype=torch.uint8)
    assert is_fresh(weight)
    stale = packed(weight)
    weight.numpy()[7_654_321] = 1  # between the lines that are hashed
    assert packed(weight).data_ptr() == stale.data_ptr()
    assert not torch.equal(stale, weight.flip(0))
    artkernels.clear_packed_weights()
    assert (statistics().entries, statistics().bytes) == (0, 0)
    assert is_fresh(weight)


def test_a_weight_that_changes_while_it_is_packed_is_packed_again() -> None:
    weight = torch.zeros(SMALL)

    def pack() -> Tensor:
        before = weight.flatten().flip(0)
        weight.add_(1)
        return before

    _C.packed_weight(weight, [], pack)
    assert is_fresh(weight)


# ---- a weight that is gone -------------------------------------------------------------------------------------------


def test_the_packing_goes_with_the_weight() -> None:
    weights = [torch.randn(LARGE) for _ in range(4)]
    assert all(is_fresh(weight) for weight in weights)
    view = weights[0][1:]  # a view keeps the storage alive, not its base
    del weights
    assert (statistics().entries, statistics().bytes) == (1, 4 * 256 * 128 * 9)
    del view
    assert (statistics().entries, statistics().bytes) == (0, 0)


def test_another_weight_at_the_same_address_is_another() -> None:
    places = set()
    for value in range(50):
        weight = torch.full(LARGE, float(value))
        places.add(weight.data_ptr())
        assert is_fresh(weight)
        assert not is_fresh(weight)
        del weight
    assert len(places) < 50  # an address was used again


def test_packings_of_gone_weights_go_even_if_nothing_new_is_packed() -> None:
    weight, gone = torch.randn(SMALL), torch.randn(LARGE)
    packed(weight)
    packing = packed(gone)
    del gone
    storage = packing.untyped_storage()._weak_ref()
    del packing
    gc.collect()
    for _ in range(256):
        packed(weight)
    assert torch.UntypedStorage._expired(storage)
    torch.UntypedStorage._free_weak_ref(storage)


# ---- what is not kept ------------------------------------------------------------------------------------------------


def not_kept(weight: Tensor) -> bool:
    before = statistics()
    for _ in range(2):
        assert torch.equal(packed(weight), weight.detach().flatten().flip(0))
    return statistics() == before


@pytest.mark.parametrize("requires_grad", [False, True])
def test_nothing_is_kept_or_looked_up_while_gradients_are_recorded(requires_grad: bool) -> None:
    weight = nn.Parameter(torch.randn(SMALL), requires_grad)
    kept = packed(weight)
    with torch.enable_grad():
        assert not_kept(weight)
        assert packed(weight).data_ptr() != kept.data_ptr()
    assert packed(weight).data_ptr() == kept.data_ptr()


def test_inference_tensors_are_packed_afresh() -> None:
    with torch.inference_mode():
        assert not_kept(torch.randn(SMALL))


def test_weights_with_gaps_are_packed_afresh() -> None:
    weight = torch.randn(16, 16, 3, 3)
    assert not_kept(weight[:, :8])
    assert not_kept(weight[:1].expand(4, -1, -1, -1))
    assert is_fresh(weight.to(memory_format=torch.channels_last))


def test_a_packing_that_is_the_weight_itself_does_not_keep_it_alive() -> None:
    weight = torch.randn(SMALL)
    assert _C.packed_weight(weight, [], lambda: weight).data_ptr() == weight.data_ptr()
    assert statistics().entries == 0


def test_an_error_while_packing_is_passed_on_and_nothing_kept() -> None:
    def fail() -> Tensor:
        raise KeyError("no such layout")

    weight = torch.randn(SMALL)
    with pytest.raises(KeyError, match="no such layout"):
        _C.packed_weight(weight, [], fail)
    assert is_fresh(weight)


# ---- how much is kept ------------------------------------------------------------------------------------------------


def test_beyond_the_limit_the_packing_unused_the_longest_is_dropped() -> None:
    artkernels.limit_packed_weights(4 * MiB)
    weights = [torch.randn(MiB // 4) for _ in range(5)]
    assert all(is_fresh(weight) for weight in weights[:4])
    assert not is_fresh(weights[0])
    assert is_fresh(weights[4])  # in place of weights[1]
    assert (statistics().entries, statistics().bytes) == (4, 4 * MiB)
    assert not any(is_fresh(weights[i]) for i in (0, 2, 3, 4))
    assert is_fresh(weights[1])  # in place of weights[0]
    artkernels.limit_packed_weights(2 * MiB)
    assert (statistics().entries, statistics().bytes) == (2, 2 * MiB)
    assert not is_fresh(weights[1])
    assert not is_fresh(weights[4])


def test_a_packing_beyond_the_limit_drops_no_other() -> None:
    artkernels.limit_packed_weights(MiB)
    small, large = torch.randn(KiB), torch.randn(MiB)
    assert is_fresh(small)
    assert is_fresh(large)
    assert is_fresh(large)
    assert not is_fresh(small)
    artkernels.limit_packed_weights(0)
    assert is_fresh(small)
    assert is_fresh(small)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limit_packed_weights: max_bytes must be at least 0, got -1"):
        artkernels.limit_packed_weights(-1)


# ---- threads and forks -----------------------------------------------------------------------------------------------


def test_threads_share_packings_of_weights_that_come_change_and_go() -> None:
    artkernels.limit_packed_weights(400 * KiB)
    shared = [torch.randn(SMALL) for _ in range(40)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        own = torch.zeros(SMALL)
        with torch.no_grad():  # is of a thread
            for turn in range(1500):
                weight = choose.choice(shared)
                if not torch.equal(packed(weight, turn % 2), weight.flatten().flip(0)):
                    wrong.append(turn)
                if turn % 7 == 0:
                    own = torch.full(SMALL, float(turn))
                elif turn % 3 == 0:
                    own.add_(1)
                if not (packed(own) == own[0, 0, 0, 0]).all():
                    wrong.append(turn)
                if turn % 500 == 0:
                    artkernels.clear_packed_weights()

    before = statistics()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = statistics()
    assert not wrong
    assert after.hits + after.misses == before.hits + before.misses + 2 * 6 * 1500
    assert after.hits - before.hits > 1000
    assert after.bytes <= 400 * KiB


def test_a_fork_while_threads_pack_leaves_a_child_that_works() -> None:
    weight, stop = torch.randn(SMALL), threading.Event()
    many = [torch.zeros(1) for _ in range(5000)]  # to look through whenever a packing is added
    for other in many:
        packed(other)

    def work() -> None:
        own = torch.randn(SMALL)
        with torch.no_grad():
            while not stop.is_set():
                packed(own.add_(1))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a process with threads forks is what is tested
            for _ in range(30):
                child = os.fork()
                if child == 0:
                    signal.alarm(20)
                    os._exit(0 if packed(weight).numel() == weight.numel() else 1)
                assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
