"""Which optimizer each parameter gets, and the several of them as one under torch's and Lightning's own machinery."""

# Shapes: B batch, S sequence.

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import OlmoeConfig, OlmoeForCausalLM

from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.muon import ExpertMuon
from pathmoe.training.optim import CombinedOptimizer, OptimizerConfig, build_optimizer, parameters_per_optimizer
from pathmoe.training.schedule import ScheduleConfig, build_scheduler

VOCABULARY, WIDTH, EXPERTS, EXPERT_WIDTH = 11, 6, 3, 4
MUON = OptimizerConfig(name="muon", lr=0.01, muon_lr=0.03, weight_decay=0.2)


def tree(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """A module whose parameters have these dotted names and shapes."""
    root = nn.Module()
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        node = root
        for component in path:
            if component not in dict(node.named_children()):
                node.add_module(component, nn.Module())
            node = node.get_submodule(component)
        node.register_parameter(leaf, nn.Parameter(torch.randn(shape, generator=generator)))
    return root


# Every kind of parameter of the model and of its OLMoE peer, by name without numbers: optimizer and group under muon.
KINDS = {
    "model.embed_tokens.weight": ("AdamW", "no_decay"),
    "lm_head.weight": ("AdamW", "decay"),
    "model.norm.weight": ("AdamW", "no_decay"),
    "model.layers.*.input_layernorm.weight": ("AdamW", "no_decay"),
    "model.layers.*.post_attention_layernorm.weight": ("AdamW", "no_decay"),
    **{f"model.layers.*.self_attn.{name}_norm.weight": ("AdamW", "no_decay") for name in "qk"},
    **{f"model.layers.*.self_attn.{name}_proj.weight": ("Muon", "matrices") for name in "qkvo"},
    **{f"model.layers.*.self_attn.{name}_proj.bias": ("AdamW", "no_decay") for name in "qkvo"},
    **{f"model.layers.*.mlp.{name}_proj.weight": ("Muon", "matrices") for name in ("gate", "up", "down")},
    **{
        f"model.layers.*.mlp.shared_experts.{name}_proj.weight": ("Muon", "matrices") for name in ("gate", "up", "down")
    },
    "model.layers.*.mlp.experts.gate_up_proj": ("ExpertMuon", "gate_up_proj"),
    "model.layers.*.mlp.experts.down_proj": ("ExpertMuon", "down_proj"),
    "model.layers.*.mlp.gate.weight": ("AdamW", "decay"),  # the peer's routers
    "model.routers.*.weight": ("AdamW", "decay"),
    "model.routers.*.bias": ("AdamW", "no_decay"),
    "model.routers.*.low_rank_a": ("AdamW", "decay"),
    "model.routers.*.low_rank_b": ("AdamW", "decay"),
    "model.routers.*.projection.weight": ("AdamW", "decay"),
    "model.routers.*.projection.bias": ("AdamW", "no_decay"),
    "model.routers.*.expert_embedding_PE": ("AdamW", "decay"),
    "model.routers.*.log_scale": ("AdamW", "no_decay"),
    "model.routers.*.in_projection.weight": ("AdamW", "decay"),
    "model.routers.*.out_projection.weight": ("AdamW", "decay"),
    **{f"model.router_cell.weight_{name}": ("AdamW", "decay") for name in ("ih", "hh")},
    **{f"model.router_cell.bias_{name}": ("AdamW", "no_decay") for name in ("ih", "hh")},
}


def meta_models() -> dict[str, nn.Module]:
    """The model with each of the shipped routers and with every optional part, and its peer, without their data."""
    files = sorted((Path(__file__).resolve().parents[2] / "configs" / "routers").glob("*.yaml"))
    fields = {file.stem: yaml.safe_load(file.read_text())["model"]["config"] for file in files}
    optional = {"first_k_dense_replace": 1, "n_shared_experts": 1, "attention_bias": True}
    fields["every optional part"] = optional | {"router_bias": True, "router_rank": 2}
    with torch.device("meta"):
        models: dict[str, nn.Module] = {name: PathMoEForCausalLM(PathMoEConfig(**own)) for name, own in fields.items()}
        models["peer"] = OlmoeForCausalLM(OlmoeConfig(num_hidden_layers=2))
    return models


MODELS = meta_models()


def kind_of(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def test_the_kinds_are_those_of_the_models() -> None:
    assert {kind_of(name) for model in MODELS.values() for name, _ in model.named_parameters()} == set(KINDS)


@pytest.mark.parametrize("wrapped", [False, True], ids=["", "in a module"])
@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
@pytest.mark.parametrize("model_name", MODELS)
def test_every_trainable_parameter_is_in_the_one_right_group(
    model_name: str, optimizer_name: Any, wrapped: bool
) -> None:
    model = MODELS[model_name]
    config = OptimizerConfig(name=optimizer_name)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    network = nn.ModuleDict({"model": model}) if wrapped else model  # Lightning's module adds to the names
    optimizer = build_optimizer(network, config)
    found = {}
    for member in optimizer.members:
        for group in member.param_groups:
            assert group["weight_decay"] == (0.0 if group["name"] == "no_decay" else config.weight_decay)
            assert group.get("num_matrices") == {"gate_up_proj": 2, "down_proj": 1}.get(group["name"])
            for parameter in group["params"]:
                assert names[id(parameter)] not in found
                found[names[id(parameter)]] = (type(member).__name__, group["name"])

    expected, counts = {}, Counter[str]()
    for name, parameter in model.named_parameters():
        if model_name == "rand" and ".routers." in name:
            continue  # frozen
        member_name, group_name = KINDS[kind_of(name)]
        if optimizer_name == "adamw" and member_name != "AdamW":
            member_name, group_name = "AdamW", "decay"
        expected[name] = (member_name, group_name)
        counts[member_name] += parameter.numel()
    assert found == expected
    assert parameters_per_optimizer(network, config) == counts
    assert [id(group) for group in optimizer.param_groups] == [
        id(group) for member in optimizer.members for group in member.param_groups
    ]


@pytest.mark.parametrize("head_first", [False, True])
def test_a_tied_head_counts_once_and_as_embedding(head_first: bool) -> None:
    names = ["lm_head.weight", "model.embed_tokens.weight"]
    model = tree(dict.fromkeys(names if head_first else reversed(names), (VOCABULARY, WIDTH)))
    model.lm_head.weight = model.model.embed_tokens.weight
    assert parameters_per_optimizer(model, MUON) == {"AdamW": VOCABULARY * WIDTH}
    (group,) = build_optimizer(model, MUON).param_groups
    assert group["weight_decay"] == 0.0


def test_muon_takes_the_rate_of_adamw_unless_it_has_its_own() -> None:
    model = tree({"q_proj.weight": (4, 4), "mlp.experts.down_proj": (2, 4, 4), "bias": (4,)})
    rates = [group["lr"] for group in build_optimizer(model, OptimizerConfig(name="muon", lr=0.5)).param_groups]
    assert rates == [0.5] * 3
    rates = [group["lr"] for group in build_optimizer(model, MUON).param_groups]
    assert rates == [0.01, 0.03, 0.03]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "sgd"}, r"model\.optimizer\.name \(sgd\) must be adamw or muon"),
        ({"lr": 0.0}, r"model\.optimizer\.lr \(0\.0\) must be above 0 and finite"),
        ({"lr": math.nan}, r"model\.optimizer\.lr \(nan\) must be above 0"),
        ({"muon_lr": math.inf}, r"model\.optimizer\.muon_lr \(inf\) must be above 0 and finite"),
        ({"eps": -1e-8}, r"model\.optimizer\.eps \(-1e-08\) must be above 0"),
        ({"weight_decay": -0.1}, r"model\.optimizer\.weight_decay \(-0\.1\) must be at least 0"),
        ({"betas": (0.9, 1.0)}, r"model\.optimizer\.betas \(\(0\.9, 1\.0\)\) must lie in \[0, 1\)"),
        ({"muon_momentum": 1.0}, r"model\.optimizer\.muon_momentum \(1\.0\) must lie in \[0, 1\)"),
    ],
)
def test_refuses_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**values)


