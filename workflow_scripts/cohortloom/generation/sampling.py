"""The decoding loop that generate() is given: it samples as transformers' own does, and wastes less.

Beside the library's loop three things differ, and none of them changes what is written or how probable it is:
a token is drawn by clocks (below), which take one random number for each token of the vocabulary once a visit
and not at each position; visits that have ended leave the batch, some at a time; what is fixed while a visit
is written is not prepared anew at every step. The scores, and what the processors make of them, are those of
generate().

A visit gets the same random numbers whatever the others in its batch do, so that a patient whose sex is
flipped at a fixed seed changes nobody else.
"""

import numpy as np
import torch

LEAVE = 1 / 8  # of the batch has ended before it is packed: a copy costs about so much of a step
GRAIN = 32  # rows that a packed batch is a multiple of: the library beneath compiles for each number anew
TINY = torch.finfo(torch.float32).tiny  # of an alarm: 0 / 0 would be no number


class Clocks:
    """Draws tokens by a clock for each visit and token, which runs as fast as the token is probable.

    The clock that first reaches its alarm is the next token; the others go on from where they stand, at the
    rates of the next position. As alarms are exponential and so without memory, each token has just its
    probability, whatever came before: the next reaction method of Gibson and Bruck (2000). What it is used
    for: two patients with the same alarms get the same codes but where their probabilities differ (Rathinam,
    Sheppard and Khammash 2010), though one has a code more or another one first. With a random number for
    each position one other code changed all that follow.
    """

    def __init__(self, visits: int, tokens: int, device: torch.device | str = "cpu"):
        """Sets the alarms [visits, tokens] by torch's generator of `device`."""
        self.left = _alarms(visits, tokens, torch.device(device))
        self.row = torch.arange(visits, device=device)  # of the visits that go on
        self._visits = visits

    def draw(self, scores: torch.Tensor) -> torch.Tensor:
        """One token for each visit that goes on, by its scores [visits, tokens] (log odds): [visits].

        A token with the score minus infinity is never drawn. Raises ValueError where a visit has no token or
        a score is not a number.
        """
        rate = scores.softmax(-1)
        wait, token = (self.left.clamp_(min=TINY) / rate).min(-1)
        if not torch.isfinite(wait).all():
            raise ValueError(
                "draw: a visit's scores hold no token that may be written, or one is not a number"
            )
        self.left.addcmul_(rate, wait[:, None], value=-1)
        # Where repeats are allowed the token drawn may come again.
        fresh = _alarms(self._visits, 1, scores.device)
        self.left.scatter_(1, token[:, None], fresh[self.row])
        return token

    def keep_rows(self, kept: torch.Tensor) -> None:
        """Go on with the visits `kept` of those that went on."""
        self.left, self.row = self.left[kept], self.row[kept]


def _alarms(visits: int, tokens: int, device: torch.device) -> torch.Tensor:
    """Exponential random numbers [visits, tokens] by torch's generator.

    Drawn in double precision: of a rare code the alarm matters where it is near 0.
    """
    if device.type != "cpu":
        return torch.empty(visits, tokens, dtype=torch.float64, device=device).exponential_().float()
    # numpy's takes a fifth of the time of torch's.
    chance = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
    return torch.from_numpy(chance.standard_exponential((visits, tokens))).float()


def sample_tokens(model, input_ids, logits_processor, stopping_criteria, generation_config, **given):
    """Ids [batch, length] as generate() returns them; to be handed to it as `custom_generate`.

    A processor with rows of its own has `keep_rows`, which is told of the rows that go on. Ends are the
    end-of-sequence tokens and the greatest length; other stopping criteria are refused with ValueError.
    """
    if given.get("past_key_values") is None or any(
        not hasattr(criterion, "eos_token_id") and not hasattr(criterion, "max_length")
        for criterion in stopping_criteria
    ):
        raise ValueError("sample_tokens: a cache, and no stopping criteria but length and end of sequence")
    pad, longest = generation_config.pad_token_id, generation_config.max_length
    ends = torch.tensor(generation_config.eos_token_id, device=input_ids.device)
    written = input_ids.new_full((len(input_ids), longest), pad)
    length = input_ids.shape[1]
    written[:, :length] = input_ids
    row = torch.arange(len(input_ids), device=input_ids.device)  # of `written`, for each visit in the batch
    open_ = torch.ones_like(row, dtype=torch.bool)
    record, cache = given["encoder_outputs"], given["past_key_values"]
    clocks = None
    while length < longest:
        so_far = written[row, :length]
        logits = model(
            encoder_outputs=record,
            decoder_input_ids=so_far[:, -1:] if cache.get_seq_length() else so_far,
            prefix_ids=so_far,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        scores = logits_processor(so_far, logits)
        if generation_config.do_sample:
            clocks = clocks or Clocks(*scores.shape, scores.device)
            token = clocks.draw(scores)
        else:
            token = scores.argmax(-1)
        written[row, length] = torch.where(open_, token, pad)
        open_ &= ~torch.isin(token, ends)
        length += 1
        going_on = int(open_.sum())
        if not going_on:
            break
        rows = -(-going_on // GRAIN) * GRAIN
        if rows <= (1 - LEAVE) * len(row):
            kept = (~open_).argsort(stable=True)[:rows].sort().values
            row, open_, record = row[kept], open_[kept], record.select(kept)
            cache.batch_select_indices(kept)
            for keeper in (clocks, *logits_processor):
                if hasattr(keeper, "keep_rows"):
                    keeper.keep_rows(kept)
    return written[:, :length]
