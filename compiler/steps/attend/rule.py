"""The type rule of a mask that is a rule: what its tokens must have, and that each of them attends to something."""

from __future__ import annotations

from crate_dsl.compiler.masks import Columns, NoAttribute, Rule, allowed
from crate_dsl.compiler.operators import Mistake
from crate_dsl.compiler.types import TensorType, floats


def columns_of(rule: Rule, tokens: TensorType) -> Columns | None:
    """What a rule reads of tokens that attend to each other; None where their number is known only at run time, and a
    rule reads places alone.

    Raises:
        Mistake: E0406 where its boolean does not fit the tokens, E0417 where tokens lack what it reads, E0418 where
            one of them attends to nothing, whatever its boolean says.
    """
    if rule.kept is not None:
        check_mask(rule.kept, tokens)
    dim = tokens.shape[0]
    if dim.static is not None:
        columns = _columns(rule, tokens)
        _check_all_see(rule, columns, dim.static)
        return columns
    if rule.attributes != ("place",) and rule.attributes:
        _columns(rule, tokens)  # which says why not
    for count in (dim.bound - dim.scale * (dim.symbol.bound - 1) if dim.symbol else 1, dim.bound):
        _check_all_see(rule, _columns(rule, floats(count, 1)), count)
    return None


def _columns(rule: Rule, tokens: TensorType) -> Columns:
    try:
        return Columns.of(rule, tokens, tokens)
    except NoAttribute as problem:
        message, help = problem.args
        raise Mistake("E0417", message, help, at="mask") from None


def _check_all_see(rule: Rule, columns: Columns, count: int) -> None:
    blind = allowed((*rule.alternatives, *rule.where_kept), columns, count, count).blind()
    if blind is not None:
        message = f"under this rule token {blind} of {count} attends to nothing: a softmax over no keys has no value"
        help = "each token sees itself with `… or key.place == query.place`"
        raise Mistake("E0418", message, help, at="mask")


def check_mask(mask: TensorType, tokens: TensorType) -> None:
    """A boolean mask says which tokens count: one for each. Raises `Mistake` where it does not fit."""
    if mask.kind != "bool" or mask.shape != tokens.shape[:1]:
        raise Mistake(
            "E0406",
            f"a mask of these tokens is bool[{tokens.shape[0]}], but is given {mask}",
            at="mask",
            label=str(mask),
        )
