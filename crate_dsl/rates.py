"""Coding rates of tokens and their gradients, in torch: what CRATE's layers are derived from, and measured by."""

from crate_dsl.compiler.rates import *  # noqa: F403
from crate_dsl.compiler.rates import __all__ as __all__
