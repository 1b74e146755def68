import pytest
import torch

from admm_lip.networks.models import ACTIVATIONS, ModelConfig, build_mlp


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_builds_and_runs(activation):
    model = build_mlp(3, 2, ModelConfig((4, 6), activation))
    assert model(torch.zeros(7, 3)).shape == (7, 2)
    assert [type(m).__name__ for m in model[::2]] == ["Linear"] * 3


def test_no_hidden_layer_is_one_affine_map():
    assert [type(m).__name__ for m in build_mlp(3, 2, ModelConfig(()))] == ["Linear"]


def test_orthogonal_start_has_unit_singular_values():
    model = build_mlp(6, 2, ModelConfig((4, 9)))
    for layer in model[::2]:
        values = torch.linalg.svdvals(layer.weight)
        assert torch.allclose(values, torch.ones_like(values), atol=1e-5)
        assert not layer.bias.any()


@pytest.mark.parametrize("init", ["orthogonal", "torch"])
def test_seeded_and_without_side_effects(init):
    before = torch.random.get_rng_state()
    a, b, c = (build_mlp(3, 2, ModelConfig(init=init), seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a[0].weight, b[0].weight)
    assert not torch.equal(a[0].weight, c[0].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": [4, 0]}, r"hidden: expected widths of at least 1, got \[4, 0\]"),
        ({"activation": "rleu"}, r"activation: expected one of relu, .*got 'rleu'"),
        (
            {"hidden": [4, 7], "activation": "max_min"},
            "hidden: max_min sorts pairs and needs even widths, got 7",
        ),
        ({"init": "zeros"}, r"init: expected 'orthogonal' or 'torch', got 'zeros'"),
    ],
)
def test_bad_configs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**change)


def test_bad_width_is_named():
    with pytest.raises(ValueError, match=r"n_outputs: expected at least 1, got 0"):
        build_mlp(3, 0)
