"""Looking inside kernels and losses: the RefConv paper's figures 3 to 6 as numbers, and as pictures."""

from .channels import ChannelSimilarity as ChannelSimilarity
from .channels import channel_similarity as channel_similarity
from .connections import Connections as Connections
from .connections import connection_degree as connection_degree
from .kernels import Refocused as Refocused
from .kernels import kernels as kernels
from .kernels import refocused as refocused
from .landscape import Landscape as Landscape
from .landscape import loss_landscape as loss_landscape
from .skeleton import Skeletons as Skeletons
from .skeleton import average_magnitude as average_magnitude
from .skeleton import skeletons as skeletons

__all__ = [
    "ChannelSimilarity",
    "Connections",
    "Landscape",
    "Refocused",
    "Skeletons",
    "average_magnitude",
    "channel_similarity",
    "connection_degree",
    "kernels",
    "loss_landscape",
    "refocused",
    "skeletons",
]
