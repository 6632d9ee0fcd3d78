"""SGD on a network whose masked weights are zero after every step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from trainables.config import Recipe
from trainables.masks import check_fits


class MaskedSGD:
    """Takes the steps of SGD on a network's parameters, and sets masked weights to zero after each."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, mask: Mapping[str, Tensor], *, rate_on_device: bool = False
    ) -> None:
        """Take over the parameters of `model` and set its masked weights to zero.

        Args:
            model: the network, on the device that trains it.
            recipe: momentum, weight decay and the first learning rate.
            mask: name of a parameter -> bool tensor, True where it is kept; other parameters are all kept.
            rate_on_device: the learning rate is a tensor, float32, so that a captured step follows its changes.

        Raises:
            ValueError: the mask names a tensor that is not a parameter or has another shape.
        """
        self._parameters = dict(model.named_parameters())
        check_fits(mask, self._parameters)
        # Factors of the weights' own dtype and memory layout let one fused call mask all layers.
        self._masked: list[Tensor] = [self._parameters[name] for name in mask]
        self._keep = {name: torch.empty_like(self._parameters[name]).copy_(keep) for name, keep in mask.items()}
        self._factors = list(self._keep.values())
        self._momentum, self._weight_decay = recipe.momentum, recipe.weight_decay
        self._momenta: dict[str, Tensor] = {}
        self._rate = recipe.lr
        device = next(iter(self._parameters.values())).device
        self._rate_on_device = torch.tensor(recipe.lr, device=device) if rate_on_device else None
        self._apply_mask()

    @torch.no_grad()
    def _apply_mask(self) -> None:
        if self._masked:
            torch._foreach_mul_(self._masked, self._factors)

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters by their gradients, then set the masked ones to zero again.

        This is the step of ``torch.optim.SGD``, without what that class does around it: at every step it collects the
        parameters and their states anew, which takes as long as the update of a small network.
        """
        trained = [(name, each, each.grad) for name, each in self._parameters.items() if each.grad is not None]
        momenta = [self._momenta.get(name) for name, _, _ in trained] if self._momentum else []
        sgd(
            [parameter for _, parameter, _ in trained],
            [gradient for _, _, gradient in trained],
            momenta,
            fused=True,
            lr=self._rate if self._rate_on_device is None else self._rate_on_device,
            momentum=self._momentum,
            weight_decay=self._weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if self._momentum:  # which the first step has put into the list
            names = (name for name, _, _ in trained)
            self._momenta |= {name: each for name, each in zip(names, momenta, strict=True) if each is not None}
        self._apply_mask()

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        if rate == self._rate:
            return
        self._rate = rate
        if self._rate_on_device is not None:
            self._rate_on_device.fill_(rate)

    @property
    def momenta(self) -> dict[str, Tensor]:
        """Name of a parameter -> its momentum, not a copy; empty before the first step and without momentum."""
        return dict(self._momenta)

    @torch.no_grad()
    def set_momenta(self, momenta: Mapping[str, Tensor]) -> None:
        """Copy `momenta` (as :attr:`momenta` gives them) into this optimiser's own; those that are missing become 0."""
        for name, parameter in self._parameters.items():
            if name not in self._momenta and name in momenta:
                self._momenta[name] = torch.empty_like(parameter, requires_grad=False)
        copy_all((buffer, momenta[name]) for name, buffer in self._momenta.items() if name in momenta)
        if missing := [buffer for name, buffer in self._momenta.items() if name not in momenta]:
            torch._foreach_zero_(missing)

    def take_over(self, other: MaskedSGD) -> None:
        """Copy mask, momenta and learning rate from the optimiser of a network of the same architecture.

        This optimiser's mask must name every parameter that the other's names.
        """
        copy_all((factor, other._keep[name]) for name, factor in self._keep.items() if name in other._keep)
        if unmasked := [factor for name, factor in self._keep.items() if name not in other._keep]:
            torch._foreach_zero_(unmasked)
            torch._foreach_add_(unmasked, 1.0)
        self.set_momenta(other.momenta)
        self.rate = other.rate


@torch.no_grad()
def copy_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy tensors into others, (target, source), in as few kernels as possible: those of one type take one call.

    A single call for several types would take a kernel for each tensor.
    """
    by_type: defaultdict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for target, source in pairs:
        targets, sources = by_type[target.dtype]
        targets.append(target)
        sources.append(source)
    for targets, sources in by_type.values():
        torch._foreach_copy_(targets, sources)
