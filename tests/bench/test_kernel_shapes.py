from pathmoe.bench.kernel_shapes import kernel_shapes


def test_the_shapes_are_those_of_the_published_models_and_of_the_shipped_files() -> None:
    # Of PathMoE as configs/pathmoe_0.9b.yaml and configs/pathmoe_16b.yaml have them.
    assert {name: shape.described() for name, shape in kernel_shapes(512).items()} == {
        "OLMoE": "T=512 D=2048 F=1024 E=64 K=8",
        "Qwen3-30B-A3B": "T=512 D=2048 F=768 E=128 K=8",
        "PathMoE 0.9B": "T=512 D=1152 F=520 E=16 K=4",
        "PathMoE 16B": "T=512 D=2048 F=1408 E=64 K=6",
    }


def test_only_olmoe_leaves_its_weights_as_the_softmax_gives_them() -> None:
    assert [name for name, shape in kernel_shapes(1).items() if not shape.config.norm_topk_prob] == ["OLMoE"]
