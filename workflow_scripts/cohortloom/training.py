"""The training loop: denoising epochs within a token budget, checkpoints that resume exactly.

Every `1 / evaluations` of the budget the model is scored on validation patients, teacher-forced and by
generated visits; the weights that generate best are kept. A checkpoint carries a digest of all that
shapes the result and is never resumed under another digest.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from cohortloom.devices import pick_device
from cohortloom.errors import UserError
from cohortloom.examples import Examples, batches, collate, corrupted_pairs, plain_pairs
from cohortloom.files import atomic
from cohortloom.generation import synthesize
from cohortloom.model import PromptBartConfig, PromptBartWithDemographicPrediction
from cohortloom.selection import selection_score
from cohortloom.step import log
from cohortloom.vocabulary import PAD, START, Vocabulary

# d_model, encoder layers, decoder layers, heads, feed-forward
PRESETS = {
    "tiny": (64, 1, 1, 2, 128),
    "mini": (192, 2, 2, 4, 768),
    "small": (256, 2, 3, 4, 1024),
    "base": (768, 6, 6, 12, 3072),
}


@dataclass
class Plan:
    """What shapes the weights; its digest guards the checkpoints. Budgets in target tokens."""

    seed: int
    tokens: int
    batch_tokens: int
    learning_rate: float
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    reveal_probability: float
    mask_probability: float
    delete_probability: float
    replace_probability: float
    evaluations: int
    selection_patients: int


@dataclass
class State:
    """Where training stands, beside weights and optimizer."""

    tokens: int = 0
    step: int = 0
    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    evaluated: int = 0
    logged: int = 0  # tokens at the last log line
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)  # of the losses since then, by token
    best_score: float = float("inf")
    history: list[dict[str, Any]] = field(default_factory=list)


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
        first_code_id=words.first_code,
        age_mean=float(data.age.mean()),
        age_std=float(max(data.age.std(), 1e-3)),
        **losses,
    )
    model = PromptBartWithDemographicPrediction(config)
    counts = np.bincount(np.concatenate([data.ids, data.terminator]), minlength=len(words))
    bias = np.log(np.maximum(counts, 0.5) / counts.sum())
    model.final_logits_bias.copy_(torch.from_numpy(bias).float()[None])
    generation = model.generation_config
    generation.do_sample, generation.temperature = True, 1.0
    generation.top_k, generation.top_p = 0, 1.0
    generation.no_repeat_ngram_size = 1
    generation.max_length, generation.max_new_tokens = None, longest + 8
    generation.eos_token_id, generation.pad_token_id = words.terminators, PAD
    generation.decoder_start_token_id = generation.bos_token_id = START
    generation.forced_eos_token_id = None
    return model


class Trainer:
    """Fits a model to training visits; `fit` returns it with the weights that generate best."""

    def __init__(
        self,
        model: PromptBartWithDemographicPrediction,
        words: Vocabulary,
        train: Examples,
        val: Examples,
        plan: Plan,
        checkpoints: Path | None,
        digest: str,
        device: str = "auto",
        log_every_tokens: int = 100_000,
        checkpoint_every_tokens: int = 1_000_000,
    ):
        name, precision = pick_device(device)
        self.accelerator = Accelerator(cpu=name == "cpu", mixed_precision=precision)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=plan.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.plain_model = model
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.words, self.train, self.val, self.plan = words, train, val, plan
        self.checkpoints, self.digest = checkpoints, digest
        self.log_every, self.checkpoint_every = log_every_tokens, checkpoint_every_tokens
        self.state, self.best = State(), None
        self.max_tokens = model.config.max_position_embeddings - 2
        log.info("device %s, mixed precision %s", self.accelerator.device, precision)

    def fit(self) -> PromptBartWithDemographicPrediction:
        """Train until the budget is spent; resumes from the newest checkpoint of the same digest."""
        plan, state = self.plan, self.state
        self._resume()
        state = self.state
        keep = np.diff(self.train.offsets) > 0
        since_save = state.tokens
        started, started_at = time.monotonic(), state.tokens
        with tqdm(total=plan.tokens, initial=state.tokens, unit="tok", unit_scale=True, mininterval=5) as bar:
            while state.tokens < plan.tokens:
                pairs, order = self._epoch(keep)
                while state.batch < len(order) and state.tokens < plan.tokens:
                    losses, n = self._step(collate(self.train, pairs, order[state.batch]))
                    state.batch, state.step, state.tokens = state.batch + 1, state.step + 1, state.tokens + n
                    state.sums = [a + b * n for a, b in zip(state.sums, losses.tolist(), strict=True)]
                    bar.update(n)
                    if state.tokens - state.logged >= self.log_every or state.tokens >= plan.tokens:
                        row = self._record("train", np.array(state.sums) / (state.tokens - state.logged))
                        state.logged, state.sums = state.tokens, [0.0] * 4
                        bar.set_postfix_str(
                            f"lm {row['lm_loss']:.3f} age {row['age_loss_years2']:.1f} "
                            f"sex {row['sex_loss']:.3f}"
                        )
                    if state.tokens >= plan.tokens * (state.evaluated + 1) / plan.evaluations:
                        self._evaluate()
                    if state.tokens - since_save >= self.checkpoint_every and state.tokens < plan.tokens:
                        since_save = state.tokens
                        self._save()
                if state.batch >= len(order):
                    state.epoch, state.batch = state.epoch + 1, 0
        seconds = time.monotonic() - started
        log.info(
            "%d tokens in %.0f s: %.0f a second",
            state.tokens,
            seconds,
            (state.tokens - started_at) / max(seconds, 1e-9),
        )
        self.plain_model.load_state_dict(self.best)
        return self.plain_model.eval()

    def _epoch(self, keep: np.ndarray):
        rng = np.random.default_rng([self.plan.seed, 2, self.state.epoch])
        pairs = corrupted_pairs(
            self.train,
            self.words,
            rng,
            self.max_tokens,
            self.plan.reveal_probability,
            self.plan.mask_probability,
            self.plan.delete_probability,
            self.plan.replace_probability,
        )
        if pairs.dropped_visits and self.state.epoch == 0:
            log.info(
                "history longer than %d tokens: %d earlier visits left out",
                self.max_tokens,
                pairs.dropped_visits,
            )
        return pairs, batches(pairs, self.plan.batch_tokens, rng, keep)

    def _step(self, batch: dict[str, np.ndarray]) -> tuple[torch.Tensor, int]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.model.train()
        n = int((batch["labels"] != -100).sum())
        output = self.model(**self._tensors(batch))
        losses = torch.stack([output.lm_loss, output.age_loss, output.sex_loss, output.loss]).detach()
        if not torch.isfinite(losses).all():
            raise UserError(
                f"train: the loss is not finite at token {self.state.tokens}; "
                "the last checkpoint is kept; lower train.learning_rate"
            )
        self.accelerator.backward(output.loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.plan.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses, n

    def _learning_rate(self) -> float:
        """Linear warm-up, then cosine decay to zero at the end of the budget."""
        done = self.state.tokens / self.plan.tokens
        if done < self.plan.warmup_fraction:
            return self.plan.learning_rate * (done + 1e-3) / (self.plan.warmup_fraction + 1e-3)
        left = (done - self.plan.warmup_fraction) / (1 - self.plan.warmup_fraction)
        return self.plan.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, left)))

    def _tensors(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {key: torch.from_numpy(value).to(self.accelerator.device) for key, value in batch.items()}

    def _record(self, split: str, means: np.ndarray) -> dict[str, Any]:
        lm, age, sex, loss = (float(value) for value in means)
        row = {
            "tokens": self.state.tokens,
            "step": self.state.step,
            "epoch": self.state.epoch,
            "split": split,
            "lm_loss": lm,
            "age_loss": age,
            "age_loss_years2": age * self.plain_model.config.age_std**2,
            "sex_loss": sex,
            "loss": loss,
            "learning_rate": self._learning_rate(),
        }
        self.state.history.append(row)
        return row

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Teacher-forced validation losses with nothing revealed, then generated validation visits."""
        state = self.state
        state.evaluated += 1
        row = self._record("val", teacher_forced(self.model, self.val, self.max_tokens, self._tensors))
        first = np.flatnonzero(self.val.visit == 0)
        rng = np.random.default_rng([self.plan.seed, 3])
        chosen = np.sort(rng.permutation(first)[: self.plan.selection_patients])
        self.plain_model.eval()
        records = list(
            synthesize(
                self.plain_model, self.words, self.val.age[chosen], self.val.sex[chosen], self.plan.seed, 256
            )
        )
        score = selection_score(
            np.concatenate([record.ids for record in records]),
            np.concatenate([np.diff(record.offsets) for record in records]),
            self.val.ids,
            np.diff(self.val.offsets),
            len(self.words),
        )
        row["selection_score"] = score
        log.info(
            "token %d: validation lm %.4f, age %.2f years², sex %.5f, selection score %.4f",
            state.tokens,
            row["lm_loss"],
            row["age_loss_years2"],
            row["sex_loss"],
            score,
        )
        if score < state.best_score:
            state.best_score = score
            self.best = {
                key: value.detach().cpu().clone() for key, value in self.plain_model.state_dict().items()
            }

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        content = {
            "digest": self.digest,
            "state": vars(self.state),
            "model": self.plain_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "random": torch.get_rng_state(),
        }
        with atomic(self.checkpoints / f"checkpoint-{self.state.tokens:012d}.pt") as temporary:
            torch.save(content, temporary)
        for old in sorted(self.checkpoints.glob("checkpoint-*.pt"))[:-2]:
            old.unlink()

    def _resume(self) -> None:
        if self.checkpoints is None:
            return
        for path in sorted(self.checkpoints.glob("checkpoint-*.pt"), reverse=True):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises many kinds for a damaged file
                log.warning("%s: damaged (%s); trying the one before", path, type(error).__name__)
                continue
            if content["digest"] != self.digest:
                log.info("%s: of other parameters, data or code; not used", path)
                continue
            self.plain_model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.best, self.state = content["best"], State(**content["state"])
            torch.set_rng_state(content["random"])
            log.info("resumed from %s at token %d", path, self.state.tokens)
            return


def teacher_forced(model, data: Examples, max_tokens: int, tensors, batch_tokens: int = 8192) -> np.ndarray:
    """Mean lm (a token), age, sex and total loss (a visit) with nothing revealed, dropout off."""
    model.eval()
    pairs = plain_pairs(data, np.zeros(len(data.ids), bool), max_tokens)
    sums, tokens, visits = np.zeros(4), 0, 0
    for rows in batches(pairs, batch_tokens, None, np.diff(data.offsets) > 0):
        batch = collate(data, pairs, rows)
        output = model(**tensors(batch))
        n = int((batch["labels"] != -100).sum())
        sums += np.array(
            [
                float(output.lm_loss) * n,
                *(float(x) * len(rows) for x in (output.age_loss, output.sex_loss, output.loss)),
            ]
        )
        tokens, visits = tokens + n, visits + len(rows)
    return sums / np.array([max(tokens, 1), *[max(visits, 1)] * 3])
