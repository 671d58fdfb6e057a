"""The network has the reference's shape, and its loss is the published one."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vae_edge.errors import InputError
from vae_edge.train.model.network import Vae, VaeOutput, count_flops, count_parameters
from vae_edge.train.model.presets import (
    PRESETS,
    Architecture,
    check_image_size,
    count_stages,
    make_architecture,
    nearest_image_sizes,
    preset_named,
)


def tiny(**settings: int) -> Vae:
    torch.manual_seed(0)
    return Vae(4, 8, image_size=(32, 32), **settings)


def test_the_defaults_are_the_reference_of_102_million_parameters() -> None:
    vae = Vae()
    assert count_parameters(vae) == pytest.approx(102e6, rel=0.001)
    assert count_flops(vae) == pytest.approx(10.96e9, rel=0.001)


@pytest.mark.parametrize(
    ("name", "side", "millions", "gflop"),
    [
        ("edge", 256, 7.15, 2.05),
        ("edge", 128, 5.05, 0.50),
        ("nano", 256, 2.18, 0.54),
        ("nano", 128, 1.66, 0.13),
        ("reference", 128, 28.59, 2.21),
    ],
)
def test_each_preset_has_the_size_that_its_table_says(name: str, side: int, millions: float, gflop: float) -> None:
    vae = Vae.from_architecture(PRESETS[name].architecture(name, side, side))
    assert count_parameters(vae) / 1e6 == pytest.approx(millions, abs=0.006)
    assert count_flops(vae) / 1e9 == pytest.approx(gflop, abs=0.006)


def test_the_operations_agree_with_torch_own_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    vae = Vae(4, 8, image_size=(64, 96)).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        vae.reconstruct(torch.zeros(1, 3, 64, 96))
    assert count_flops(vae) == counter.get_total_flops()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (48, 48), (128, 32), (224, 224)])
def test_an_image_comes_back_in_its_own_size(size: tuple[int, int]) -> None:
    output = Vae(4, 8, image_size=size)(torch.zeros(2, 3, *size))
    assert output.reconstruction.shape == (2, 3, *size)
    assert output.mean.shape == output.log_variance.shape == (2, 8)
    assert output.reconstruction.abs().max() <= 1


def test_only_a_training_pass_draws_random_latents() -> None:
    vae, x = tiny(), torch.rand(2, 3, 32, 32) * 2 - 1
    assert not torch.equal(vae(x).reconstruction, vae(x).reconstruction)
    vae.eval()
    assert torch.equal(vae(x).reconstruction, vae(x).reconstruction)
    assert torch.equal(vae(x).reconstruction, vae.reconstruct(x))


def test_the_chain_of_layers_computes_the_reconstruction() -> None:
    vae, x = tiny().eval(), torch.rand(2, 3, 32, 32)
    assert torch.equal(vae.reconstruction_layers()(x), vae.reconstruct(x))


def test_the_loss_is_squared_error_plus_weighted_divergence() -> None:
    vae, x = tiny(), torch.rand(3, 3, 32, 32)
    output = VaeOutput(torch.rand(3, 3, 32, 32), torch.randn(3, 8), torch.randn(3, 8))
    loss = vae.loss(output, x)
    posterior = Normal(output.mean, (0.5 * output.log_variance).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum(dim=1).mean()
    torch.testing.assert_close(loss.kl, expected)
    torch.testing.assert_close(loss.reconstruction, (output.reconstruction - x).square().mean())
    torch.testing.assert_close(loss.total, loss.reconstruction + 0.00025 * loss.kl)


def test_every_parameter_gets_a_gradient() -> None:
    vae, x = tiny(), torch.rand(4, 3, 32, 32)
    vae.loss(vae(x), x).total.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())


def test_channels_double_up_to_the_cap_only() -> None:
    widths = [m.out_channels for m in tiny(max_features=6).features if isinstance(m, torch.nn.Conv2d)]
    assert widths == [4, 6, 6]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((100, 200), "96x192 and 112x208"),
        ((127, 127), "112x112 and 128x128"),
        ((256, 300), "256x256 and 256x320"),
        ((16, 64), "expected sides of 32 to 4096"),
        ((64, 5000), "expected sides of 32 to 4096"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest_that_do(size: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Vae(4, 8, image_size=size)


def test_the_nearest_sizes_always_fit() -> None:
    for height in range(32, 300, 7):
        for width in range(32, 300, 11):
            for size in nearest_image_sizes(height, width):
                check_image_size(*size)
                assert 4 <= min(size) >> count_stages(*size) <= 7


@pytest.mark.parametrize(
    "wrong",
    [{"n_features": 0}, {"latent_vec_size": 0}, {"kl_weight": -1.0}, {"kl_weight": float("nan")}, {"max_features": 8}],
)
def test_a_number_out_of_range_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Vae(**wrong)  # type: ignore[arg-type]  # the wrong values are the point


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'huge'; expected one of auto, feature, both, reference, edge, nano"):
        preset_named("huge")


def test_an_architecture_survives_json() -> None:
    architecture = PRESETS["nano"].architecture("nano", 64, 96)
    assert Architecture.model_validate_json(architecture.model_dump_json()) == architecture


def test_a_network_made_from_weights_draws_nothing_and_is_the_same() -> None:
    architecture = Architecture(n_features=4, latent_vec_size=8, height=32, width=64)
    vae, x = Vae.from_architecture(architecture).eval(), torch.rand(2, 3, 32, 64)
    state = torch.get_rng_state()
    again = Vae.from_weights(architecture, vae.state_dict())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.reconstruct(x), vae.reconstruct(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Vae.from_weights(architecture.model_copy(update={"n_features": 8}), vae.state_dict())


class TestExtraLayers:
    """Convolutions that keep the size, as in GANomaly."""

    def with_extra(self, extra_layers: int = 2, n_channels: int = 3) -> Vae:
        torch.manual_seed(0)
        return Vae(4, 8, image_size=(32, 48), extra_layers=extra_layers, n_channels=n_channels)

    @pytest.mark.parametrize("n_channels", [1, 3])
    def test_an_image_comes_back_in_its_own_size(self, n_channels: int) -> None:
        output = self.with_extra(n_channels=n_channels)(torch.rand(2, n_channels, 32, 48))
        assert output.reconstruction.shape == (2, n_channels, 32, 48)
        assert output.mean.shape == output.log_variance.shape == (2, 8)

    def test_they_stand_behind_the_first_convolution_and_before_the_last(self) -> None:
        vae = self.with_extra()

        def kernels(layers: torch.nn.Sequential) -> list[int]:
            kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
            return [int(layer.kernel_size[0]) for layer in layers if isinstance(layer, kinds)]

        assert kernels(vae.features) == [4, 3, 3, 4, 4]
        assert kernels(vae.decoder) == [4, 4, 4, 3, 3, 4]
        # Encoder: LeakyReLU everywhere; decoder: ReLU everywhere.
        assert sum(isinstance(layer, torch.nn.LeakyReLU) for layer in vae.features) == 5
        assert sum(isinstance(layer, torch.nn.ReLU) for layer in vae.decoder) == 5

    @pytest.mark.parametrize("extra_layers", [1, 3])
    def test_each_adds_two_convolutions_with_their_batch_norms(self, extra_layers: int) -> None:
        plain, larger = self.with_extra(0), self.with_extra(extra_layers)
        each = 4 * 4 * 9 + 2 * 4
        assert count_parameters(larger) - count_parameters(plain) == 2 * extra_layers * each
        assert count_flops(larger) - count_flops(plain) == 2 * extra_layers * 2 * 4 * 4 * 9 * 16 * 24

    def test_every_parameter_gets_a_gradient(self) -> None:
        vae, x = self.with_extra(), torch.rand(4, 3, 32, 48)
        vae.loss(vae(x), x).total.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())

    def test_an_architecture_with_them_survives_json_and_makes_the_network(self) -> None:
        architecture = make_architecture("nano", (32, 48), n_features=4, latent_vec_size=8, extra_layers=2)
        assert architecture.extra_layers == 2
        again = Architecture.model_validate_json(architecture.model_dump_json())
        assert again == architecture
        vae = Vae.from_architecture(again).eval()
        x = torch.rand(2, 3, 32, 48)
        assert torch.equal(Vae.from_weights(again, vae.state_dict()).reconstruct(x), vae.reconstruct(x))
        with pytest.raises(RuntimeError, match="Unexpected key"):
            Vae.from_weights(again.model_copy(update={"extra_layers": 0}), vae.state_dict())

    def test_a_record_from_before_there_were_any_opens_and_is_the_network_that_it_was(self) -> None:
        record = '{"n_features": 4, "latent_vec_size": 8, "height": 32, "width": 48}'
        architecture = Architecture.model_validate_json(record)
        assert (architecture.extra_layers, architecture.n_channels) == (0, 3)
        assert Vae.from_architecture(architecture).state_dict().keys() == self.with_extra(0).state_dict().keys()

    @pytest.mark.parametrize("value", [-1, 17])
    def test_a_number_out_of_range_is_refused_by_name(self, value: int) -> None:
        with pytest.raises(InputError, match=f"extra_layers is {value}"):
            make_architecture("nano", (32, 48), extra_layers=value)
        with pytest.raises(InputError, match="extra_layers is -1; expected 0 or more"):
            self.with_extra(-1)
