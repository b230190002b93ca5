"""Which layers compute in bfloat16: those that are large enough, on processors that multiply it faster.

Parameters, gradients given to the optimizer, gates' shares and losses stay in float32. The rule looks at sizes and
at what the processor can do, and at nothing that differs from run to run.
"""

from collections import Counter

import torch
from torch import nn

from polytask.nn.layers import REDUCED, ExpertLinear, Layers

LEAST = 1 << 25
"""Multiplications of one product below which bfloat16 was measured to gain less than a quarter."""
_WIDTH = 64


def pays(rows: int, width_in: int, width_out: int, device: torch.device) -> bool:
    """Whether a layer of ``rows`` rows is faster in bfloat16: forward pass, gradients and conversions together.

    Measured on a CPU with AVX-512 BF16, time in float32 over time in bfloat16: 0.9 to 1.1 up to 1,024 rows of 64-64,
    1.3 at 4,096, 1.5 at 4,096 rows of 128-64, 2 to 2.8 from 1,024 rows of 128-128 or 256-128 on.
    """
    large = min(width_in, width_out) >= _WIDTH and rows * width_in * width_out >= LEAST
    return large and multiplies(device)


def multiplies(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 itself: AMX or AVX-512 BF16, or a GPU from Ampere on."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose(model: nn.Module, rows: int) -> str:
    """Set the precision of every layer of ``model`` for batches of ``rows`` rows in training, and say which changed.

    Such as "bfloat16 in 8 experts 448-256, 8 experts 256-128, 4 times layer 128-64"; nothing where all stay in float32.
    """
    found: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, ExpertLinear):
            experts, width_in, width_out = module.weight.shape
            if _set(module, rows, width_in, width_out):
                found[f"{experts} experts {width_in}-{width_out}"] += 1
        elif isinstance(module, Layers):
            for layer in module:
                if isinstance(layer, nn.Linear) and _set(layer, rows, layer.in_features, layer.out_features):
                    found[f"layer {layer.in_features}-{layer.out_features}"] += 1
    named = [what if n == 1 else f"{n} times {what}" for what, n in found.items()]
    return "bfloat16 in " + ", ".join(named) if named else ""


def _set(layer: nn.Module, rows: int, width_in: int, width_out: int) -> bool:
    chosen = pays(rows, width_in, width_out, next(layer.parameters()).device)
    setattr(layer, REDUCED, chosen)
    return chosen
