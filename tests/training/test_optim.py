"""Which optimizer each parameter gets, and the several of them as one under torch's and Lightning's own machinery."""

# Shapes: B batch, S sequence.

import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

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


# Every kind of parameter of the model: its shape, and its (optimizer, decays) under muon.
HEAD = {
    "model.embed_tokens.weight": ((VOCABULARY, WIDTH), "AdamW", False),
    "lm_head.weight": ((VOCABULARY, WIDTH), "AdamW", True),
    "model.norm.weight": ((WIDTH,), "AdamW", False),
}
ATTENTION = {
    "self_attn.q_proj.weight": ((WIDTH, WIDTH), "Muon", True),
    "self_attn.o_proj.weight": ((WIDTH, WIDTH), "Muon", True),
    "self_attn.q_norm.weight": ((WIDTH,), "AdamW", False),
    "input_layernorm.weight": ((WIDTH,), "AdamW", False),
}
FEED_FORWARDS = {
    "experts": {
        "mlp.experts.gate_up_proj": ((EXPERTS, 2 * EXPERT_WIDTH, WIDTH), "ExpertMuon", True),
        "mlp.experts.down_proj": ((EXPERTS, WIDTH, EXPERT_WIDTH), "ExpertMuon", True),
        "mlp.shared_experts.gate_proj.weight": ((EXPERT_WIDTH, WIDTH), "Muon", True),
        "mlp.shared_experts.down_proj.weight": ((WIDTH, EXPERT_WIDTH), "Muon", True),
    },
    "dense": {
        "mlp.gate_proj.weight": ((EXPERT_WIDTH, WIDTH), "Muon", True),
        "mlp.up_proj.weight": ((EXPERT_WIDTH, WIDTH), "Muon", True),
        "mlp.down_proj.weight": ((WIDTH, EXPERT_WIDTH), "Muon", True),
    },
    "olmoe": {
        "mlp.gate.weight": ((EXPERTS, WIDTH), "AdamW", True),
        "mlp.experts.down_proj": ((EXPERTS, WIDTH, EXPERT_WIDTH), "ExpertMuon", True),
    },
}
ROUTER = {
    "weight": ((EXPERTS, WIDTH), "AdamW", True),
    "bias": ((EXPERTS,), "AdamW", False),
    "lora_a": ((2, EXPERTS, 1), "AdamW", True),
    "down_proj.weight": ((2, WIDTH), "AdamW", True),
    "temperature": ((), "AdamW", False),
}
CELL = {"model.router_cell.weight_ih": ((9, 3), "AdamW", True), "model.router_cell.bias_ih": ((9,), "AdamW", False)}

Kinds = dict[str, tuple[tuple[int, ...], str, bool]]


@st.composite
def models(draw: st.DrawFn) -> Kinds:
    kinds: Kinds = dict(HEAD)
    for layer, kind in enumerate(draw(st.lists(st.sampled_from(sorted(FEED_FORWARDS)), max_size=3))):
        layer_kinds = ATTENTION | FEED_FORWARDS[kind]
        kinds |= {f"model.layers.{layer}.{name}": value for name, value in layer_kinds.items()}
    for router in range(draw(st.integers(0, 2))):
        names = draw(st.lists(st.sampled_from(sorted(ROUTER)), unique=True))
        kinds |= {f"model.routers.{router}.{name}": ROUTER[name] for name in names}
    kinds |= CELL if draw(st.booleans()) else {}
    prefix = draw(st.sampled_from(["", "model.", "_orig_mod."]))
    return {prefix + name: value for name, value in kinds.items()}


@given(models(), st.data(), st.sampled_from(["adamw", "muon"]))
def test_every_trainable_parameter_is_in_the_one_right_group(kinds: Kinds, data: st.DataObject, name: str) -> None:
    model = tree({path: shape for path, (shape, _, _) in kinds.items()}).to("meta")
    frozen = data.draw(st.sets(st.sampled_from(sorted(set(kinds) - {next(iter(kinds))}))))
    for path in frozen:
        model.get_parameter(path).requires_grad = False
    config = OptimizerConfig(name=name)
    optimizer = build_optimizer(model, config)

    found = {}
    for member in optimizer.members:
        for group in member.param_groups:
            for parameter in group["params"]:
                assert id(parameter) not in found
                found[id(parameter)] = (type(member).__name__, group["weight_decay"], group.get("num_matrices"))
    expected, counts = {}, {}
    for path, (_, of_muon, decays) in kinds.items():
        if path not in frozen:
            parameter = model.get_parameter(path)
            member_name = of_muon if name == "muon" else "AdamW"
            matrices = (2 if "gate_up" in path else 1) if member_name == "ExpertMuon" else None
            expected[id(parameter)] = (member_name, config.weight_decay if decays else 0.0, matrices)
            counts[member_name] = counts.get(member_name, 0) + parameter.numel()
    assert found == expected
    assert parameters_per_optimizer(model, config) == counts
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
        shapes = {name: shape for name, (shape, _, _) in HEAD.items()}
        shapes |= {"q_proj.weight": (WIDTH, WIDTH), "routers.0.weight": (EXPERTS, WIDTH)}
        shapes |= {name: shape for name, (shape, _, _) in FEED_FORWARDS["experts"].items() if ".experts." in name}
        self.network = tree(shapes)

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
