"""A multi-layer perceptron: the smallest network with permutation symmetries, for quick experiments."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from trainables.models.network import Network, build_spec, linear, scaled
from trainables.symmetry.permutations import PermutationSpec


def mlp(*, width: float, num_classes: int, in_channels: int, image_size: int = 32) -> MLP:
    """Build a perceptron with three hidden layers of 512 * width units for square images of `image_size` pixels."""
    return MLP(in_channels * image_size**2, scaled(512, width), num_classes)


class MLP(Network):
    """Flattened image, three hidden layers, linear classifier. Each hidden layer is a permutation group."""

    def __init__(self, inputs: int, units: int, num_classes: int) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(inputs, units)
        self.relu1 = nn.ReLU()
        self.hidden2 = nn.Linear(units, units)
        self.relu2 = nn.ReLU()
        self.hidden3 = nn.Linear(units, units)
        self.relu3 = nn.ReLU()
        self.fc = nn.Linear(units, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes)."""
        x = self.relu1(self.hidden1(x.flatten(1)))
        x = self.relu2(self.hidden2(x))
        x = self.relu3(self.hidden3(x))
        return cast(Tensor, self.fc(x))

    def permutation_spec(self) -> PermutationSpec:
        """Return one group per hidden layer."""
        axes = linear("hidden1", None, "hidden1") | linear("hidden2", "hidden1", "hidden2")
        axes |= linear("hidden3", "hidden2", "hidden3") | linear("fc", "hidden3", None)
        taps = {"hidden1": "relu1", "hidden2": "relu2", "hidden3": "relu3"}
        return build_spec(self.state_dict(), axes, taps)
