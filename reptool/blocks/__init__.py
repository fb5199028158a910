"""Blocks that train as several branches and deploy as one layer: plain modules without deploy code."""

from .ac import ACBlock as ACBlock
from .bn_and_pad import BNAndPad as BNAndPad
from .compose import Parallel as Parallel
from .diverse_branch import DiverseBranchBlock as DiverseBranchBlock
from .identity_conv import IdentityConv1x1 as IdentityConv1x1
from .ref_conv import RefConv as RefConv
from .rep_vgg import RepVGGBlock as RepVGGBlock

__all__ = [
    "ACBlock",
    "BNAndPad",
    "DiverseBranchBlock",
    "IdentityConv1x1",
    "Parallel",
    "RefConv",
    "RepVGGBlock",
]
