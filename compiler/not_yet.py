"""What the language has and this version does not compile yet: it parses, and check says so in one diagnostic."""

from __future__ import annotations

#: Steps, derived stages and losses by name.
STEPS = frozenset(
    [
        "inverse",
        "ema",
        "each",
        "mask",
        "gather",
        "scatter",
        "scan",
        "unscan",
        "shift",
        "corrupt",
        "merge",
        "tile",
        "quantize",
        "crops",
        "augment",
        "mask_tokens",
        "drop_path",
        "cross_compress",
        "decompress",
        "densify",
        "sinusoid",
        "rotary",
        "flow",
        "denoise",
        "diffusion",
        "denoising",
        "next_token",
        "masked_token",
        "sparse_rate",
        "rate",
        "rate_reduction",
        "commitment",
        "match",
        "info_nce",
        "rotation",
    ]
)

#: Arguments of steps that are there, as (step, argument).
ARGUMENTS = frozenset({("mse", "on"), ("mse", "except"), ("mse", "by"), ("mse", "normalize"), ("position", "by")})
ARGUMENTS |= {("cross_entropy", "on")}

#: Words of arguments that are there, as (step, argument, word).
WORDS = frozenset(
    ("compress", argument, word)
    for argument, words in {
        "gradient": "exact neumann statistics representatives",
        "step": "relative",
    }.items()
    for word in words.split()
)