class TinyMoE(lightning.LightningModule):
    """Embedding, one matrix, dense experts, norm and head: one parameter for every group."""

    def __init__(self, config: OptimizerConfig, max_steps: int) -> None:
        super().__init__()
        self.config, self.max_steps = config, max_steps
        self.network = tree(
            {
                "model.embed_tokens.weight": (VOCABULARY, WIDTH),
                "lm_head.weight": (VOCABULARY, WIDTH),
                "model.norm.weight": (WIDTH,),
                "q_proj.weight": (WIDTH, WIDTH),
                "routers.0.weight": (EXPERTS, WIDTH),
                "mlp.experts.gate_up_proj": (EXPERTS, 2 * EXPERT_WIDTH, WIDTH),
                "mlp.experts.down_proj": (EXPERTS, WIDTH, EXPERT_WIDTH),
            }
        )

    def training_step(self, batch: Tensor) -> Tensor:
        net = self.network
        # From the step alone, so that where a loader resumes plays no part.
        input_ids_BS = torch.randint(VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(self.global_step))
        x = nn.functional.embedding(input_ids_BS[:, :-1], net.model.embed_tokens.weight)
        x = x + x @ net.q_proj.weight.mT
        weights = (x @ net.routers.get_submodule("0").weight.mT).softmax(-1)
        gate, up = torch.einsum("...d,efd->...ef", x, net.mlp.experts.gate_up_proj).chunk(2, dim=-1)
        outputs = torch.einsum("...ef,edf->...ed", nn.functional.silu(gate) * up, net.mlp.experts.down_proj)
        x = x + torch.einsum("...e,...ed->...d", weights, outputs)
        logits = nn.functional.rms_norm(x, (WIDTH,), net.model.norm.weight) @ net.lm_head.weight.mT
        return nn.functional.cross_entropy(logits.flatten(0, -2).float(), input_ids_BS[:, 1:].flatten())

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self, self.config)
        scheduler = build_scheduler(optimizer, ScheduleConfig(name="wsd", warmup_steps=2), self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(module: TinyMoE, steps: int, precision: Any = "32-true", ckpt_path: Path | None = None) -> lightning.Trainer:
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        precision=precision,
        gradient_clip_val=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(range(100)), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def assert_same_bits(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_bits(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_bits(left, right)
    else:
        assert one == other


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and loggers
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_resumes_bit_for_bit(tmp_path: Path, name: str, precision: str) -> None:
    config = OptimizerConfig(name=name, lr=0.01)
    whole = TinyMoE(config, max_steps=7)
    whole_trainer = fit(whole, 7, precision)
    initial = TinyMoE(config, max_steps=7)
    for before, after in zip(initial.parameters(), whole.parameters(), strict=True):
        assert not torch.equal(before, after)

    fit(TinyMoE(config, max_steps=7), 3, precision).save_checkpoint(tmp_path / "half.ckpt")
    resumed = TinyMoE(config, max_steps=7)
    resumed_trainer = fit(resumed, 7, precision, ckpt_path=tmp_path / "half.ckpt")

    assert_same_bits(resumed.state_dict(), whole.state_dict())
    assert_same_bits(resumed_trainer.optimizers[0].state_dict(), whole_trainer.optimizers[0].state_dict())
    (optimizer,) = resumed_trainer.optimizers
    assert isinstance(optimizer, CombinedOptimizer)
    for member in optimizer.members:
        assert member.state is optimizer.state
        assert all(any(group is own for own in optimizer.param_groups) for group in member.param_groups)


def random_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_combined_equals_its_members_on_their_own() -> None:
    """The same run with three separate torch optimizers, their rates scaled by hand."""
    shapes = {"q_proj.weight": (6, 4), "mlp.experts.down_proj": (3, 4, 6), "lm_head.weight": (5, 4), "bias": (4,)}
    ours, theirs = tree(shapes), tree(shapes)
    combined = build_optimizer(ours, MUON)
    scheduler = torch.optim.lr_scheduler.LambdaLR(combined, lambda step: 1 / (step + 1))
    muon = {"lr": 0.03, "weight_decay": 0.2, "adjust_lr_fn": "match_rms_adamw"}
    decay, no_decay = [theirs.lm_head.weight], [theirs.bias]
    separate = [
        torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.2}, {"params": no_decay, "weight_decay": 0.0}],
            lr=0.01,
            betas=MUON.betas,
            fused=True,
        ),
        torch.optim.Muon([theirs.q_proj.weight], **muon),
        ExpertMuon([theirs.mlp.experts.down_proj], **muon),
    ]
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in separate]
    for step in range(5):
        random_gradients(ours, step)
        random_gradients(theirs, step)
        combined.step()
        scheduler.step()
        for optimizer, of_groups in zip(separate, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, of_groups, strict=True):
                group["lr"] = rate / (step + 1)
            optimizer.step()
    assert_same_bits(ours.state_dict(), theirs.state_dict())
    combined.zero_grad()
    assert all(parameter.grad is None for parameter in ours.parameters())
