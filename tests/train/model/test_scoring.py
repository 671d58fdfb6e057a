from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from vae_edge.errors import UsageError
from vae_edge.records import make_record
from vae_edge.train.choice.candidates import CANDIDATES
from vae_edge.train.model.scoring import (
    DEFAULT_SCORING,
    MAX_MAPS,
    MSE_SCORING,
    NAMED_SCORINGS,
    NORMALIZED_SCORING,
    Fusion,
    Latent,
    Level,
    MapSettings,
    Pooling,
    Residual,
    ScoringSettings,
    parse_scoring,
)

MADE_UP = [
    ScoringSettings(maps=(MapSettings(residual=residual, level=level, per_pixel=per_pixel, pooling=pooling),))
    for residual in Residual
    for level in Level
    for per_pixel in (False, True)
    for pooling in Pooling
]
WITH_LATENTS = [
    ScoringSettings(maps=DEFAULT_SCORING.maps[:n], fusion=fusion, latent=latent)
    for n in (1, 2)
    for fusion in Fusion
    for latent in Latent
]


@pytest.mark.parametrize("settings", [*CANDIDATES, *MADE_UP, *WITH_LATENTS], ids=str)
def test_a_composition_is_read_back_from_its_own_text(settings: ScoringSettings) -> None:
    assert parse_scoring(str(settings)) == settings


@pytest.mark.parametrize("name", NAMED_SCORINGS)
def test_a_name_is_a_composition(name: str) -> None:
    assert parse_scoring(f" {name.upper()} ") == NAMED_SCORINGS[name]
    assert "\n" not in NAMED_SCORINGS[name].describe()


def test_auto_is_no_composition_but_a_question() -> None:
    assert parse_scoring("Auto") is None


def test_spaces_and_capitals_do_not_matter() -> None:
    spoken = parse_scoring(" L2/0.016/IMAGE+pixel/TOP0.5% , Latent , fusion=MAX")
    assert str(spoken) == "l2/0.016/image+pixel/top0.5%,latent,fusion=max"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' of the scoring '' has 1 part between slashes"),
        ("best", "'best' of the scoring 'best' has 1 part between slashes"),
        ("auto,mse", "'auto' of the scoring"),
        ("latent", "the scoring 'latent' has no map"),
        ("fusion=max", "the scoring 'fusion=max' has no map"),
        ("l3/0/none/mean", f"the residual 'l3' .* is not known; expected one of {', '.join(map(str, Residual))}"),
        ("l1/wide/none/mean", "the smoothing 'wide' .* is not a number"),
        ("l1//none/mean", "the smoothing '' .* is not a number"),
        ("l1/0.5/none/mean", "smoothing_sigma is 0.5: input should be less than or equal to 0.1"),
        ("l1/-1/none/mean", "smoothing_sigma is -1.0"),
        ("l1/nan/none/mean", "smoothing_sigma is nan"),
        ("l1/0/global/mean", "the normalization 'global' .* expected one of none, image, local, pixel"),
        ("l1/0//mean", "the normalization '' .* is not known"),
        ("l1/0/image+local/mean", "the normalization 'image\\+local' .* repeats a part"),
        ("l1/0/pixel+pixel/mean", "the normalization 'pixel\\+pixel' .* repeats a part"),
        ("l1/0/none/median", "the pooling 'median' .* expected mean, max or top0.5%"),
        ("l1/0/none/top5", "the pooling 'top5'"),
        ("l1/0/none/top0%", "top_fraction is 0.0"),
        ("l1/0/none/top101%", "top_fraction is 1.01"),
        ("l1/0/none", "'l1/0/none' .* has 3 parts"),
        ("l1/0/none/mean,", "'' of the scoring"),
        ("l1/0/none/mean,l1/0/none/mean", "names a map twice"),
        ("l1/0/none/mean,l1/0.0/none/mean", "names a map twice"),
        ("l1/0/none/mean,fusion=sum", "the fusion 'sum' .* expected one of mean, max"),
        ("l1/0/none/mean,map=wide", "the smoothing of the map 'wide'"),
        ("l1/0/none/mean,latent,kl", "the scoring .* has two terms from the latents"),
        ("l1/0/none/mean,fusion=max,fusion=mean", "the scoring .* says more than once how its parts are fused"),
        (",".join(f"l1/0.0{i}/none/mean" for i in range(1, MAX_MAPS + 2)), "maps is"),
    ],
)
def test_a_malformed_composition_is_refused_in_one_sentence_that_names_the_word(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_scoring(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"residual": "mad"},
        {"smoothing_sigma": -1},
        {"smoothing_sigma": 0.2},
        {"top_fraction": 0},
        {"top_fraction": 1.1},
        {"colour": 1},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MapSettings.model_validate(values)


def test_a_scoring_without_a_map_is_refused() -> None:
    with pytest.raises(UsageError, match="maps is"):
        make_record(ScoringSettings, {"maps": ()})


def test_what_needs_normals_is_what_is_normalized_by_them_or_fused() -> None:
    plain = MapSettings(per_pixel=False)
    assert not MSE_SCORING.needs_normals
    assert NORMALIZED_SCORING.needs_normals
    assert not NORMALIZED_SCORING.is_fused
    assert not ScoringSettings(maps=(plain,)).needs_normals
    fused = ScoringSettings(maps=(plain, MapSettings(residual=Residual.L2, per_pixel=False)))
    assert fused.is_fused
    assert fused.needs_normals
    assert ScoringSettings(maps=(plain,), latent=Latent.KL).is_fused


def test_a_description_tells_every_part() -> None:
    assert MSE_SCORING.describe() == "squared residual, averaged over the image"
    described = parse_scoring("ssim/0.016/local+pixel/top0.5%,l1/0/image/max,latent,fusion=max")
    assert described is not None
    assert described.describe().split("; ") == [
        "maximum of 3 parts in units of held-out normals: (1) structural dissimilarity, smoothed by a Gaussian of "
        "0.016 of the shorter side, divided by its mean around the pixel, normalized per pixel by held-out normals, "
        "mean of the largest 0.500%",
        "(2) absolute residual, divided by its mean over the image, its maximum",
        "(3) distance of the latents from those of normals",
    ]
    assert len({each.describe() for each in CANDIDATES}) == len(CANDIDATES)


def test_settings_survive_json() -> None:
    for settings in WITH_LATENTS:
        assert ScoringSettings.model_validate_json(settings.model_dump_json()) == settings


def test_compositions_load_no_torch() -> None:
    modules = ", ".join(
        f"vae_edge.train.{name}"
        for name in ("choice.candidates", "choice.image_size", "model.input_settings", "run.records")
    )
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
