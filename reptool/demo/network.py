"""A small classifier of digits in which every one of reptool's blocks has a part."""

from torch import Tensor, nn

from reptool.blocks import ACBlock, DiverseBranchBlock, RefConv, RepVGGBlock

__all__ = ["DigitNet"]


class DigitNet(nn.Module):
    """Six stages for 8x8 images of one channel, each of them one convolution and a ReLU when deployed.

    Args:
        width: channels of the first stages; the later ones have twice as many.
        classes: number of outputs.
    """

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        wide = 2 * width
        self.stem = RepVGGBlock(1, width)
        self.repvgg = RepVGGBlock(width, width)
        self.acnet = ACBlock(width, wide, stride=2, activation=nn.ReLU)
        self.diverse = DiverseBranchBlock(wide, wide, activation=nn.ReLU)
        self.depthwise = nn.Sequential(
            RefConv(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU()
        )
        self.pointwise = nn.Sequential(nn.Conv2d(wide, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(wide, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, 1, H, W) to features (N, 2 * width)."""
        for stage in (self.stem, self.repvgg, self.acnet, self.diverse, self.depthwise, self.pointwise):
            x = stage(x)
        return self.pool(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 1, H, W) to logits (N, classes)."""
        return self.head(self.forward_features(x))
