"""The training loop: denoising epochs within a budget of tokens, resumed exactly where it stopped.

`evaluations` times in the budget the model is scored on validation patients, teacher-forced and by generated
visits; the weights with the lowest sum of the two scores are the result. A checkpoint is saved every few
minutes, when a signal asks the process to stop, and at the end.
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
from cohortloom.base.seeds import generator, seed_of
from cohortloom.base.step import log
from cohortloom.data.examples import Examples, Pairs, collate, corrupted_pairs, steps
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.generation.synthesize import synthesize
from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
from cohortloom.model.scoring import as_tensors, mean_losses
from cohortloom.runtime.devices import TRAINING_ATTENTION, pick_device
from cohortloom.runtime.interrupt import Stop
from cohortloom.runtime.processes import any_process
from cohortloom.training.calibration import calibrate
from cohortloom.training.checkpoints import Checkpoints
from cohortloom.training.optimizers import make_optimizers
from cohortloom.training.selection import selection_score

WARMUP = 0.05  # share of the budget: the first steps of Muon and Adagrad are as large as later ones
MAX_NORM = 1.0  # of the gradient of a step
SELECTION_PATIENTS = 1000  # generated at each evaluation: enough to distinguish a poor model from a fair one
LOG_TOKENS = 50_000  # target tokens between two lines of the log


@dataclass
class Plan:
    """Settings of the training that shape the weights, beside the model's own config.

    tokens: budget in target tokens. batch_tokens: target tokens of a step.
    """

    seed: int
    tokens: int
    batch_tokens: int
    learning_rate: float
    evaluations: int
    precision: str = "auto"


@dataclass
class State:
    """Progress of the training, saved in checkpoints beside weights and optimizers."""

    tokens: int = 0
    step: int = 0
    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    evaluated: int = 0
    logged: int = 0  # tokens at the last log line
    sums: dict[str, float] = field(default_factory=dict)  # of each loss over the tokens since then
    best_score: float = float("inf")
    best_tokens: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Fits a model to training visits; `fit` returns it with the best weights."""

    def __init__(
        self,
        model: PromptBartWithDemographicPrediction,
        vocabulary: Vocabulary,
        train: Examples,
        val: Examples,
        plan: Plan,
        checkpoints: Checkpoints,
        device: str = "auto",
        checkpoint_every_minutes: float = 10.0,
        stop: Stop | None = None,
        forbidden: np.ndarray | None = None,
    ):
        """forbidden: bool [2, 91, vocabulary], codes that the loss penalizes (data/forbidden.py)."""
        device, precision = pick_device(device, precision=plan.precision)
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
        model.set_attn_implementation(TRAINING_ATTENTION[device])
        self.plain_model = model  # without accelerate's wrapping for several processes
        self.model, *self.optimizers = self.accelerator.prepare(
            model, *make_optimizers(model, plan.learning_rate)
        )
        self.vocabulary, self.train, self.val, self.plan = vocabulary, train, val, plan
        self.checkpoints, self.stop = checkpoints, stop or Stop()
        self.save_seconds = 60 * checkpoint_every_minutes
        self.state, self.best = State(), None
        self.forbidden = None
        if forbidden is not None:
            self.forbidden = torch.from_numpy(forbidden).to(self.accelerator.device)
        self._process, self._processes = self.accelerator.process_index, self.accelerator.num_processes
        log.info("device %s, mixed precision %s", self.accelerator.device, precision)

    def fit(self) -> PromptBartWithDemographicPrediction:
        """Train until the budget is spent, from the newest checkpoint of the same digest if there is one.

        Returns the best model, calibrated (calibration.py). The last row of the history, split `saved`, has
        its validation losses.
        """
        torch.manual_seed(seed_of("dropout", self.plan.seed, self._process))
        self._resume()
        plan, state = self.plan, self.state
        rows = np.flatnonzero(np.diff(self.train.offsets) > 0)
        started, started_at = time.monotonic(), state.tokens
        self.saved_at = started
        if self._evaluation_is_due():  # a signal stopped the last one
            self._evaluate()
        style = {"unit": "tok", "unit_scale": True, "mininterval": 5, "disable": self._processes > 1}
        with tqdm(total=plan.tokens, initial=state.tokens, **style) as bar:
            while state.tokens < plan.tokens:
                pairs, batches = self._epoch(rows)
                next_batch = None
                while state.batch < len(batches) and state.tokens < plan.tokens:
                    batch, share, n = next_batch or self._batch(pairs, batches[state.batch])
                    losses = self._step(batch, share)
                    state.batch, state.step = state.batch + 1, state.step + 1
                    # Prepare the next batch while a GPU computes this step: reading the losses waits for it.
                    is_last = state.batch >= len(batches)
                    next_batch = None if is_last else self._batch(pairs, batches[state.batch])
                    losses = self._finite(losses)
                    state.tokens += n
                    state.sums = {
                        name: state.sums.get(name, 0.0) + n * value for name, value in losses.items()
                    }
                    bar.update(n)
                    if state.tokens - state.logged >= LOG_TOKENS or state.tokens >= plan.tokens:
                        tokens = state.tokens - state.logged
                        row = self._record(
                            "train", {name: total / tokens for name, total in state.sums.items()}
                        )
                        state.logged, state.sums = state.tokens, {}
                        text = "lm {lm_loss:.3f} age {age_loss_years2:.1f} sex {sex_loss:.3f}".format(**row)
                        bar.set_postfix_str(text)
                        if bar.disable:  # torchrun passes on lines, no progress bar
                            rate = (state.tokens - started_at) / (time.monotonic() - started)
                            log.info(
                                "token %d of %d, %.0f a second: %s", state.tokens, plan.tokens, rate, text
                            )
                    if self._evaluation_is_due():
                        self._evaluate()
                    self._save_or_stop()
                if state.batch >= len(batches):
                    state.epoch, state.batch = state.epoch + 1, 0
        seconds = time.monotonic() - started
        rate = (state.tokens - started_at) / max(seconds, 1e-9)
        log.info("%d tokens in %.0f s: %.0f a second", state.tokens, seconds, rate)
        self._save()  # a job that dies while it writes the model need not train again
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        model.load_state_dict(self.best)
        calibrate(model, self.vocabulary, self.train, self.val, plan.seed, self.accelerator)
        row = self._record("saved", mean_losses(model, self.val, self.forbidden))
        row["tokens"] = state.best_tokens
        return model.eval()

    def _epoch(self, rows: np.ndarray) -> tuple[Pairs, list[np.ndarray]]:
        """This epoch's denoising examples, and the visits of each step."""
        rng = generator("training", self.plan.seed, self.state.epoch)
        positions = self.plain_model.config.max_position_embeddings
        pairs = corrupted_pairs(self.train, self.vocabulary, rng, positions)
        if pairs.dropped_visits and self.state.epoch == 0:
            log.info(
                "history longer than %d tokens: %d earlier visits left out", positions, pairs.dropped_visits
            )
        return pairs, steps(pairs, self.plan.batch_tokens, rng.permutation(rows))

    def _batch(self, pairs: Pairs, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], float, int]:
        """Batch of this process, its share of the step's target tokens, and their number.

        rows: the visits of the step.

        Every process must take part in every step: one without visits takes the first with weight 0.
        """
        own_rows = rows[self._process :: self._processes]
        own, total = int(pairs.targets(own_rows).sum()), int(pairs.targets(rows).sum())
        batch = collate(self.train, pairs, own_rows if len(own_rows) else rows[:1])
        return as_tensors(batch, self.accelerator.device, self.forbidden), own / total, total

    def _step(self, batch: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
        """One step: terms of the loss, the loss and the norm of the gradient.

        share: of the step's target tokens that `batch` holds.
        """
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak"] * self._rate()
        if not self.plain_model.training:  # the evaluation set the plain model alone to eval mode
            self.model.train()
        output = self.model(**batch)
        self.accelerator.backward(output.loss * (share * self._processes))  # DDP averages over processes
        values = {**output.terms, "loss": output.loss}
        losses = torch.stack([value.detach().float() for value in values.values()]) * share
        if self._processes > 1:
            losses = self.accelerator.reduce(losses, "sum")
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return {**dict(zip(values, losses, strict=True)), "norm": norm}

    def _finite(self, losses: dict[str, torch.Tensor]) -> dict[str, float]:
        """The losses of a step as numbers. Raises UserError if one of them or the gradient is not finite."""
        values = {name: float(value) for name, value in losses.items()}
        if not np.isfinite(list(values.values())).all():
            raise UserError(
                f"train: the loss or its gradient is not finite at token {self.state.tokens}; "
                "the last checkpoint is kept; lower train.learning_rate"
            )
        del values["norm"]
        return values

    def _rate(self) -> float:
        """Share of the peak learning rates: linear warm-up, then cosine decay to zero at the end."""
        spent = self.state.tokens / self.plan.tokens
        if spent < WARMUP:
            return (spent + 1e-3) / (WARMUP + 1e-3)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (spent - WARMUP) / (1 - WARMUP))))

    def _record(self, split: str, means: dict[str, float]) -> dict[str, Any]:
        """Add a row to the history from the means of the loss and its terms."""
        terms = {f"{name}_loss": value for name, value in means.items() if name != "loss"}
        row = {
            "tokens": self.state.tokens,
            "step": self.state.step,
            "epoch": self.state.epoch,
            "split": split,
            **terms,
            "age_loss_years2": means["age"] * self.plain_model.config.age_std**2,
            "loss": means["loss"],
            "learning_rate": self.plan.learning_rate * self._rate(),
        }
        self.state.history.append(row)
        return row

    def _evaluation_is_due(self) -> bool:
        state = self.state
        last = state.history[-1] if state.history else {"split": "", "tokens": -1}
        is_evaluated = (last["split"], last["tokens"]) == ("val", state.tokens)
        due_tokens = self.plan.tokens * (state.evaluated + 1) / self.plan.evaluations
        return not is_evaluated and state.tokens >= due_tokens

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Score the model on validation patients and note the best weights.

        Teacher-forced losses with no code revealed, then generated visits. Every process computes all of it,
        on the model without its wrapping. A signal stops it between two batches with the state unchanged; the
        next job repeats it as a whole.
        """
        state = self.state
        means = mean_losses(self.plain_model, self.val, self.forbidden)
        first = np.flatnonzero(self.val.visit == 0)
        rng = generator("selection: patients", self.plan.seed)
        chosen = np.sort(rng.permutation(first)[:SELECTION_PATIENTS])
        people = (self.val.age[chosen], self.val.sex[chosen], ("selection", self.plan.seed))
        generated = []
        for batch in synthesize(self.plain_model, self.vocabulary, *people):
            generated.append(batch)
            self._save_or_stop(only_stop=True)
        state.evaluated += 1
        row = self._record("val", means)
        score = selection_score(
            np.concatenate([batch.ids for batch in generated]),
            np.concatenate([np.diff(batch.offsets) for batch in generated]),
            self.val.ids,
            np.diff(self.val.offsets),
            len(self.vocabulary),
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
        # The loss steadies the choice: the score of a thousand generated visits varies by some hundredths,
        # and alone it once chose a checkpoint at half the budget.
        if row["lm_loss"] + score < state.best_score:
            state.best_score, state.best_tokens = row["lm_loss"] + score, state.tokens
            self.best = {
                key: value.detach().cpu().clone() for key, value in self.plain_model.state_dict().items()
            }

    def _save_or_stop(self, only_stop: bool = False) -> None:
        """Save a checkpoint if it is time; after a signal, save one and raise Interrupted."""
        due = not only_stop and time.monotonic() - self.saved_at >= self.save_seconds
        stop, due = any_process(self.accelerator, self.stop.requested, due)
        if stop or due:
            self._save()
        if stop:
            folder = self.checkpoints.folder
            outcome = f"saved in {folder}; run it again to go on" if folder else "nothing saved"
            cause = self.stop.signal.name if self.stop.signal else "a signal to another process"
            raise Interrupted(f"by {cause} at token {self.state.tokens}, {outcome}")

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
        self.saved_at = time.monotonic()

    def _resume(self) -> None:
        self.accelerator.wait_for_everyone()  # until the first process has claimed the folder
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
    """State of torch's random generators: of the CPU and of this process's GPU."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Restore the state that `random_state` returned; that of a GPU only where there is one."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
