"""Per-image token reduction by other papers, for comparison at equal MACs; no part of the product.

Written from the papers over the same timm model, so that one loop trains and judges all of them.
Two liberties, taken for both: the last block computes only what the head reads, as slimdeploy's
models do (it changes nothing else and is worth 7 % of the MACs), and token counts come from a
budget of MACs.
"""

from tools.peers.budget import evit_for_budget, peer_macs, tome_for_budget
from tools.peers.evit import EvitVit
from tools.peers.tome import TomeVit

__all__ = ["EvitVit", "TomeVit", "evit_for_budget", "peer_macs", "tome_for_budget"]
