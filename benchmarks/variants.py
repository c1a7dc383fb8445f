"""What each variant of `compress` and each pairing mode does, on the same tokens: the tables of `docs/derivation.md`.

    python benchmarks/variants.py [--write]

Writes the tables to the terminal, or into the page between its markers. Seconds on a CPU; every seed is fixed.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import crate_dsl
from crate_dsl.rates import subspace_rate, subspace_rate_gradient

PAGE = Path(__file__).parents[1] / "docs" / "derivation.md"

#: 24 tokens of width 32, four subspaces that span, ε = 1/2.
TOKENS, WIDTH, SUBSPACES, RANK, EPS = 24, 32, 4, 8, 0.5
SAMPLES, LAYERS = 64, 6


def network(body: str, seed: int = 0) -> crate_dsl.Network:
    """A model with this body, in float64; constrained weights start where they are held."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "variant.crate")
        file.write_text(f"model example {{\n{body}\n}}\n", encoding="utf-8")
        return crate_dsl.build(crate_dsl.load(str(file)), seed=seed).double()


def bases() -> Tensor:
    """Orthonormal bases that span: (K p, d)."""
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.double, generator=generator)).Q


def unit_tokens(size: float = 1.0) -> Tensor:
    """Random directions of one size: (B, N, d)."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(SAMPLES, TOKENS, WIDTH, dtype=torch.double, generator=generator)
    return size * F.normalize(tokens, dim=-1)


# ------------------------------------------------------------------ variants of compress


@dataclass(frozen=True)
class Variant:
    """A way of writing `compress`: its formula, and what holds of it for every input."""

    written: str
    formula: str
    guarantee: str


VARIANTS = (
    Variant(
        "gradient = exact",
        "X - κα Σ U_k (I + α W_k W_kᵀ)⁻¹ W_k",
        "for every input the rate falls, and the step is a bijection (κα‖U‖₂² = 0.5 < 1)",
    ),
    Variant(
        "gradient = neumann",
        "X - κα Σ U_k W_k (I - α W_kᵀ W_k)",
        "near exact where α‖W_k‖₂² < 1; outside nothing",
    ),
    Variant("gradient = softmax", "(1 - κα) X + κα² Σ U_k W_k softmax(W_kᵀ W_k)", "none"),
    Variant("out = tied", "X + Σ U_k W_k softmax(W_kᵀ W_k / √p), the published layer with O = U", "none"),
)


def rate(z_bnd: Tensor) -> float:
    u_kpd = bases().unflatten(0, (SUBSPACES, RANK))
    return float(subspace_rate(z_bnd, u_kpd, EPS).mean())


def step(variant: Variant, z_bnd: Tensor, norm: str) -> tuple[Tensor, Tensor | None]:
    """The step's result and, of derived ones, the gradient that it took."""
    constraint = "constraint = orthonormal, " if variant.written != "out = tied" else ""
    net = network(
        f"input z : float[{TOKENS}, {WIDTH}]\n"
        f"y = z -> compress({SUBSPACES}, rank = {RANK}, {constraint}{variant.written}, norm = {norm})\noutput y"
    )
    module = net.get_submodule("y.compress")
    with torch.no_grad():
        module.subspaces.copy_(bases())
        taps = module.explain(z_bnd)
    return taps["out"], taps.get("gradient")


def variants() -> Iterable[tuple[str, ...]]:
    yield (
        "variant",
        "formula",
        "guarantee",
        "error of ∇Rᶜ, tokens of size 0.1",
        "of size 1",
        "of size √d",
        "Rᶜ of tokens of size 1",
        "after a step",
        "Rᶜ of normalised tokens",
        "after a step",
    )
    u_kpd, unit = bases().unflatten(0, (SUBSPACES, RANK)), unit_tokens()
    normalised = F.layer_norm(unit, (WIDTH,))
    for variant in VARIANTS:
        errors = []
        for size in (0.1, 1.0, WIDTH**0.5):
            tokens = unit_tokens(size)
            wanted = subspace_rate_gradient(tokens, u_kpd, EPS)
            _, found = step(variant, tokens, "none")
            errors.append("–" if found is None else f"{float((found - wanted).norm() / wanted.norm()):.2g}")
        raw, _ = step(variant, unit, "none")
        usual, _ = step(variant, unit, "layer")
        after = F.layer_norm(usual, (WIDTH,))
        rates = [f"{rate(z):.2f}" for z in (unit, raw, normalised, after)]
        yield (f"`{variant.written}`", variant.formula, variant.guarantee, *errors, *rates)


# ------------------------------------------------------------------ pairing modes

LAYER = """\
        compress(4, rank = 8, gradient = exact, constraint = orthonormal, norm = none, step = relative({half:g}))
        sparsify(step = {eta:g}, penalty = 0.1, prox = leaky(0.9), norm = none, constraint = orthonormal)
"""
PUBLISHED = """\
        compress(4, rank = 8)
        sparsify(step = {eta:g}, penalty = 0.1)
"""


