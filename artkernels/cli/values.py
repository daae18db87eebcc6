"""Values of options, as people write them."""

import re
from fractions import Fraction

from artkernels.errors import UserError
from artkernels.recipes.style_transfer import TileSide

__all__ = ["parse_memory", "parse_rate", "parse_tile", "parse_time"]

_NUMBER = r"\d{1,9}(?:\.\d+)?"
_FINEST = 100_000  # the denominator of a rate at most: videos keep it as two 32-bit integers


def parse_tile(text: str) -> TileSide:
    if text == "auto":
        return "auto"
    if text == "off":
        return None
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise UserError(f"--tile must be auto, off, or a number of pixels from 1 up, got {text!r}")
    return int(text)


def parse_memory(text: str) -> int:
    """The bytes that 4GB (decimal), 4GiB or 4G (binary) stand for."""
    match = re.fullmatch(rf"({_NUMBER})\s*([kmgt])(i?b)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UserError(f"--max-memory must be a number and a unit, as 4GB or 500MiB, got {text!r}")
    number, prefix, unit = match.groups()
    base = 1000 if (unit or "").lower() == "b" else 1024
    return int(float(number) * base ** ("kmgt".index(prefix.lower()) + 1))


def parse_rate(text: str) -> Fraction:
    """The frames a second that 25, 29.97 or 30000/1001 stand for."""
    if not re.fullmatch(rf"{_NUMBER}|\d{{1,9}}/0*[1-9]\d{{0,8}}", text):
        raise UserError(f"--fps must be a number of frames a second, as 25 or 30000/1001, got {text!r}")
    return Fraction(text).limit_denominator(_FINEST)


def parse_time(text: str, option: str) -> Fraction:
    """The seconds that 12.5, 1:02.5 or 1:00:00 stand for."""
    if not re.fullmatch(rf"(\d{{1,9}}:){{0,2}}{_NUMBER}", text):
        raise UserError(f"{option} must be seconds or H:MM:SS, as 12.5 or 1:02:03, got {text!r}")
    seconds = Fraction(0)
    for part in text.split(":"):
        seconds = 60 * seconds + Fraction(part)
    return seconds
