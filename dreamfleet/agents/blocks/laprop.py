"""LaProp with adaptive gradient clipping, the optimizer of DreamerV3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreamfleet.agents.blocks.optimizer import Optimizer, no_subnormals

BETA1, BETA2, EPS = 0.9, 0.999, 1e-20
SMALLEST_NORM = 1e-3  # a tensor of smaller norm is clipped as if it had this norm


class LaProp(Optimizer):
    """Trains the parameters of one network by LaProp, with adaptive gradient clipping.

    The gradient of a tensor whose norm exceeds `clip` times the norm of the tensor is scaled down
    to it. LaProp divides the gradient by its running root mean square first, and averages the
    quotients then (momentum). The learning rate rises linearly over the first `warmup` steps.

    Sources: Ziyin et al. 2020; Brock et al. 2021; DreamerV3's code for the constants.
    """

    def __init__(self, net: nn.Module, lr: float, clip: float, warmup: int) -> None:
        super().__init__(net, lr, max_grad_norm=torch.inf)
        self._clip, self._warmup = clip, warmup
        sizes = [parameter.numel() for parameter in self._parameters]
        self._pieces = list(self._flat.split(sizes))
        self._gradient_pieces = list(self._gradient.split(sizes))

    @torch.no_grad()
    def _update(self, lr: float | Tensor, not_finite: Tensor) -> None:
        gradients, moments = self._gradient_pieces, self._moments
        norms = torch.stack(torch._foreach_norm(gradients))
        limits = self._clip * torch.stack(torch._foreach_norm(self._pieces)).clamp(SMALLEST_NORM)
        factors = (limits / norms.clamp(min=1e-30)).clamp(max=1)
        torch._foreach_mul_(gradients, list(factors.unbind()))
        # A step that is skipped changes neither the moments nor the parameters.
        gradient = torch.where(not_finite > 0, 0.0, self._gradient)
        taken = 1 - not_finite
        moments["step"] += taken
        step = moments["step"].clamp(min=1)
        with no_subnormals():
            square, momentum = moments["exp_avg_sq"], moments["exp_avg"]
            square.lerp_(gradient.square(), (1 - BETA2) * taken)
            deviation = (square / (1 - BETA2**step)).sqrt().add_(EPS)
            momentum.lerp_(gradient / deviation, (1 - BETA1) * taken)
            rate = lr * taken * (step / max(self._warmup, 1)).clamp(max=1)
            self._flat.sub_(momentum * (rate / (1 - BETA1**step)))
