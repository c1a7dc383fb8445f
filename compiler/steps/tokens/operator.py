"""Steps on the token axis: learned tokens put before or after, segments taken by name, all tokens pooled."""

from __future__ import annotations

from typing import ClassVar, Literal

from crate_dsl.compiler.operators import (
    Certificate,
    Inverse,
    Mistake,
    Mode,
    NoInverse,
    Operator,
    Port,
    Tokens,
    Typing,
    Weight,
    learned_slots,
)
from crate_dsl.compiler.steps.norm.operator import width_of
from crate_dsl.compiler.types import Dim, Layout, Segment, TensorType
from crate_dsl.language.diagnostics import did_you_mean

#: A stretch of the token axis as Python and ONNX slice it: negative places count from the end, None is the end itself.
Cut = tuple[int, int | None]


def layout_of(tokens: TensorType) -> Layout:
    """The layout of a token axis; where nothing was named, it is one segment called `tokens`."""
    return tokens.layout if tokens.layout is not None else Layout((Segment("tokens", tokens.shape[0]),))


# ------------------------------------------------------------------ learned tokens


class Prepend(Operator):
    """Puts tokens before the tokens: float[N, dim] -> float[k + N, dim].

    A `learn` is the same for every sample: of shape [dim] it is one token, [k, dim] is k. They become a segment of the
    `learn`'s name. Other tokens of the network, float[k, dim], keep the names of their segments.
    """

    word: ClassVar[str] = "prepend"
    formula: ClassVar[str] = r"[C,\; Z]"
    source: ClassVar[str] = "the class token: Dosovitskiy et al. 2021, arXiv 2010.11929, eq. 1"

    tokens: Weight | Port

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        added = _added(self.word, self.tokens, tokens)
        return _joined(self, tokens, (*added, *layout_of(tokens)))

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return _without(self.tokens)

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        return Certificate(1.0, "what was joined is left out again")


class Append(Operator):
    """Puts tokens after the tokens: float[N, dim] -> float[N + k, dim].

    A `learn` is the same for every sample: of shape [dim] it is one token, [k, dim] is k. They become a segment of the
    `learn`'s name. Other tokens of the network, float[k, dim], keep the names of their segments.
    """

    word: ClassVar[str] = "append"
    formula: ClassVar[str] = r"[Z,\; C]"
    source: ClassVar[str] = (
        "latent tokens: Yu et al. 2024, An Image is Worth 32 Tokens (TiTok), arXiv 2406.07550"
    )

    tokens: Weight | Port

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        added = _added(self.word, self.tokens, tokens)
        return _joined(self, tokens, (*layout_of(tokens), *added))

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return _without(self.tokens)

    def certificate(self, *inputs: TensorType) -> Certificate | NoInverse:
        return Certificate(1.0, "what was joined is left out again")


def _without(added: Weight | Port) -> Inverse | NoInverse:
    if isinstance(added, Port):
        return NoInverse("`tokens` is handed over to it, and nobody hands it to its inverse")
    return Inverse(Drop(tokens=Tokens(_called(added))))


def _called(added: Weight) -> str:
    """The name of a `learn` where it is declared, without that of the stage that owns it: so it is spoken of there."""
    return added.name.rpartition(".")[2]


def _added(step: str, given: Weight | Port, tokens: TensorType) -> tuple[Segment, ...]:
    """The segments of what is joined."""
    width = width_of(step, tokens)
    learned = isinstance(given, Weight)
    shape, named = given.type.shape, f"`{_called(given)}` is" if isinstance(given, Weight) else "these are"
    ranks = (1, 2) if learned else (2,)
    if given.type.kind != "float" or given.type.rank not in ranks or shape[-1] != tokens.shape[1]:
        what = "learned tokens" if learned else "tokens"
        help = (
            f"`learn {_called(given)} : float[{width}]` is one such token, `float[2, {width}]` are two"
            if isinstance(given, Weight)
            else f"what is joined is float[tokens, {width}]"
        )
        raise Mistake(
            "E0436",
            f"`{step}` needs {what} as wide as {tokens}, but {named} {given.type}",
            help,
            at="tokens",
            label=str(given.type),
        )
    if isinstance(given, Weight):
        added: tuple[Segment, ...] = (
            Segment(_called(given), shape[0] if given.type.rank == 2 else Dim.of(1)),
        )
    else:
        added = layout_of(given.type).segments
    for segment in added:
        if segment.name in layout_of(tokens).names:
            raise Mistake(
                "E0431",
                f"there are tokens called `{segment.name}` already",
                f"the tokens here are {layout_of(tokens)}",
                at="tokens",
            )
    return added


def _joined(operator: Prepend | Append, tokens: TensorType, segments: tuple[Segment, ...]) -> Typing:
    try:
        layout = Layout(segments)
        length = layout.length
    except ValueError:
        message = f"`{operator.word}` of tokens of two lengths that are both known only at run time is not there yet"
        raise Mistake("E0901", message, at="tokens") from None
    return Typing((tokens.with_shape(length, tokens.shape[1], layout=layout),), learned_slots(operator))


