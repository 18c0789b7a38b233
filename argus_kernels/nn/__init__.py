"""torch.nn modules over the ops: they hold the parameters, the ops compute.

    TripleEmbedding       several id columns → one vector per event
    CausalAttention       softmax attention over packed histories, with learned position and time biases
    HstuAttention         the same with HSTU's SiLU in place of the softmax
    SampledSoftmaxLoss    next-item loss; draws negatives, counts items, corrects by logQ
    FeedbackLoss          projection to the tasks' logits and their losses
    PairwiseLoss          mean ranking loss over the pairs of a user's events

`argus_kernels.nn.hugging_face` gives the attention to the models of Hugging Face transformers.
"""

from __future__ import annotations

from argus_kernels.nn.attention import CausalAttention, HstuAttention
from argus_kernels.nn.embedding import TripleEmbedding
from argus_kernels.nn.losses import FeedbackLoss, PairwiseLoss
from argus_kernels.nn.sampled_softmax import Negatives, SampledSoftmaxLoss

__all__ = [
    "CausalAttention",
    "FeedbackLoss",
    "HstuAttention",
    "Negatives",
    "PairwiseLoss",
    "SampledSoftmaxLoss",
    "TripleEmbedding",
]