@dataclass(frozen=True)
class Pairing:
    """A mode of `inverse`: what undoes a layer, and what holds of it."""

    mode: str
    layer: str
    formula: str
    guarantee: str


PAIRINGS = (
    Pairing(
        "learned",
        PUBLISHED,
        "G = E norm Y; G - MSSA(norm G, V), with its own E and V",
        "shapes and order; nothing before it is trained",
    ),
    Pairing("learned", LAYER, "G = E Y; G + κ∇Rᶜ(G), with its own E and V", "as above"),
    Pairing(
        "tied",
        LAYER,
        "V = prox⁻¹ Y; V - η D'(V - D V); then Y + κ∇Rᶜ(Y)",
        "first order: the error falls by four when the steps halve",
    ),
    Pairing("fixed_point(5)", LAYER, "X ← Y - F(X), five times for each step", "converges where Lip F < 1"),
    Pairing(
        "fixed_point(20)", LAYER, "X ← Y - F(X), twenty times for each step", "converges where Lip F < 1"
    ),
    Pairing(
        "certified", LAYER, "as many as κα‖U‖₂² asks for; D's step is solved", "a bijection for every input"
    ),
)


def round_trip(pairing: Pairing, shrink: float, single: bool = False) -> float:
    """How far `LAYERS` layers and their inverse are from the identity, relative to the tokens."""
    body = pairing.layer.format(half=0.5 * shrink, eta=0.1 * shrink)
    net = network(
        f"input z : float[{TOKENS}, {WIDTH}]\n"
        f"stage encoder = repeat({LAYERS}) {{\n{body}}}\n"
        f"stage decoder = inverse(encoder, mode = {pairing.mode})\n"
        "code = z -> encoder\nback = code -> decoder\noutput code, back"
    )
    net.constrain_()
    z_bnd = unit_tokens(WIDTH**0.5)
    if single:
        net, z_bnd = net.float(), z_bnd.float()
    with torch.no_grad():
        back = net(z_bnd)["back"]
    return float((back - z_bnd).norm() / z_bnd.norm())


def pairings() -> Iterable[tuple[str, ...]]:
    yield ("mode", "layer", "its inverse", "guarantee", "error", "steps halved", "error in float32")
    for pairing in PAIRINGS:
        layer = "published" if pairing.layer is PUBLISHED else "derived"
        errors = [f"{round_trip(pairing, shrink):.2g}" for shrink in (1, 0.5)]
        single = f"{round_trip(pairing, 1, single=True):.2g}"
        yield (f"`{pairing.mode}`", layer, pairing.formula, pairing.guarantee, *errors, single)


# ------------------------------------------------------------------ solvers of the flow

SOLVERS = (("euler", "first order"), ("heun", "second order"), ("rk4", "fourth order"))
#: α is 8 / (24 · 0.25): small tokens fall to a quarter in this time.
TIME, STEPS = 1.0, (4, 8, 16)


def flow(settings: str, z_bnd: Tensor, time: float = TIME) -> Tensor:
    """The flow over a time, against orthonormal bases."""
    net = network(
        f"input z : float[{TOKENS}, {WIDTH}]\n"
        f"y = z -> flow({SUBSPACES}, rank = {RANK}, time = {time:g}, constraint = orthonormal, {settings})\noutput y"
    )
    with torch.no_grad():
        net.get_submodule("y.flow").subspaces.copy_(bases())
        result: Tensor = net(z_bnd)
    return result


def solvers() -> Iterable[tuple[str, ...]]:
    yield ("solver", "guarantee", *(f"error, {steps} steps" for steps in STEPS), "there and back, 8 steps")
    z_bnd = unit_tokens()
    wanted = flow("solver = exact", z_bnd)
    for solver, guarantee in SOLVERS:
        written = [f"solver = {solver}, steps = {steps}" for steps in (*STEPS, 8)]
        errors = [flow(settings, z_bnd) - wanted for settings in written[:-1]]
        errors.append(flow(written[-1], flow(written[-1], z_bnd), -TIME) - z_bnd)
        yield (f"`{solver}`", guarantee, *(f"{float(e.norm() / z_bnd.norm()):.2g}" for e in errors))
    back = flow("solver = exact", wanted, -TIME) - z_bnd
    yield (
        "`exact`",
        "a bijection for every input",
        "–",
        "–",
        "–",
        f"{float(back.norm() / z_bnd.norm()):.2g}",
    )


# ------------------------------------------------------------------ the page


def table(rows: Iterable[tuple[str, ...]]) -> str:
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def written(page: str, tables: dict[str, str]) -> str:
    """The page with each table between its markers."""
    for name, text in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        page, count = pattern.subn(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)
        if count != 1:
            raise SystemExit(f"{PAGE.name} has no place for the table `{name}`")
    return page


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description="The tables of docs/derivation.md.")
    parser.add_argument("--write", action="store_true", help="write them into the page")
    tables = {"variants": table(variants()), "pairings": table(pairings()), "solvers": table(solvers())}
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    else:
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