# ------------------------------------------------------------------ taken by name


class Drop(Operator):
    """Leaves out the tokens of one segment: float[N, dim] -> float[N - k, dim]."""

    word: ClassVar[str] = "drop"
    formula: ClassVar[str] = r"(z_i)_{i \notin S}"
    source: ClassVar[str] = (
        "the decoder's output without its class token: He et al. 2022 (MAE), arXiv 2111.06377"
    )

    tokens: Tokens

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        layout, segment, (start, stop) = _find(self.word, self.tokens, tokens)
        rest = Layout(tuple(other for other in layout if other is not segment))
        if not rest.segments:
            raise Mistake(
                "E0439", f"nothing is left without `{segment.name}`: there are no other tokens", at="tokens"
            )
        before: tuple[Cut, ...] = () if start == 0 else ((0, start),)
        after: tuple[Cut, ...] = () if stop is None else ((stop, None),)
        count, width = tokens.shape
        left = tokens.with_shape(count - segment.length, width, layout=rest)
        return Typing((left,), facts=before + after)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("the tokens that it leaves out are gone")


class Keep(Operator):
    """Takes the tokens of one segment: float[N, dim] -> float[k, dim]."""

    word: ClassVar[str] = "keep"
    formula: ClassVar[str] = r"(z_i)_{i \in S}"
    source: ClassVar[str] = "the latent tokens kept by an encoder: Yu et al. 2024 (TiTok), arXiv 2406.07550"

    tokens: Tokens

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        _, segment, cut = _find(self.word, self.tokens, tokens)
        kept = tokens.with_shape(segment.length, tokens.shape[1], layout=Layout((segment,)))
        return Typing((kept,), facts=(cut,))

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("the tokens that it does not keep are gone")


class Select(Operator):
    """Takes the one token of a segment of length 1: float[N, dim] -> float[dim]."""

    word: ClassVar[str] = "select"
    formula: ClassVar[str] = r"z_i"
    source: ClassVar[str] = "the class token read by a head: Dosovitskiy et al. 2021, arXiv 2010.11929, eq. 4"

    tokens: Tokens

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        _, segment, (start, _) = _find(self.word, self.tokens, tokens)
        if segment.length.static != 1:
            raise Mistake(
                "E0437",
                f"`select` takes one token, but `{segment.name}` has {segment.length}",
                f"`keep({segment.name})` takes them all, `keep({segment.name}) -> pool` their mean",
                at="tokens",
                label=f"{segment.length} tokens",
            )
        return Typing((tokens.with_shape(tokens.shape[1]),), facts=start)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("the tokens that it does not select are gone")


def _find(step: str, wanted: Tokens, tokens: TensorType) -> tuple[Layout, Segment, Cut]:
    """The layout, the segment of that name, and where it lies."""
    width_of(step, tokens)
    layout = layout_of(tokens)
    if wanted.name not in layout.names:
        near = did_you_mean(wanted.name, layout.names)
        raise Mistake(
            "E0430",
            f"there are no tokens called `{wanted.name}` here, only {', '.join(f'`{n}`' for n in layout.names)}",
            *([f"did you mean `{near}`?"] if near else []),
            at="tokens",
        )
    segment = layout.segment(wanted.name)
    before = layout.start(segment.name)
    after = tokens.shape[0] - before - segment.length
    start = _place(step, before, after + segment.length)
    assert start is not None, "a segment without tokens"
    return layout, segment, (start, _place(step, before + segment.length, after))


def _place(step: str, before: Dim, after: Dim) -> int | None:
    """A place on the token axis: counted from the end where it lies behind a length that is known only at run time."""
    if after.static == 0:
        return None
    if before.static is not None:
        return before.static
    if after.static is not None:
        return -after.static
    raise Mistake("E0901", f"`{step}` between segments of unknown length is not there yet", at="tokens")


# ------------------------------------------------------------------ pooled


class Pool(Operator):
    """The mean, or the largest entry, over all tokens: float[N, dim] -> float[dim]."""

    word: ClassVar[str] = "pool"
    formula: ClassVar[str] = r"\tfrac{1}{N} \sum_i z_i \quad\text{or}\quad \max_i z_i"
    source: ClassVar[str] = (
        "average pooling over tokens: Zhai et al. 2022, Scaling Vision Transformers, arXiv 2106.04560"
    )

    by: Literal["mean", "max"] = "mean"

    def infer(self, *inputs: TensorType) -> Typing:
        (tokens,) = inputs
        width_of(self.word, tokens)
        return Typing((tokens.with_shape(tokens.shape[1]),), flops=tokens.elements)

    def inverse(self, mode: Mode, *inputs: TensorType) -> Inverse | NoInverse:
        return NoInverse("many tokens become one")
