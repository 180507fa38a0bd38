"""The training loop: denoising epochs within a token budget, which resumes exactly where it was stopped.

Every `1 / evaluations` of the budget the model is scored on validation patients, teacher-forced and by
generated visits; the weights with the lowest sum of the two are kept. A checkpoint is saved every so many
tokens or minutes, when the process is asked to stop, and at the end.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from cohortloom.base.errors import Interrupted, UserError
from cohortloom.base.step import log
from cohortloom.data.examples import Examples, Pairs, batches, collate, corrupted_pairs, plain_pairs
from cohortloom.data.forbidden import age_row
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.generation.synthesize import synthesize
from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
from cohortloom.runtime.devices import READ_TOKENS, pick_device
from cohortloom.runtime.interrupt import Stop
from cohortloom.runtime.processes import any_process, own_parts
from cohortloom.training.calibration import (
    ROUNDS,
    Written,
    calibrate_age,
    calibrate_ending,
    calibrate_frequencies,
    calibrate_later_ending,
    calibrate_recurrence,
    read,
    write,
)
from cohortloom.training.checkpoints import Checkpoints
from cohortloom.training.optimizers import count_on_cpu, make_optimizers
from cohortloom.training.selection import selection_score

TOLD = "lm {lm_loss:.3f} age {age_loss_years2:.1f} sex {sex_loss:.3f}"


@dataclass
class Plan:
    """What shapes the weights; its digest guards the checkpoints. Budgets in target tokens."""

    seed: int
    tokens: int
    batch_tokens: int
    parts_per_step: int  # of visits of one length each: one alone would teach that all visits end there
    learning_rate: float
    table_learning_rate: float
    matrix_learning_rate: float
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    reveal_probability: float
    mask_probability: float
    delete_probability: float
    replace_probability: float
    evaluations: int
    selection_patients: int
    precision: str = "auto"


@dataclass
class State:
    """Where training stands, beside weights and optimizer."""

    tokens: int = 0
    step: int = 0
    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    evaluated: int = 0
    logged: int = 0  # tokens at the last log line
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # of the losses since then, by token
    best_score: float = float("inf")
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Fits a model to training visits; `fit` returns it with the best weights."""

    def __init__(
        self,
        model: PromptBartWithDemographicPrediction,
        words: Vocabulary,
        train: Examples,
        val: Examples,
        plan: Plan,
        checkpoints: Checkpoints,
        device: str = "auto",
        log_every_tokens: int = 100_000,
        checkpoint_every_tokens: int | None = None,
        checkpoint_every_minutes: float = 10.0,
        stop: Stop | None = None,
        forbidden: np.ndarray | None = None,
    ):
        """forbidden: bool [2, 91, vocabulary], codes that enter the loss (forbidden.forbidden_table)."""
        name, precision = pick_device(device, precision=plan.precision)
        self.accelerator = Accelerator(cpu=name == "cpu", mixed_precision=precision)
        self.plain_model = model
        rates = (plan.learning_rate, plan.table_learning_rate, plan.matrix_learning_rate)
        optimizers = make_optimizers(model, *rates, plan.weight_decay)
        self.model, *self.optimizers = self.accelerator.prepare(model, *optimizers)
        count_on_cpu(self.optimizers)
        self.words, self.train, self.val, self.plan = words, train, val, plan
        self.checkpoints, self.stop = checkpoints, stop or Stop()
        self.log_every, self.save_tokens = log_every_tokens, checkpoint_every_tokens or math.inf
        self.save_seconds = 60 * checkpoint_every_minutes
        self.state, self.best = State(), None
        self.max_tokens = model.config.max_position_embeddings - 2
        self.forbidden = None if forbidden is None else self._tensor(forbidden)
        self._process, self._processes = self.accelerator.process_index, self.accelerator.num_processes
        log.info("device %s, mixed precision %s", self.accelerator.device, precision)

    def fit(self) -> PromptBartWithDemographicPrediction:
        """Train until the budget is spent; resumes from the newest checkpoint of the same digest.

        What it returns is calibrated (calibration.py).
        """
        self._resume()
        plan, state = self.plan, self.state
        keep = np.diff(self.train.offsets) > 0
        started, started_at = time.monotonic(), state.tokens
        self.saved, self.saved_at = state.tokens, started
        if self._evaluation_is_due():  # a signal had stopped it
            self._evaluate()
        shown = {"unit": "tok", "unit_scale": True, "mininterval": 5, "disable": self._processes > 1}
        with tqdm(total=plan.tokens, initial=state.tokens, **shown) as bar:
            while state.tokens < plan.tokens:
                pairs, order = self._epoch(keep)
                ready = None
                while state.batch < len(order) and state.tokens < plan.tokens:
                    batch, share, n = ready or self._batch(pairs, order[state.batch])
                    losses = self._step(batch, share)
                    state.batch, state.step = state.batch + 1, state.step + 1
                    # While a GPU is at work on this step: to ask for the losses is to wait for it.
                    ready = self._batch(pairs, order[state.batch]) if state.batch < len(order) else None
                    losses = self._finite(losses)
                    state.tokens += n
                    state.sums = [a + b * n for a, b in zip(state.sums, losses, strict=True)]
                    bar.update(n)
                    if state.tokens - state.logged >= self.log_every or state.tokens >= plan.tokens:
                        row = self._record("train", np.array(state.sums) / (state.tokens - state.logged))
                        state.logged, state.sums = state.tokens, [0.0] * 5
                        losses = TOLD.format(**row)
                        bar.set_postfix_str(losses)
                        if bar.disable:  # lines are what gets through from several processes
                            rate = (state.tokens - started_at) / (time.monotonic() - started)
                            log.info(
                                "token %d of %d, %.0f a second: %s", state.tokens, plan.tokens, rate, losses
                            )
                    if self._evaluation_is_due():
                        self._evaluate()
                    self._save_or_stop()
                if state.batch >= len(order):
                    state.epoch, state.batch = state.epoch + 1, 0
        seconds = time.monotonic() - started
        log.info(
            "%d tokens in %.0f s: %.0f a second",
            state.tokens,
            seconds,
            (state.tokens - started_at) / max(seconds, 1e-9),
        )
        self._save()  # so that a job which dies while it writes the model has nothing to train again
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        model.load_state_dict(self.best)
        with self.accelerator.autocast():  # changes a bias by 0.0015 at most, in a third of the time
            readings = read(model, self.words, self.train, plan.seed, self.max_tokens, self._tensors)
        calibrate_ending(model, readings)
        if model.config.age_weight > 0:
            calibrate_age(model, readings)
        part = (self._process + 1, self._processes)
        for turn in range(ROUNDS):
            # Not in the precision of training: in that of whoever will generate.
            written = write(model, self.words, self.train, plan.seed, turn, part)
            if self._processes > 1:
                written = Written(*(self.accelerator.reduce(sums, "sum") for sums in vars(written).values()))
            calibrate_frequencies(model, self.words, self.train, written.codes)
            calibrate_later_ending(model, self.train, written.later)
            calibrate_recurrence(model, self.train, written.carried)
        return model.eval()

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
        n = self.plan.parts_per_step
        parts = batches(pairs, self.plan.batch_tokens // n, rng, keep)
        return pairs, [parts[i : i + n] for i in range(0, len(parts), n)]

    def _batch(self, pairs: Pairs, parts: list[np.ndarray]) -> tuple[list[dict], float, int]:
        """What this process takes of a step's `parts`, rows of `pairs`; its share of the step; all tokens.

        A part weighs as much as it holds target tokens, whichever process takes it.
        """
        held = [int(pairs.targets(rows).sum()) for rows in parts]
        mine = own_parts(parts, held, self._process, self._processes)
        made = [self._tensors(collate(self.train, pairs, rows)) for rows, _ in mine]
        return made, sum(tokens for _, tokens in mine) / sum(held), sum(held)

    def _step(self, parts: list[dict[str, torch.Tensor]], share: float) -> torch.Tensor:
        """One step on `parts`, a `share` of the step; the five losses and the norm of the gradient [6]."""
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak"] * self._rate()
        if not self.plain_model.training:  # its wrapping does not hear of the evaluation
            self.model.train()
        output = self.model(parts=parts)
        self.accelerator.backward(output.loss * (share * self._processes))  # DDP averages over processes
        losses = output.losses() * share
        if self._processes > 1:
            losses = self.accelerator.reduce(losses, "sum")
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.plan.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([losses, norm.float()[None]])

    def _finite(self, losses: torch.Tensor) -> list[float]:
        """The five losses of a step; UserError where one of them or the gradient's norm is not finite."""
        *losses, norm = losses.tolist()
        if not np.isfinite([*losses, norm]).all():
            raise UserError(
                f"train: the loss or its gradient is not finite at token {self.state.tokens}; "
                "the last checkpoint is kept; lower train.learning_rate"
            )
        return losses

    def _rate(self) -> float:
        """Share of the peak learning rates: linear warm-up, then cosine decay to zero at the end."""
        done, warmup = self.state.tokens / self.plan.tokens, self.plan.warmup_fraction
        if done < warmup:
            return (done + 1e-3) / (warmup + 1e-3)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))

    def _tensors(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        tensors = {key: self._tensor(value) for key, value in batch.items()}
        if self.forbidden is not None:
            years = self._tensor(age_row(batch["x_num"][:, 0]))
            tensors["forbidden"] = self.forbidden[tensors["x_cat"][:, 0], years]
        return tensors

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.accelerator.device, non_blocking=True)

    def _record(self, split: str, means: np.ndarray) -> dict[str, Any]:
        lm, age, sex, forbidden, loss = (float(value) for value in means)
        row = {
            "tokens": self.state.tokens,
            "step": self.state.step,
            "epoch": self.state.epoch,
            "split": split,
            "lm_loss": lm,
            "age_loss": age,
            "age_loss_years2": age * self.plain_model.config.age_std**2,
            "sex_loss": sex,
            **({} if self.forbidden is None else {"forbidden_loss": forbidden}),
            "loss": loss,
            "learning_rate": self.plan.learning_rate * self._rate(),
        }
        self.state.history.append(row)
        return row

    def _evaluation_is_due(self) -> bool:
        state = self.state
        done = bool(state.history) and (state.history[-1]["split"], state.history[-1]["tokens"]) == (
            "val",
            state.tokens,
        )
        return not done and state.tokens >= self.plan.tokens * (state.evaluated + 1) / self.plan.evaluations

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Teacher-forced validation losses with nothing revealed, then generated validation visits.

        Every process does all of it, on the model without its wrapping. A signal stops it between two
        batches, with the state as before, so that it is done again as a whole.
        """
        state = self.state
        means = teacher_forced(self.plain_model, self.val, self.max_tokens, self._tensors)
        first = np.flatnonzero(self.val.visit == 0)
        rng = np.random.default_rng([self.plan.seed, 3])
        chosen = np.sort(rng.permutation(first)[: self.plan.selection_patients])
        self.plain_model.eval()
        records = []
        for record in synthesize(
            self.plain_model, self.words, self.val.age[chosen], self.val.sex[chosen], self.plan.seed
        ):
            records.append(record)
            self._save_or_stop(only_stop=True)
        state.evaluated += 1
        row = self._record("val", means)
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
        # A thousand generated visits tell a poor model from a fair one and no more: at equal learning, their
        # score moves by some hundredths, and alone it once chose a checkpoint of half the budget.
        if row["lm_loss"] + score < state.best_score:
            state.best_score = row["lm_loss"] + score
            self.best = {
                key: value.detach().cpu().clone() for key, value in self.plain_model.state_dict().items()
            }

    def _save_or_stop(self, only_stop: bool = False) -> None:
        """Save where it is time; save and raise Interrupted where the process was asked to stop."""
        due = not only_stop and (
            self.state.tokens - self.saved >= self.save_tokens
            or time.monotonic() - self.saved_at >= self.save_seconds
        )
        stop, due = any_process(self.accelerator, self.stop.requested, due)
        if stop or due:
            self._save()
        if stop:
            folder = self.checkpoints.folder
            kept = f"saved in {folder}; run it again to go on" if folder else "nothing saved"
            cause = self.stop.signal.name if self.stop.signal else "a signal to another process"
            raise Interrupted(f"by {cause} at token {self.state.tokens}, {kept}")

    def _save(self) -> None:
        content = {
            "state": vars(self.state),
            "model": self.plain_model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "best": self.best,
            "random": gather_object([random_state()]),  # one of each process
        }
        if self.accelerator.is_main_process:
            self.checkpoints.save(self.state.tokens, content)
        self.saved, self.saved_at = self.state.tokens, time.monotonic()

    def _resume(self) -> None:
        self.accelerator.wait_for_everyone()  # until the first process holds the folder
        content = self.checkpoints.newest()
        if content is None:
            return
        self.plain_model.load_state_dict(content["model"])
        for optimizer, saved in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.best, self.state = content["best"], State(**content["state"])
        if len(content["random"]) == self._processes:
            set_random_state(content["random"][self._process])
        else:
            log.info("saved by %d processes: dropout is drawn anew", len(content["random"]))
        log.info("resumed at token %d", self.state.tokens)


def random_state() -> dict[str, torch.Tensor]:
    """State of torch's generators, of the processor and of this process's GPU."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Put back what `random_state` gave; a GPU's is left out where there is none."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def teacher_forced(model, data: Examples, max_tokens: int, tensors) -> np.ndarray:
    """Mean lm, age, sex, forbidden and whole loss, nothing revealed, dropout off; lm, forbidden by token."""
    model.eval()
    pairs = plain_pairs(data, np.zeros(len(data.ids), bool), max_tokens)
    sums, counts = np.zeros(4), np.zeros(4)
    for rows in batches(pairs, READ_TOKENS[model.device.type], None, np.diff(data.offsets) > 0):
        batch = collate(data, pairs, rows)
        output = model(**tensors(batch))
        n = int((batch["labels"] != -100).sum())
        held = np.array([n, len(rows), len(rows), n])
        losses = (output.lm_loss, output.age_loss, output.sex_loss, output.forbidden_loss)
        sums, counts = sums + held * [float(loss) for loss in losses], counts + held
    lm, age, sex, forbidden = sums / np.maximum(counts, 1)
    # Of the means, for the whole of a batch is neither by token nor by visit.
    whole = model.combine(lm + model.config.forbidden_weight * forbidden, age, sex)
    return np.array([lm, age, sex, forbidden, whole])
