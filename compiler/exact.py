"""Exact arithmetic on the numbers of a spec, and how numbers are shown."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from crate_dsl.compiler.types import Dim

#: Numbers longer than this are refused before they are multiplied out.
MAXIMUM_BITS = 4096


class ArithmeticProblem(Exception):
    """Why two values do not combine, in the user's words."""


Exact = Fraction | Dim


def combine(operator: Literal["+", "-", "*", "/"], left: Exact, right: Exact) -> Exact:
    """`left operator right`, exactly. Lengths known only at run time stay of the form a*n + b.

    Raises:
        ArithmeticProblem: division by zero, a number that grows out of bounds, two lengths multiplied.
    """
    if isinstance(left, Dim) or isinstance(right, Dim):
        return _combine_lengths(operator, left, right)
    if operator == "/" and right == 0:
        raise ArithmeticProblem("this divides by zero")
    result = {
        "+": left.__add__,
        "-": left.__sub__,
        "*": left.__mul__,
        "/": left.__truediv__,
    }[operator](right)
    if max(result.numerator.bit_length(), result.denominator.bit_length()) > MAXIMUM_BITS:
        raise ArithmeticProblem("this number grows beyond all bounds")
    return result


def _combine_lengths(operator: str, left: Exact, right: Exact) -> Dim:
    whole = [
        x if isinstance(x, Dim) else int(x) for x in (left, right) if isinstance(x, Dim) or x.denominator == 1
    ]
    if len(whole) == 2:
        a, b = whole
        try:
            if operator == "+":
                return Dim.of(a) + b
            if operator == "-":
                return Dim.of(a) - b
            if operator == "*" and isinstance(a, int) and isinstance(b, Dim):
                return b * a
            if operator == "*" and isinstance(a, Dim) and isinstance(b, int):
                return a * b
        except ValueError as problem:
            raise ArithmeticProblem(str(problem)) from None
    raise ArithmeticProblem(
        "a length known only when the network runs can be multiplied by a whole number and added to, no more"
    )


def show_number(value: object) -> str:
    """A value as a message shows it: 54.857… for 384/7, words and lists as written.

    >>> show_number(Fraction(384, 7))
    '54.857…'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Dim):
        return f"the length {value}, known only when the network runs"
    if isinstance(value, tuple):
        return "[" + ", ".join(show_number(item) for item in value) + "]"
    if not isinstance(value, Fraction):
        return str(value)
    if value.denominator == 1:
        return str(value.numerator) if value.numerator.bit_length() < 100 else f"{_float_text(value)}"
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    text = _float_text(value)
    if denominator == 1 and "e" not in text and Fraction(text) == value:
        return text
    return text if "e" in text else f"{_truncated(value)}…"


def _float_text(value: Fraction) -> str:
    try:
        return (
            f"{float(value):.6g}"
            if abs(value) >= Fraction(10**6) or abs(value) < Fraction(1, 10**4)
            else repr(float(value))
        )
    except OverflowError:
        return f"about 1e{len(str(value.numerator)) - len(str(value.denominator))}"


def _truncated(value: Fraction) -> str:
    thousandths = abs(value.numerator) * 1000 // value.denominator
    sign = "-" if value < 0 else ""
    return f"{sign}{thousandths // 1000}.{thousandths % 1000:03d}"


def divisors(number: int) -> list[int]:
    """The whole numbers that divide a number, ascending; at most 10**6 is looked at."""
    if not 0 < number <= 10**6:
        return []
    return [k for k in range(1, number + 1) if number % k == 0]
