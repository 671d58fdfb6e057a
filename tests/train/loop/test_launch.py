"""Which of several processes this is, and what is refused of devices, machines and jobs."""

from __future__ import annotations

import pytest

from vae_edge.errors import UsageError
from vae_edge.train.loop.launch import Place, check_jobs, check_place, launched, n_devices

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN.keys() | SLURM.keys():
        monkeypatch.delenv(name, raising=False)


def started_by(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Place | None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return launched()


def test_the_place_is_what_torchrun_or_slurm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() is None
    with monkeypatch.context() as patch:
        assert started_by(TORCHRUN, patch) == Place(5, 6, 1, 2, "torchrun")
    place = started_by(SLURM, monkeypatch)
    assert place == Place(5, 6, 1, 2, "srun")
    assert place.n_nodes == 3


def test_one_process_of_a_launcher_is_alone_and_so_is_a_script_of_sbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        assert started_by(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, patch) is None
    assert started_by({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, monkeypatch) is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (TORCHRUN | {"WORLD_SIZE": "many"}, "the environment variable WORLD_SIZE is 'many'"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "7"}, "srun started 7 processes.* the same number on each"),
    ],
)
def test_a_launcher_that_cannot_be_followed_is_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=message):
        started_by(variables, monkeypatch)


@pytest.mark.parametrize("devices", ["two", "1,x", "-1", "0", "", ",", "1.5"])
def test_devices_are_a_number_or_a_list(devices: str) -> None:
    with pytest.raises(UsageError, match=r"expected (auto, a number|1 or more)"):
        n_devices(devices)


def test_a_device_is_named_once() -> None:
    with pytest.raises(UsageError, match="names a device twice"):
        n_devices("0,0")


@pytest.mark.parametrize(
    ("devices", "num_nodes", "message"),
    [
        ("4", 1, "devices is 4, but torchrun started 2 processes on this machine"),
        ("auto", 2, "the number of nodes is 2, but torchrun started processes on 3"),
    ],
)
def test_other_numbers_than_those_of_the_launcher_are_refused(devices: str, num_nodes: int, message: str) -> None:
    place = Place(0, 6, 0, 2, "torchrun")
    check_place(place, "auto", 1)
    check_place(place, "0,1", 3)
    with pytest.raises(UsageError, match=message):
        check_place(place, devices, num_nodes)


@pytest.mark.parametrize(
    ("jobs", "n_processes", "n_folds", "message"),
    [
        (0, 1, 5, "the number of jobs is 0; expected 1 or more"),
        (6, 1, 5, "the number of jobs is 6, but there are 5 folds; expected 5 at most"),
        (2, 2, 5, "2 jobs were given along with 2 processes, which train a fold each"),
    ],
)
def test_jobs_that_cannot_be_are_refused(jobs: int, n_processes: int, n_folds: int, message: str) -> None:
    check_jobs(5, n_processes=1, n_folds=5)
    check_jobs(50, n_processes=1, n_folds=None)
    with pytest.raises(UsageError, match=message):
        check_jobs(jobs, n_processes=n_processes, n_folds=n_folds)
