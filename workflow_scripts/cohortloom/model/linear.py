"""The linear autoencoder inside the model: which codes are likely beside the known ones, in closed form.

It is the naive method `linear` (data/linear.py), fitted on the training visits, without the smallest of its
weights. A few hundred thousand tokens are too few for a network to learn all pairs of codes; counts of pairs
have them at once. The network knows what more than two codes say together. So the model's distribution over
codes is the geometric mean of both.

The share of the linear part, `config.linear_share`, is 0 while the network trains and is fitted on validation
visits afterwards (training/calibration.py). A network that trains beside it relies on it too much, for its
weights were fitted on the same visits: validation loss rose by 0.06 nats a token (docs/trials.md).
"""

import numpy as np
import torch
from torch import nn

from cohortloom.base.ragged import patient_of_visit
from cohortloom.data.coded import Coded
from cohortloom.data.examples import Examples
from cohortloom.data.linear import Linear

PENALTY = 300.0  # validation losses are alike from 30 to 300; the highest of them memorises the least
WEIGHTS = 64  # of each input code that are kept
FLOOR = 0.2  # of the probability without the known codes: the lowest that they can make of it
FOREIGN = 0.02  # of the prevalence in all visits: a code less prevalent in a group does not belong there
MIN_SHARE = 0.5  # of the prevalence in the group: the lowest probability of a code where no other is known


class LinearAutoencoder(nn.Module):
    """Probability of each code from the group of age and sex and the known codes.

    Buffers: by_group [groups, vocabulary], probability of each code where no other is known. belongs [groups,
    vocabulary] bool: where it is false the code does not belong in the group, and the network alone decides.
    Of each code of this visit and of earlier ones, the codes whose probability it changes and by how much:
    present_codes, present_weights, earlier_codes, earlier_weights [vocabulary, n weights].
    """

    def __init__(self, n_groups: int, vocab_size: int, n_weights: list[int]):
        """n_weights: how many of each code of this visit, and of each code of earlier visits."""
        super().__init__()
        self.register_buffer("by_group", torch.ones(n_groups, vocab_size))
        self.register_buffer("belongs", torch.ones(n_groups, vocab_size, dtype=torch.bool))
        for block, n in zip(("present", "earlier"), n_weights, strict=True):
            self.register_buffer(f"{block}_codes", torch.zeros(vocab_size, n, dtype=torch.int32))
            self.register_buffer(f"{block}_weights", torch.zeros(vocab_size, n))

    def init_weights(self) -> None:
        """Buffers that say nothing: from_pretrained builds the module without memory."""
        for buffer in self.buffers():
            buffer.zero_()
        self.by_group.fill_(1.0)
        self.belongs.fill_(True)

    def forward(
        self, group: torch.Tensor, present: torch.Tensor, earlier: torch.Tensor, repetition: torch.Tensor
    ) -> torch.Tensor:
        """Log probabilities [n, vocabulary] of the codes at n positions.

        group [n]: group of age and sex. present, earlier [n, length]: known codes of this visit and of
        earlier ones, 0 where there is none. repetition [1]: bias on the known codes of this visit.
        """
        alone = self.by_group[group]
        lift, size = torch.zeros_like(alone), alone.shape[1]
        for known, codes, weights in (
            (present, self.present_codes, self.present_weights),
            (earlier, self.earlier_codes, self.earlier_weights),
        ):
            position, column = known.nonzero(as_tuple=True)
            code = known[position, column]
            place = position[:, None] * size + codes[code]
            lift.view(-1).index_add_(0, place.view(-1), weights[code].view(-1))
        log_probability = torch.maximum(alone + lift, FLOOR * alone).log()
        return log_probability.scatter_add_(1, present, repetition * (present > 0))


def mix(
    logits: torch.Tensor, linear: torch.Tensor, belongs: torch.Tensor, first_code: int, share: float
) -> torch.Tensor:
    """Logits [n, vocabulary] whose distribution over codes is the geometric mean of both.

    The probability of all codes together, and those of the terminators, stay the network's. So does, but for
    a factor that all codes have, the probability of codes that do not belong (`belongs` [n, vocabulary]).
    """
    network = logits[:, first_code:]
    log_network, log_linear = network.log_softmax(1), linear[:, first_code:].log_softmax(1)
    mixed = log_network + share * belongs[:, first_code:] * (log_linear - log_network)
    return torch.cat([logits[:, :first_code], network.logsumexp(1, keepdim=True) + mixed.log_softmax(1)], 1)


@torch.no_grad()
def fit_linear_autoencoder(model, data: Examples, group: np.ndarray, shares: np.ndarray) -> None:
    """Set the buffers of `model.linear` from training visits `data`, whose groups [n_visits] are given.

    shares [groups, vocabulary]: smoothed shares of the tokens, for codes too rare to have a weight.
    """
    visits = Coded(
        data.ids, data.offsets, patient_of_visit(data.visit), np.zeros(len(data)), data.age, data.sex
    )
    linear = Linear.learn(visits, shares.shape[1], PENALTY)
    n_groups = len(shares)
    lengths, n = np.bincount(group, np.diff(data.offsets), n_groups), np.bincount(group, minlength=n_groups)
    codes_a_visit = (lengths + len(data.ids) / len(data)) / (n + 1)
    prevalence = shares * codes_a_visit[:, None]
    alone = prevalence.copy()
    alone[:, linear.present] = np.maximum(linear.of_groups, MIN_SHARE * prevalence[:, linear.present])
    module = model.linear
    overall = np.bincount(data.ids, minlength=shares.shape[1]) / len(data)
    module.by_group.copy_(torch.from_numpy(alone))
    module.belongs.copy_(torch.from_numpy(prevalence >= FOREIGN * overall))
    for inputs, weights, codes_of, weights_of in (
        (linear.present, linear.of_present, module.present_codes, module.present_weights),
        (linear.earlier, linear.of_earlier, module.earlier_codes, module.earlier_weights),
    ):
        n_kept = min(codes_of.shape[1], weights.shape[1])
        if not n_kept or not len(inputs):
            continue
        # How far a weight moves the code's probability, in relation to its prevalence to some degree.
        size = np.abs(weights) / np.maximum(prevalence.mean(0)[linear.present], 1e-9) ** 0.25
        largest = np.argpartition(-size, n_kept - 1, axis=1)[:, :n_kept]
        codes_of[inputs, :n_kept] = torch.from_numpy(linear.present[largest].astype(np.int32))
        weights_of[inputs, :n_kept] = torch.from_numpy(np.take_along_axis(weights, largest, 1))
