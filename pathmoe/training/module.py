"""The Lightning module: what one training step and one validation step compute, and what they log."""

# Shapes: B batch, S sequence, T = B*S tokens, L MoE layers, E experts.

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from pathmoe.balancing import sum_over_ranks, update_selection_bias
from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoECausalLMOutput, PathMoEForCausalLM
from pathmoe.noise import fold_seed
from pathmoe.training.compatibility import check_architecture
from pathmoe.training.last_checkpoint import LastCheckpoint
from pathmoe.training.load_metrics import load_metrics
from pathmoe.training.optim import OptimizerConfig, build_optimizer
from pathmoe.training.settings import apply_group_settings, group_settings
from pathmoe.training.schedule import ScheduleConfig, build_scheduler

Batch = Mapping[str, Any]
_INITIALISATION, _NOISE = 0, 1
"""What a seed is folded with, so that each use has a stream of its own."""


class PathMoEModule(LightningModule):
    """A PathMoE language model in training.

    Args:
        config: shape, routing and sharing of the model.
        optimizer: optimizer and its hyperparameters.
        schedule: the learning rate over the run.
        attn_implementation: attention of transformers; flex and flash bound documents without a dense mask.
        experts_implementation: `pathmoe` for our kernels, or one of transformers' (`grouped_mm`, `eager`, ...).
        activation_checkpointing: recompute each layer in backward instead of keeping its activations.
        compile: compile each decoder layer with torch.compile.
        seed: seed of initial weights and router noise; taken from `seed_everything`.
    """

    def __init__(
        self,
        config: PathMoEConfig,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 - frozen
        attn_implementation: Literal[
            "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"
        ] = "sdpa",
        experts_implementation: str = "pathmoe",
        activation_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.attn_implementation = attn_implementation
        self.experts_implementation = experts_implementation
        self.activation_checkpointing = activation_checkpointing
        self.compile_layers = compile
        self.seed = seed
        self.model: PathMoEForCausalLM | None = None
        self._start_step()

    def configure_model(self) -> None:
        """Build the model; its weights depend on the seed alone, whatever was drawn before."""
        if self.model is not None:
            return
        self.config._attn_implementation = self.attn_implementation
        self.config._experts_implementation = self.experts_implementation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold_seed(self.seed, _INITIALISATION))
            self.model = PathMoEForCausalLM(self.config)
        if self.activation_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.compile_layers:
            for layer in self.model.model.layers:
                layer.compile()

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer, and the schedule stepped with it."""
        optimizer = build_optimizer(self.model, self.optimizer_config)
        scheduler = build_scheduler(optimizer, self.schedule_config, self.trainer.max_steps)
        self._settings = group_settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Let this call's optimizer settings win over those of the checkpoint that was restored."""
        apply_group_settings(self.optimizers().optimizer, self.lr_schedulers(), self._settings)

    # --- training ---

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one micro-batch, scaled so that Lightning's averages give the global batch's mean over targets."""
        if batch["micro_batch"] == 0:
            self._totals = StepTotals()
            self._num_items = self._targets_of_step(batch)
        output = self.model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            shift_labels=batch["shift_labels"],
            num_items_in_batch=self._num_items,
            noise_seed=fold_seed(self.seed, _NOISE, batch["step"], batch["micro_batch"], self.global_rank),
            earlier_load=self._totals.balance_load_LE,
            return_logits=False,
            use_cache=False,
        )
        self._totals.add(output, batch.get("block_ids", []))
        # The cross-entropy is divided by the targets of all micro-batches and ranks already, while Lightning divides by
        # the number of micro-batches and DDP by that of ranks; the routing losses are means and want just that.
        num_parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return output.loss + (num_parts - 1) * output.cross_entropy

    def _targets_of_step(self, batch: Batch) -> int:
        """Targets of the global batch; ranks that read streams of their own know only how many they have themselves."""
        if not batch.get("num_items_is_local", False):
            return batch["num_items"]
        return int(sum_over_ranks(torch.tensor(batch["num_items"], device=self.device)))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop before a loss or a gradient that is not finite reaches the weights; move the biases; log.

        All ranks see the same figures, so they stop together.
        """
        losses = self._totals.losses()
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self._grad_norm = torch.nn.utils.get_total_norm(gradients)
        # One transfer, hence one wait for the device, for the whole step.
        *values, grad_norm = torch.stack([*losses.values(), self._grad_norm.to(torch.float32)]).tolist()
        figures = {f"train/{name}": value for name, value in zip(losses, values, strict=True)}
        figures["train/grad_norm"] = grad_norm
        self._refuse_what_is_not_finite(figures)
        if self.config.router_bias_update_rate:
            self._move_selection_biases()
        self._log_step(figures | {"lr": optimizer.param_groups[0]["lr"]})

    def _refuse_what_is_not_finite(self, figures: Mapping[str, float]) -> None:
        for name in ("train/loss", "train/grad_norm"):
            if not math.isfinite(figures[name]):
                blocks = self._totals.suspect_blocks()
                raise ValueError(
                    f"{name} ({figures[name]}) must be finite, but is not at optimizer step {self.trainer.global_step}"
                    f"{f' (blocks {blocks})' if blocks else ''}; {last_good_checkpoint(self.trainer)}; lower "
                    "model.optimizer.lr or set trainer.gradient_clip_val"
                )

    def _move_selection_biases(self) -> None:
        dense = self.config.first_k_dense_replace
        for load_E, layer in zip(self._totals.load(), self.model.model.sharing.deciding_layers, strict=True):
            bias_E = self.model.model.layers[layer + dense].mlp.selection_bias_E
            update_selection_bias(bias_E, load_E, self.config.router_bias_update_rate)

    def _log_step(self, figures: dict[str, float]) -> None:
        loss = figures["train/loss"]
        figures["train/perplexity"] = perplexity(loss)
        if bytes_per_target := self._bytes_per_target("train"):
            figures["train/bits_per_byte"] = loss / math.log(2) / bytes_per_target
        # Beyond what the progress bar shows, only where Lightning hands the figures to the loggers.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            figures |= load_metrics(self._totals.load(), self.model.model.sharing.deciding_layers)
        self._log(figures)

    def _log(self, figures: Mapping[str, float]) -> None:
        # In double precision, which keeps a Python number as it is.
        self.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()})

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, with the norm that is known already."""
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, self._grad_norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # --- validation ---

    def on_validation_epoch_start(self) -> None:
        """Start the sums over the validation split."""
        self._nats = torch.zeros(2, dtype=torch.float64)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Sum of the cross-entropy over the batch's targets; returns the top-1 path of each token: [T, L]."""
        output = self.model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            shift_labels=batch["shift_labels"],
            num_items_in_batch=1,
            return_logits=False,
            use_cache=False,
        )
        # Double precision, so that the sum hardly depends on the batching.
        num_targets = (batch["shift_labels"] != -100).sum()
        self._nats += torch.stack([output.cross_entropy, num_targets]).double().cpu()
        path_ids_TL = torch.stack([routing.expert_ids_TK[:, 0] for routing in output.routings], dim=-1)
        return {"path_ids": path_ids_TL}

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and bits per byte over all ranks' batches."""
        nats, num_targets = self.trainer.strategy.reduce(self._nats.to(self.device), reduce_op="sum").tolist()
        loss = nats / max(num_targets, 1)
        metrics = {"val/loss": loss, "val/perplexity": math.exp(min(loss, 700.0))}
        if self._bytes_per_target("validation"):
            metrics["val/bits_per_byte"] = loss / math.log(2) / self._bytes_per_target("validation")
        self.log_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in metrics.items()})

    def _bytes_per_target(self, split: str) -> float | None:
        """UTF-8 bytes behind one target of a split of the data; None where nobody counted them."""
        manifest = getattr(self.trainer.datamodule, "manifest", None)
        counted = getattr(manifest, split, None)
        return None if counted is None else counted.bytes_per_target

    # --- checkpoints ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the model's configuration, as plain types."""
        checkpoint["pathmoe"] = {"config": self.config.to_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture."""
        check_architecture(checkpoint.get("pathmoe"), self.config)
