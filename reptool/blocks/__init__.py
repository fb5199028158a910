"""Blocks that train as several branches and deploy as one layer: plain modules without deploy code."""

from . import parametrizations as parametrizations
from .ac import ACBlock as ACBlock
from .bn_and_pad import BNAndPad as BNAndPad
from .compose import Parallel as Parallel
from .dilated_reparam import DilatedReparamBlock as DilatedReparamBlock
from .diverse_branch import DiverseBranchBlock as DiverseBranchBlock
from .edge_oriented import EdgeFilter as EdgeFilter
from .edge_oriented import EdgeOrientedBlock as EdgeOrientedBlock
from .identity_conv import IdentityConv1x1 as IdentityConv1x1
from .large_kernel import LargeKernelBlock as LargeKernelBlock
from .mobile_one import MobileOneBlock as MobileOneBlock
from .orepa import OREPA as OREPA
from .qa_rep_vgg import QARepVGGBlock as QARepVGGBlock
from .ref_conv import RefConv as RefConv
from .rep_mixer import RepMixer as RepMixer
from .rep_next import RepNeXtBlock as RepNeXtBlock
from .rep_next import RepNeXtUnit as RepNeXtUnit
from .rep_vgg import RepVGGBlock as RepVGGBlock

__all__ = [
    "OREPA",
    "ACBlock",
    "BNAndPad",
    "DilatedReparamBlock",
    "DiverseBranchBlock",
    "EdgeFilter",
    "EdgeOrientedBlock",
    "IdentityConv1x1",
    "LargeKernelBlock",
    "MobileOneBlock",
    "Parallel",
    "QARepVGGBlock",
    "RefConv",
    "RepMixer",
    "RepNeXtBlock",
    "RepNeXtUnit",
    "RepVGGBlock",
    "parametrizations",
]
