from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.train.tiny_models import make_vae, noise
from vae_edge.errors import InputError
from vae_edge.train.data.grouping import Grouping
from vae_edge.train.data.inspection_set import ImageFile
from vae_edge.train.data.split import Fold, Split
from vae_edge.train.model.anomaly_graph import AnomalyGraph, ScoringConstants, run_graph
from vae_edge.train.model.scoring import MSE_SCORING
from vae_edge.train.run.calibration import Division, calibrate


def files(prefix: str, n: int, defect: str | None = None) -> tuple[ImageFile, ...]:
    return tuple(
        ImageFile(Path(f"{prefix}{i}.png"), f"{prefix}{i}.png", f"{ord(prefix[0]):02x}{i:062x}", defect)
        for i in range(n)
    )


FIT, STATISTICS, THRESHOLD = files("a", 4), files("b", 2), files("c", 6)
PAIRS = Grouping({image.sha256: f"part {i // 2}" for i, image in enumerate(THRESHOLD)})


class TestADivision:
    DIVISION = Division(Split(FIT, STATISTICS, THRESHOLD), PAIRS)

    def test_the_first_picture_of_each_held_out_part_judges(self) -> None:
        assert self.DIVISION.judges == (THRESHOLD[0], THRESHOLD[2], THRESHOLD[4])
        assert self.DIVISION.n_parts == 3

    def test_its_record_has_every_picture_with_its_role_and_its_part(self) -> None:
        test, choice = files("d", 2, "hole"), files("e", 1, "hole")
        record = self.DIVISION.record(test, choice)
        assert record.counts() == {"fit": 4, "statistics": 2, "threshold": 6, "choice": 1, "test": 2}
        assert [each.group for each in record.of("threshold")] == [PAIRS.part(image) for image in THRESHOLD]
        assert {each.group for each in record.of("fit", "test")} == {None}

    def test_with_folds_all_good_parts_set_the_thresholds(self) -> None:
        division = Division(Split(FIT, STATISTICS, ()), Grouping(), (Fold(FIT, (), STATISTICS),))
        assert division.setting_thresholds == (*FIT, *STATISTICS)
        assert (division.judges, division.n_parts) == ((), 6)

    @pytest.mark.parametrize(("rate", "is_said"), [(0.01, True), (0.5, False)])
    def test_few_parts_are_spoken_of_where_the_rate_needs_more(self, rate: float, is_said: bool) -> None:
        assert ("show 3 different parts" in (self.DIVISION.shortage(rate) or "")) is is_said


class TestThresholds:
    GRAPH = AnomalyGraph(make_vae(), MSE_SCORING, ScoringConstants.neutral(MSE_SCORING))

    def test_they_stand_on_the_scores_of_the_images_in_their_order(self) -> None:
        images = noise(len(THRESHOLD))
        record = calibrate(
            self.GRAPH, THRESHOLD, images, false_alarm_rate=0.2, pixel_false_positive_rate=0.01, progress=None
        )
        scores = run_graph(self.GRAPH, images)[1]
        assert [(each.name, each.score) for each in record.scores] == [
            (image.name, float(score)) for image, score in zip(THRESHOLD, scores, strict=True)
        ]
        assert float(np.mean(scores > record.thresholds.image_threshold)) <= 0.2

    def test_without_an_image_there_are_none(self) -> None:
        with pytest.raises(InputError):
            calibrate(self.GRAPH, (), noise(0), false_alarm_rate=0.2, pixel_false_positive_rate=0.01)
