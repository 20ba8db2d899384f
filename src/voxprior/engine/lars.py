"""LARS: momentum whose step in each layer is a fixed share of the layer's own length.

Large batches allow large rates, but where a layer's gradient is long beside its weights such a rate destroys it. LARS
divides that relation out.

    d = gradient + weight_decay * w
    v = momentum * v + trust * |w| / |d| * d
    w = w - lr * v

Parameters of one dimension (biases, norms) and learnt tokens get no decay and the factor 1 in place of
trust * |w| / |d|; so does a parameter that is 0 or has no gradient. This is LARS as BYOL uses it. You et al. divide by
|gradient| + weight_decay * |w| instead of |d| and keep the rate inside v.

Source: You, Gitman, Ginsburg, "Large batch training of convolutional networks", 2017, algorithm 1; the exceptions:
Grill et al., "Bootstrap your own latent", 2020, section 3.3, and its released code.
"""

from collections.abc import Iterable
from typing import Any

import torch


class Lars(torch.optim.Optimizer):
    """Steps all parameters of a group in a few kernels, and never makes the host wait for the device.

    A group may say `adapt: False`: factor 1 for all of it.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, trust: float, weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay, "adapt": True}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient. A closure is not taken: the loop has computed the gradients."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if "velocity" not in self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            velocities = [self.state[weight]["velocity"] for weight in weights]
            changes: Any = [weight.grad for weight in weights]
            if group["weight_decay"]:
                changes = torch._foreach_add(changes, weights, alpha=group["weight_decay"])
            if group["adapt"]:
                length, pull = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(changes))
                factor = torch.where((length > 0) & (pull > 0), group["trust"] * length / pull, 1.0)
                changes = torch._foreach_mul(changes, list(factor.unbind()))
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, changes)
            torch._foreach_add_(weights, velocities, alpha=-group["lr"])
