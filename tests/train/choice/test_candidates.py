from __future__ import annotations

from vae_edge.train.choice.candidates import CANDIDATE_MAPS, CANDIDATES, MOST_FUSED
from vae_edge.train.model.scoring import DEFAULT_SCORING, MSE_SCORING, NORMALIZED_SCORING, Fusion, Latent


def test_every_fusion_of_up_to_three_maps_is_there_once() -> None:
    assert len(set(map(str, CANDIDATES))) == len(CANDIDATES)
    wanted = {frozenset(map(str, each.maps)) for each in CANDIDATES}
    assert {frozenset([str(each)]) for each in CANDIDATE_MAPS} <= wanted
    first = [str(each) for each in CANDIDATE_MAPS]
    assert frozenset(first[:2]) in wanted
    assert frozenset([first[0], first[4], first[-1]]) in wanted
    assert max(len(each.maps) for each in CANDIDATES) == MOST_FUSED


def test_the_default_comes_first_and_the_plain_ones_take_part() -> None:
    assert CANDIDATES[0] == DEFAULT_SCORING
    assert MSE_SCORING in CANDIDATES
    assert NORMALIZED_SCORING in CANDIDATES


def test_all_are_means_of_maps_since_the_choice_adds_up_their_scores() -> None:
    assert all(each.fusion is Fusion.MEAN and each.latent is Latent.NONE for each in CANDIDATES)
