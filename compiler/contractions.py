"""Whether the iterations of `mode = fixed_point(m)` converge: read off the weights, when built and when exported."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import groupby

from crate_dsl.compiler.graph import Pair
from crate_dsl.compiler.modules import Bound, StepModule
from crate_dsl.compiler.network import Network, borrowed
from crate_dsl.compiler.operators import FixedPoint
from crate_dsl.language.diagnostics import NotCertified


@dataclass(frozen=True, slots=True)
class Contraction:
    """A pair by iteration, and how far the step that is undone is from the identity."""

    pair: Pair
    bound: Bound

    @property
    def certified(self) -> bool:
        """Whether each iteration brings the answer nearer, whatever the input."""
        return self.bound.lipschitz is not None and self.bound.lipschitz < 1


def contractions(net: Network) -> tuple[Contraction, ...]:
    """Every pair of `mode = fixed_point(m)` in a network, at the weights that it has.

    >>> import crate_dsl
    >>> from crate_dsl.language.source import Source
    >>> from crate_dsl.workspace import Target, load_source
    >>> spec = '''model m { input z : float[6, 8]
    ...   stage encoder = compress(2, 4, gradient = exact, norm = none, constraint = orthonormal)
    ...   y = z -> encoder -> inverse(encoder, mode = fixed_point(9))  output y }'''
    >>> net = crate_dsl.build(load_source(Source("m.crate", spec), Target("m.crate")))
    >>> [(found.certified, found.bound.reason) for found in contractions(net)]
    [(True, 'κα‖U‖₂² = 0.5, by its relative step')]
    """
    return tuple(
        Contraction(pair, _bound(net, pair)) for pair in net.graph.pairs if isinstance(pair.mode, FixedPoint)
    )


def _bound(net: Network, pair: Pair) -> Bound:
    graph = net.graph
    node = graph.node(pair.undoes)
    if type(node.operator).kind == "expression":
        return Bound(None, "nothing bounds what the body of a residual does to distances")
    module = net.get_submodule(node.path)
    assert isinstance(module, StepModule)
    bound = module.bound(*(graph.type_of(value) for value in node.inputs), **borrowed(net, node))
    if bound.lipschitz is None and pair.certificate is not None:
        return Bound(0.0, f"it is undone exactly: {pair.certificate.reason}")
    return bound


def warn(net: Network) -> None:
    """Warn, once for each inverse, of iterations of which nothing says that they converge (`NotCertified`)."""
    for name, group in groupby(contractions(net), key=lambda found: (found.pair.inverse, found.pair.stage)):
        open_ = [found for found in group if not found.certified]
        if not open_:
            continue
        inverse, stage = name
        first, more = open_[0], len(open_) - 1
        rest = f" (and {more} more of its steps)" if more else ""
        why = first.bound.reason
        if first.bound.lipschitz is not None:
            why += f", where convergence is certain only below 1: here it is {first.bound.lipschitz:.3g}"
        warnings.warn(
            NotCertified(
                f"`{inverse}` undoes `{stage}` by iteration, and nothing certifies that it converges for every "
                f"input: of `{first.pair.undoes}`{rest}, {why}"
            ),
            stacklevel=3,
        )
