"""The circulated network and the one that is made from its weights compute the same, and what does not fit is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.train.circulated_vae import CirculatedVae
from vae_edge.errors import InputError
from vae_edge.train.anomalib.ganomaly_layout import from_ganomaly_layout, is_ganomaly_layout
from vae_edge.train.model.anomaly_graph import fold_batch_norms
from vae_edge.train.model.network import count_parameters

HEAD = "encoder.fc_mu_logvar.weight"
NORM = "encoder.pyramid_features.pyramid-16-batchnorm"


def state_of(model: CirculatedVae | None = None, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in (model or CirculatedVae()).state_dict().items()}


@pytest.mark.parametrize("extra_layers", [0, 2])
@pytest.mark.parametrize("n_pyramid", [2, 3])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_reconstruction_mean_and_log_variance_are_those_of_the_circulated_network(
    extra_layers: int, n_pyramid: int, n_channels: int
) -> None:
    theirs = CirculatedVae(n_channels=n_channels, extra_layers=extra_layers, n_pyramid=n_pyramid)
    architecture, ours = from_ganomaly_layout(state_of(theirs))
    side = 8 << n_pyramid
    assert (architecture.height, architecture.width) == ours.image_size == (side, side)
    assert (architecture.n_features, architecture.latent_vec_size, architecture.n_channels) == (4, 6, n_channels)
    assert architecture.extra_layers == extra_layers
    x = torch.rand(5, n_channels, side, side, generator=torch.Generator().manual_seed(1)) * 4 - 2
    reconstruction, mean, log_variance = theirs(x)
    assert reconstruction.std() > 0.01, "the pictures differ, so that a wrong one is seen"
    output = ours(x)
    torch.testing.assert_close(output.reconstruction, reconstruction, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.mean, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.log_variance, log_variance, rtol=1e-5, atol=1e-5)
    folded = fold_batch_norms(ours.reconstruction_layers())
    torch.testing.assert_close(folded(x), reconstruction, rtol=1e-4, atol=1e-4)


def test_the_network_is_ready_to_be_used_and_is_not_the_callers_own() -> None:
    state = state_of()
    before = {name: tensor.clone() for name, tensor in state.items()}
    _, vae = from_ganomaly_layout(state)
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    with torch.no_grad():
        for tensor in vae.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_what_is_folded_away_is_made_up_by_biases() -> None:
    theirs = CirculatedVae(extra_layers=1)
    _, ours = from_ganomaly_layout(state_of(theirs))
    # The first batch norm's weight and bias, 4 each, became the convolution's bias of 4; the two heads have a bias of
    # 6 each and the last convolution one of 3, which are all zero.
    assert count_parameters(ours) == sum(p.numel() for p in theirs.parameters()) - 8 + 4 + 12 + 3
    assert not ours.mean_head.bias.any()  # type: ignore[union-attr]  # they have one


@pytest.mark.parametrize("prefix", ["model.", "model.vae.", "lightning.module."])
def test_any_prefix_and_what_stands_beside_the_network_are_passed_over(prefix: str) -> None:
    plain, prefixed = state_of(), state_of(prefix=prefix)
    prefixed |= {"image_threshold.value": torch.zeros(1), "discriminator.encoder.weight": torch.zeros(2, 2)}
    assert is_ganomaly_layout(plain)
    assert is_ganomaly_layout(prefixed)
    expected, found = from_ganomaly_layout(plain)[1].state_dict(), from_ganomaly_layout(prefixed)[1].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_counters_of_batch_norms_may_be_absent() -> None:
    state = {name: tensor for name, tensor in state_of().items() if not name.endswith("num_batches_tracked")}
    assert from_ganomaly_layout(state)[0].n_features == 4


def test_weights_in_half_become_float() -> None:
    state = {name: tensor.half() for name, tensor in state_of().items()}
    _, vae = from_ganomaly_layout(state)
    assert {tensor.dtype for tensor in vae.parameters()} == {torch.float32}
    _, exact = from_ganomaly_layout(state_of())
    torch.testing.assert_close(vae.mean_head.weight, exact.mean_head.weight, rtol=1e-3, atol=1e-4)


def test_weights_without_the_head_are_none_of_this_layout() -> None:
    state = state_of()
    del state[HEAD]
    assert not is_ganomaly_layout(state)
    with pytest.raises(InputError, match=f"the weights have no tensor {HEAD}; expected the VAE in the layout"):
        from_ganomaly_layout(state)


def test_two_networks_in_one_file_are_not_guessed_between() -> None:
    assert not is_ganomaly_layout(state_of(prefix="teacher.") | state_of(prefix="student."))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder.input_layers.initial-batchnorm-4.running_var", [4]),
        ("encoder.extra_layers.extra-layers-0-4-batchnorm.bias", [4]),
        ("encoder.pyramid_features.pyramid-16-batchnorm.running_mean", [16]),
        ("decoder.latent_input.initial-6-16-convt.weight", [6, 16, 4, 4]),
        ("decoder.inverse_pyramid.pyramid-16-8-convt.weight", [16, 8, 4, 4]),
        ("decoder.extra_layers.extra-layers-0-4-conv.weight", [4, 4, 3, 3]),
        ("decoder.final_layers.final-4-3-convt.weight", [4, 3, 4, 4]),
    ],
)
def test_a_missing_tensor_is_named_with_its_shape(name: str, shape: list[int]) -> None:
    state = state_of(CirculatedVae(extra_layers=1), "model.")
    del state[f"model.{name}"]
    with pytest.raises(InputError) as caught:
        from_ganomaly_layout(state)
    assert f"the tensor {name} is missing; expected one with the shape {shape}: give the whole" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        (f"{NORM}.weight", [8], [16]),
        ("encoder.pyramid_features.pyramid-4-8-conv.weight", [8, 4, 3, 3], [8, 4, 4, 4]),
        (HEAD, [12, 16, 2, 2], [12, 16, 4, 4]),
        ("decoder.final_layers.final-4-3-convt.weight", [4, 1, 4, 4], [4, 3, 4, 4]),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(name: str, given: list[int], expected: list[int]) -> None:
    state = state_of() | {name: torch.zeros(given)}
    with pytest.raises(InputError) as caught:
        from_ganomaly_layout(state)
    assert f"the tensor {name} has the shape {given}; expected {expected}" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["encoder.attention.weight", "decoder.final_layers.final-4-3-convt.bias", "encoder.fc_mu_logvar.bias"]
)
def test_a_tensor_without_a_place_is_named(name: str) -> None:
    state = state_of(prefix="model.") | {f"model.{name}": torch.zeros(7)}
    with pytest.raises(InputError) as caught:
        from_ganomaly_layout(state)
    assert f"there is a tensor {name} with the shape [7], for which" in str(caught.value)


def test_another_number_of_layers_in_the_decoder_is_refused() -> None:
    encoder, decoder = state_of(CirculatedVae(extra_layers=1)), state_of(CirculatedVae(extra_layers=2))
    mixed = {n: t for n, t in encoder.items() if n.startswith("encoder.")}
    mixed |= {n: t for n, t in decoder.items() if n.startswith("decoder.")}
    with pytest.raises(InputError, match=r"there is a tensor decoder\.extra_layers\.extra-layers-1-4-conv\.weight"):
        from_ganomaly_layout(mixed)


@pytest.mark.parametrize("damage", ["missing", "flat"])
def test_the_first_convolution_must_be_there_to_know_the_sizes(damage: str) -> None:
    state = state_of()
    name = "encoder.input_layers.initial-conv-3-4.weight"
    state[name] = state[name].flatten()
    if damage == "missing":
        del state[name]
    with pytest.raises(InputError, match=r"initial-conv-\*\.weight is missing or does not have four dimensions"):
        from_ganomaly_layout(state)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"n_pyramid": 1}, "the image size is 16x16; expected sides of 32 to 4096"),
        ({"extra_layers": 17}, "extra_layers is 17"),
        ({"n_channels": 17}, "n_channels is 17"),
    ],
)
def test_a_network_outside_of_the_limits_is_refused_in_a_sentence(sizes: dict[str, int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        from_ganomaly_layout(state_of(CirculatedVae(**sizes)))
