"""The Lightning module: what one training step and one validation step compute, and what they log."""

# Shapes: B batch, S sequence, T = B*S tokens, L MoE layers, E experts.

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from transformers.modeling_utils import local_torch_dtype

from pathmoe.balancing import sum_over_ranks, update_selection_bias
from pathmoe.config import PathMoEConfig
from pathmoe.data.manifest import MixedSource, SplitManifest
from pathmoe.initialization import initialize
from pathmoe.model import PathMoEForCausalLM
from pathmoe.noise import fold_seed
from pathmoe.training.compatibility import check_architecture
from pathmoe.training.gradient_norm import clip_gradients, gradient_norm
from pathmoe.training.load_metrics import load_metrics
from pathmoe.training.loop_progress import recount_micro_batches
from pathmoe.training.model_requirements import (
    check_attention_is_installed,
    check_attention_runs,
    check_experts_can_be_shared,
    check_routers_learn,
)
from pathmoe.training.non_finite import NonFiniteSteps
from pathmoe.training.optim import OptimizerConfig, build_optimizer, learning_rates
from pathmoe.training.schedule import ScheduleConfig, build_scheduler, check_schedule
from pathmoe.training.settings import apply_group_settings, check_groups, group_settings
from pathmoe.training.sharded_strategy import ShardedStrategy
from pathmoe.training.sharding import shard
from pathmoe.training.step_totals import StepTotals
from pathmoe.training.trainer_requirements import check_optimizer, check_strategy, check_trainer

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
        experts_implementation: `pathmoe` for our kernels, or one of transformers'.
        activation_checkpointing: recompute each layer in backward instead of keeping its activations.
        compile: compile each decoder layer with torch.compile.
        non_finite: what a step is worth whose loss or gradient is not finite: `stop` ends the run before it, `skip`
            leaves it out, says so and counts it, but not many times in a row.
        seed: seed of initial weights and router noise; taken from `seed_everything`.

    Raises:
        ValueError: routers that could not learn, or flash attention that is not installed.
    """

    def __init__(
        self,
        config: PathMoEConfig,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008  # frozen
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008  # frozen
        attn_implementation: Literal[
            "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"
        ] = "sdpa",
        experts_implementation: Literal["pathmoe", "grouped_mm", "batched_mm", "eager"] = "pathmoe",
        activation_checkpointing: bool = False,
        compile: bool = False,
        non_finite: Literal["stop", "skip"] = "stop",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_routers_learn(config)
        check_attention_is_installed(config, attn_implementation)
        self.config = config
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.attn_implementation = attn_implementation
        self.experts_implementation = experts_implementation
        self.activation_checkpointing = activation_checkpointing
        self.compile_layers = compile
        self.seed = seed
        self.model: PathMoEForCausalLM
        self._totals = StepTotals()
        self._non_finite = NonFiniteSteps(non_finite)

    def setup(self, stage: str) -> None:
        """Check what training needs before anything is built."""
        check_strategy(self.trainer)
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy) and strategy.expert_parallel_size > 1:
            sizes = strategy.expert_parallel_size, strategy.layout.expert_shards
            check_experts_can_be_shared(self.config, self.experts_implementation, *sizes)
        if stage == "fit":
            check_trainer(self.trainer)
            check_schedule(self.schedule_config, self.trainer.max_steps)
        device_type = strategy.root_device.type
        check_attention_runs(self.attn_implementation, self.trainer.precision, device_type, training=stage == "fit")

    def configure_model(self) -> None:
        """Build the model in fp32, with weights that are drawn on the CPU, so that they depend on the seed alone.

        Lightning moves and converts it afterwards; built as it would, on the device and in the precision of the run,
        the same seed would give each of them other weights. Where a strategy shards, no rank builds the whole.
        """
        if hasattr(self, "model"):
            return
        self.config._attn_implementation = self.attn_implementation
        self.config._experts_implementation = self.experts_implementation
        strategy = None if self._trainer is None else self.trainer.strategy
        device = "meta" if isinstance(strategy, ShardedStrategy) else "cpu"
        with torch.random.fork_rng(devices=[]), torch.device(device), local_torch_dtype(torch.float32):
            self.model = PathMoEForCausalLM(self.config)
        if isinstance(strategy, ShardedStrategy):
            shard(self.model, strategy.sharding_mesh(), str(self.trainer.precision), strategy.experts_mesh())
            self.model.to_empty(device=strategy.root_device)
            self.model.tie_weights()
        initialize(self.model, fold_seed(self.seed, _INITIALISATION))
        if self.activation_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        if self.compile_layers:
            for layer in self.model.model.layers:
                # All layers are one function to the compiler, so that its limit is on their kinds (dense, first,
                # deciding, following), times training and validation.
                layer.compile(recompile_limit=32)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # bf16-true converts the whole module, buffers included: selection biases would stop moving, and rotary
        # frequencies would not be those of the exported model.
        before = dict(self.named_buffers(remove_duplicate=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            module, _, leaf = name.rpartition(".")
            now = self.get_buffer(name)
            if now.dtype != buffer.dtype:
                setattr(self.get_submodule(module), leaf, buffer.to(now.device))
        return self

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer, and the schedule stepped with it."""
        check_optimizer(type(self.trainer.strategy).__name__, self.optimizer_config.name)
        optimizer = build_optimizer(self.model, self.optimizer_config)
        scheduler = build_scheduler(optimizer, self.schedule_config, self.trainer.max_steps)
        self._settings = group_settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Let this call's optimizer settings win over those of the checkpoint that was restored."""
        apply_group_settings(self.optimizers().optimizer, self.lr_schedulers(), self._settings)

    # --- training ---

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Keep the steps of the log those of the optimizer."""
        # Lightning counts them apart, and one off after a resume with another interval between validations.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

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
            # By the micro-batch's number among those of all ranks, so that other numbers of ranks draw the same.
            noise_seed=fold_seed(
                self.seed, _NOISE, batch["step"], batch["micro_batch"] * self.trainer.world_size + self.global_rank
            ),
            earlier_load=self._totals.balance_load_LE,
            return_logits=False,
            use_cache=False,
        )
        stream = " of its stream" if batch.get("num_items_is_local", False) else ""
        self._totals.add(output, f"blocks {batch['block_ids']}{stream}")
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
        """Stop before a loss or a gradient that is not finite reaches the weights, or skip it; move the biases; log.

        All ranks see the same figures, so they stop together.
        """
        losses = self._totals.losses()
        self._grad_norm = gradient_norm(self.parameters())
        # One transfer, hence one wait for the device, for the whole step.
        *values, grad_norm = torch.stack([*losses.values(), self._grad_norm.to(torch.float32)]).tolist()
        figures = {f"train/{name}": value for name, value in zip(losses, values, strict=True)}
        figures["train/grad_norm"] = grad_norm
        load_LE = self._totals.load()
        if not self._non_finite.allow(figures, self._totals, self.trainer):
            # Without gradients optimizers leave weights and states as they are.
            self.zero_grad(set_to_none=True)
        elif self.config.router_bias_update_rate:
            self._move_selection_biases(load_LE)
        if self._non_finite.skipped:
            figures["train/skipped_steps"] = self._non_finite.skipped
        self._log_step(figures | learning_rates(optimizer), load_LE)

    def _move_selection_biases(self, load_LE: Tensor) -> None:
        dense = self.config.first_k_dense_replace
        for load_E, layer in zip(load_LE, self.model.model.sharing.deciding_layers, strict=True):
            bias_E = self.model.model.layers[layer + dense].mlp.selection_bias_E
            update_selection_bias(bias_E, load_E, self.config.router_bias_update_rate)

    def _log_step(self, figures: dict[str, float], load_LE: Tensor) -> None:
        loss = figures["train/loss"]
        figures["train/perplexity"] = _perplexity(loss)
        if split := self._counted("train"):
            figures["train/bits_per_byte"] = loss / math.log(2) / split.bytes_per_target
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            figures |= load_metrics(load_LE, self.model.model.sharing.deciding_layers)
        else:
            # What the progress bar shows; Lightning takes its time over every figure, also where no logger gets it.
            figures = {name: figures[name] for name in ("train/loss", "train/perplexity")}
        self._log(figures)

    def _log(self, figures: Mapping[str, float], **options: Any) -> None:
        # In double precision, which keeps a Python number as it is.
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
        self.log_dict(values, **options)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, with the norm that is known already."""
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            clip_gradients(self.parameters(), gradient_clip_val, self._grad_norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # --- validation ---

    def on_validation_epoch_start(self) -> None:
        """Start the sums over the validation split, and over each source of a mixture."""
        num_sources = len(self._mixed_sources())
        self._nats_and_targets = torch.zeros(1 + num_sources, 2, dtype=torch.float64)

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
        # Double precision, so that the sum hardly depends on the batching; on the CPU, as not every device has it.
        num_targets = (batch["shift_labels"] != -100).sum()
        nats_and_targets = torch.stack([output.cross_entropy, num_targets]).cpu()
        self._nats_and_targets[0] += nats_and_targets
        if len(self._nats_and_targets) > 1:
            self._nats_and_targets[1 + batch["source"]] += nats_and_targets
        path_ids_TL = torch.stack([routing.expert_ids_TK[:, 0] for routing in output.routings], dim=-1)
        return {"path_ids": path_ids_TL}

    def on_validation_epoch_end(self) -> None:
        """Log loss and perplexity over all ranks' batches, and bits per byte where these were the whole split."""
        sums = self._nats_and_targets
        sums = sums if self.trainer.world_size == 1 else sum_over_ranks(sums.to(self.device))
        (nats, num_targets), *of_sources = sums.tolist()
        loss = nats / max(num_targets, 1)
        figures = {"val/loss": loss, "val/perplexity": _perplexity(loss)}
        for source, (source_nats, source_targets) in zip(self._mixed_sources(), of_sources, strict=True):
            if source_targets:  # trainer.limit_val_batches may have left all of it out
                figures[f"val/{source.label}/loss"] = source_nats / source_targets
        # Bytes are counted over the whole split, of which trainer.limit_val_batches may have left some out.
        if (split := self._counted("validation")) and num_targets == split.targets:
            figures["val/bits_per_byte"] = loss / math.log(2) / split.bytes_per_target
        self._log(figures, sync_dist=True)  # the same on all ranks: Lightning would warn that it can't know

    def _mixed_sources(self) -> Sequence[MixedSource]:
        return getattr(getattr(self.trainer.datamodule, "manifest", None), "mixture", None) or ()

    def _counted(self, split: str) -> SplitManifest | None:
        """Counts of a split of the data; None where nobody counted it, or it has no targets."""
        counted = getattr(getattr(self.trainer.datamodule, "manifest", None), split, None)
        return counted if counted is not None and counted.targets else None

    # --- checkpoints ---

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the model's configuration, as plain types, and what the counts of micro-batches refer to."""
        checkpoint["pathmoe"] = {
            "config": self.config.to_dict(),
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "skipped_steps": self._non_finite.skipped,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture or, to go on with training, of another optimizer."""
        check_architecture(checkpoint.get("pathmoe"), self.config)
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        before, now = checkpoint["pathmoe"]["accumulate_grad_batches"], self.trainer.accumulate_grad_batches
        self._non_finite.skipped = checkpoint["pathmoe"].get("skipped_steps", 0)  # older ones have none
        recount_micro_batches(checkpoint["loops"]["fit_loop"], checkpoint["global_step"], before, now)
        if checkpoint.get("optimizer_states"):
            check_groups(
                checkpoint["optimizer_states"][0]["param_groups"], build_optimizer(self.model, self.optimizer_config)
            )


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))
