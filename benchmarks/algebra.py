"""What each form of a network costs, counted rather than timed: operations for one image, 2 for a multiply-add."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import crate_dsl
from benchmarks import networks
from benchmarks.published import with_weights_of


def operations(net: nn.Module, image_bchw: torch.Tensor) -> int:
    """Those of a module's matrix products, for one image, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image_bchw)
    return counter.get_total_flops() // len(image_bchw)


def counted(network: str) -> dict[str, int]:
    """Operations by form: as published, as trained, folded, folded and demanded; and the ViT of equal width."""
    graph = networks.crate(network)
    settings = networks.sizes(graph)
    net = crate_dsl.build(graph, seed=0).eval()
    image_bchw = torch.zeros(1, settings["channels"], settings["size"], settings["size"])
    return {
        "as published": operations(with_weights_of(net, settings).eval(), image_bchw),
        "trained": graph.flops,
        "folded": crate_dsl.lower(net, "-demand").graph.flops,
        "folded, dead tokens gone": crate_dsl.lower(net).graph.flops,
        "ViT of equal width": networks.vit_of_equal_width(network).flops,
    }
