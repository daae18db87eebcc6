"""Assertions of a traced forward (`assert len(size) == 4`), which become assertions of the graph.

Python asks a value for its truth or its length and wants the answer at once. A stand-in has none; but where the code
does nothing with it but assert, the answer is the one with which it goes on. What the code that asks does next is read
from its bytecode, as torch.fx does for itself up to Python 3.10.
"""

import dis
from collections.abc import Sequence
from types import FrameType

__all__ = ["asserted_length", "is_asserted"]


_NEUTRAL = ("PRECALL", "TO_BOOL", "NOT_TAKEN")  # parts of a call or a jump that are instructions in some versions


def is_asserted(asking: FrameType) -> bool:
    """Whether the value whose truth is asked for is the condition of an assertion."""
    return _asserts(_from_here(asking))


def asserted_length(asking: FrameType) -> int | None:
    """The number that the length asked for is asserted to equal; None where it is anything else."""
    call, number, compare, *rest = [*_from_here(asking), None, None, None]
    if call is None or number is None or compare is None or not call.opname.startswith("CALL"):
        return None
    equal = compare.opname == "COMPARE_OP" and "==" in str(compare.argval)
    return number.argval if equal and isinstance(number.argval, int) and _asserts(rest) else None


def _from_here(frame: FrameType) -> list[dis.Instruction | None]:
    """The instruction that asks, and those after it."""
    instructions = dis.get_instructions(frame.f_code)
    return [each for each in instructions if each.offset >= frame.f_lasti and each.opname not in _NEUTRAL]


def _asserts(instructions: Sequence[dis.Instruction | None]) -> bool:
    """Whether they jump if something is true, and raise AssertionError otherwise."""
    jump, load = [*(each.opname for each in instructions[:2] if each is not None), "", ""][:2]
    jumps_if_true = jump.startswith("POP_JUMP") and jump.endswith("IF_TRUE")
    return jumps_if_true and load in ("LOAD_ASSERTION_ERROR", "LOAD_COMMON_CONSTANT")
