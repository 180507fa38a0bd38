"""Fresh models: the sizes by name, and what a model starts from, counted on the training visits."""

import numpy as np
import torch

from cohortloom.base.errors import UserError
from cohortloom.data.bands import DAY, FINE
from cohortloom.data.examples import Examples
from cohortloom.data.vocabulary import NOW, PAD, START, Vocabulary
from cohortloom.model.marginals import ending, recurrence, smoothed_shares, token_counts
from cohortloom.model.prompt_bart import PromptBartConfig, PromptBartWithDemographicPrediction
from cohortloom.model.record_summary import MAX_COUNT

# d_model, encoder layers, decoder layers, heads, feed-forward
PRESETS = {
    "tiny": (64, 1, 1, 2, 128),
    "mini": (192, 2, 2, 4, 384),
    "small": (256, 2, 2, 4, 512),
    "base": (768, 6, 6, 12, 3072),
}


def make_model(
    words: Vocabulary, data: Examples, preset: str, seed: int, dropout: float, max_positions: int, **losses
) -> PromptBartWithDemographicPrediction:
    """A fresh model of the preset, its output bias set to the log frequency of each token in training."""
    d_model, encoder_layers, decoder_layers, heads, ffn = PRESETS[preset]
    longest = int(np.diff(data.offsets).max())
    if max_positions < 2 * (longest + 16):
        raise UserError(
            f"train.max_positions: {max_positions} is too small for visits of {longest} codes; "
            f"set {2 * (longest + 16)}"
        )
    torch.manual_seed(seed)
    config = PromptBartConfig(
        vocab_size=len(words),
        d_model=d_model,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn,
        max_position_embeddings=max_positions,
        dropout=dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        activation_function="relu",
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=words.terminators,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
        now_id=NOW,
        first_code_id=words.first_code,
        group_ages=[max(0.0, edge - DAY / 2) for edge in FINE],
        age_mean=float(data.age.mean()),
        age_std=float(max(data.age.std(), 1e-3)),
        **losses,
    )
    model = PromptBartWithDemographicPrediction(config)
    shares = smoothed_shares(token_counts(data, len(words)))
    with torch.no_grad():
        model.summary.group_bias.copy_(torch.from_numpy(np.log(shares)))
        model.summary.recurrence.copy_(torch.from_numpy(recurrence(data, shares, max_positions - 2)))
        for kind, rows in enumerate((data.visit == 0, data.visit > 0)):
            model.summary.ending[kind] = torch.from_numpy(ending(data, rows, shares, MAX_COUNT))
    generation = model.generation_config
    generation.do_sample, generation.temperature = True, 1.0
    generation.top_k, generation.top_p = 0, 1.0
    generation.no_repeat_ngram_size = 1
    generation.max_length, generation.max_new_tokens = None, longest + 8
    generation.eos_token_id, generation.pad_token_id = words.terminators, PAD
    generation.decoder_start_token_id = generation.bos_token_id = START
    generation.forced_eos_token_id = None
    return model
