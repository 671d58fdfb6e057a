"""The user's policy on signatures, which every opening obeys."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="it is in the extra [verify]")

from tests.signed_bundles import KeyPair, make_key, sign_by_hand
from tests.tiny_bundles import dark_image, make_bundle, write_image
from vae_edge import Bundle, BundleError, Detector, InputError
from vae_edge.signing.keys import trusted_keys
from vae_edge.signing.policy import config_folder, describe_policy, read_policy

Run = Callable[..., tuple[int, str, str]]


def write_policy(**content: Any) -> Path:
    folder = config_folder()
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "signing.json"
    path.write_text(json.dumps({"schema_version": 1, **content}))
    return path


@pytest.fixture
def vendor() -> KeyPair:
    folder = config_folder()
    assert folder is not None
    return make_key(folder)


def test_without_a_policy_nothing_is_demanded(onnx_bundle: Bundle) -> None:
    assert read_policy().trusted is None
    assert Bundle.open(onnx_bundle.folder).signature is None


def test_the_policy_lies_where_the_user_keeps_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAE_EDGE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_folder() == tmp_path / "vae-edge"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    if os.name == "posix":
        assert config_folder() == Path("/home/somebody/.config/vae-edge")


def test_every_opening_obeys_the_policy(onnx_bundle: Bundle, vendor: KeyPair) -> None:
    path = write_policy(trusted_keys=["vendor.pub.pem"])
    with pytest.raises(BundleError, match=r"is not signed: .* expected a signature by vendor\.pub\.pem"):
        Bundle.open(onnx_bundle.folder)
    with pytest.raises(BundleError, match="is not signed"):
        Detector.open(onnx_bundle.folder)
    with pytest.raises(BundleError, match="is not signed"):
        Bundle.open(onnx_bundle.folder, check_files=False)
    sign_by_hand(onnx_bundle.folder, vendor.key)
    opened = Bundle.open(onnx_bundle.folder)
    assert opened.signature is not None
    write_policy(trusted_keys=[str(vendor.public)])
    assert Bundle.open(onnx_bundle.folder).signature is not None
    path.unlink()
    assert Bundle.open(onnx_bundle.folder).signature is None


def test_a_policy_may_leave_it_at_signatures_that_are_there(onnx_bundle: Bundle, vendor: KeyPair) -> None:
    write_policy(only_signed=False, trusted_keys=["vendor.pub.pem"])
    assert Bundle.open(onnx_bundle.folder).signature is None
    sign_by_hand(onnx_bundle.folder, make_key(vendor.private.parent, "other").key)
    with pytest.raises(BundleError, match="was signed by another key"):
        Bundle.open(onnx_bundle.folder)


def test_a_key_of_the_command_line_does_not_replace_the_policys(onnx_bundle: Bundle, vendor: KeyPair) -> None:
    other = make_key(vendor.private.parent, "other")
    write_policy(trusted_keys=["vendor.pub.pem"])
    sign_by_hand(onnx_bundle.folder, other.key)
    with pytest.raises(BundleError, match=r"another key .* expected one by vendor\.pub\.pem"):
        Bundle.open(onnx_bundle.folder, trusted_keys=other.public)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read"),
        ('{"schema_version": 1, "trusted_key": []}', "trusted_key: Extra inputs are not permitted"),
        ("[]", "signing.json is damaged: signing: Input should be a valid object; correct it"),
        ('{"trusted_keys": "vendor.pub.pem"}', "trusted_keys: Input should be a valid list; correct it"),
        ('{"schema_version": 1}', "demands signatures (only_signed) and trusts nobody"),
        ('{"schema_version": 2, "trusted_keys": ["vendor.pub.pem"]}', "has schema 2, this vae-edge reads up to 1"),
        ('{"schema_version": 1, "trusted_keys": ["none.pem"]}', "none.pem cannot be read"),
        ('{"schema_version": 1, "trusted_keys": ["vendor.pem"]}', "vendor.pem holds a private key"),
        ('{"trusted_keys": ["vendor.pub.pem"], "trusted_refit_keys": ["none.pem"]}', "none.pem cannot be read"),
        ('{"trusted_keys": ["vendor.pub.pem"], "only_signed": "no"}', "only_signed: Input should be a valid boolean"),
        ('\ufeff{"trusted_keys": ["vendor.pub.pem"]}', "begins with a byte order mark; expected UTF-8 without one"),
    ],
)
def test_a_policy_that_cannot_be_used_is_an_error_and_never_none(
    onnx_bundle: Bundle, vendor: KeyPair, content: str, sentence: str
) -> None:
    path = write_policy()
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as told:
        Bundle.open(onnx_bundle.folder)
    assert sentence in str(told.value)


@pytest.mark.skipif(os.name != "posix", reason="this system has no such modes")
def test_a_policy_that_everybody_can_change_is_refused(onnx_bundle: Bundle, vendor: KeyPair) -> None:
    write_policy(trusted_keys=["vendor.pub.pem"]).chmod(0o666)
    with pytest.raises(InputError, match=r"every user can change the policy .* run: chmod o-w"):
        Bundle.open(onnx_bundle.folder)


@pytest.mark.skipif(os.name != "posix", reason="this system has no such modes")
@pytest.mark.parametrize(("name", "mode"), [("", 0o777), ("vendor.pub.pem", 0o646), ("refit.pub.pem", 0o666)])
def test_what_a_policy_rests_on_must_not_be_open_to_everybody(
    onnx_bundle: Bundle, vendor: KeyPair, name: str, mode: int
) -> None:
    folder = vendor.public.parent
    make_key(folder, "refit")
    write_policy(trusted_keys=["vendor.pub.pem"], trusted_refit_keys=["refit.pub.pem"])
    sign_by_hand(onnx_bundle.folder, vendor.key)
    before = (folder / name).stat().st_mode
    (folder / name).chmod(mode)
    with pytest.raises(InputError, match=r"every user can change .* run: chmod o-w"):
        Bundle.open(onnx_bundle.folder)
    (folder / name).chmod(before)
    assert Bundle.open(onnx_bundle.folder).signature is not None
    folder.chmod(0o1777)  # As /tmp: nobody can exchange the files of others there.
    assert Bundle.open(onnx_bundle.folder).signature is not None
    folder.chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="links need a permission there")
def test_a_policy_whose_target_is_gone_is_not_no_policy(onnx_bundle: Bundle, vendor: KeyPair) -> None:
    path = write_policy(trusted_keys=["vendor.pub.pem"])
    path.unlink()
    path.symlink_to("not-mounted/signing.json")
    with pytest.raises(InputError, match=r"it is a link to not-mounted/signing\.json, which is not there"):
        Bundle.open(onnx_bundle.folder)


def test_a_configuration_that_is_a_file_or_not_there_is_not_no_policy(
    onnx_bundle: Bundle, vendor: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_policy(trusted_keys=["vendor.pub.pem"])
    monkeypatch.setenv("VAE_EDGE_CONFIG", str(path))
    with pytest.raises(InputError, match=r"VAE_EDGE_CONFIG is .*, which is not a folder; expected the folder of"):
        Bundle.open(onnx_bundle.folder)
    monkeypatch.setenv("VAE_EDGE_CONFIG", str(path.parent) + "x")
    with pytest.raises(InputError, match=r"VAE_EDGE_CONFIG is .*, which is not there; .*: make it, or unset"):
        Bundle.open(onnx_bundle.folder)


def test_every_command_obeys_the_policy(command: Run, onnx_bundle: Bundle, vendor: KeyPair, tmp_path: Path) -> None:
    picture = write_image(tmp_path / "normals" / "0.png", dark_image(0))
    bundle = onnx_bundle.folder
    write_policy(trusted_keys=["vendor.pub.pem"])
    for arguments in (
        ("run", bundle, picture),
        ("inspect", bundle),
        ("verify", bundle),
        ("verify", bundle, "--data", picture.parent),
        ("export", bundle, "--layout", "triton", "--out", tmp_path / "triton"),
    ):
        if arguments[0] == "export":
            pytest.importorskip("torch")
        code, _, err = command(*arguments)
        assert code == 1, arguments
        assert "is not signed: it has no model.sig" in err, arguments
    sign_by_hand(bundle, vendor.key)
    code, out, _ = command("inspect", bundle)
    assert code == 0
    assert "signed by the key vendor.pub.pem (SHA-256 " in " ".join(out.split())


def test_a_server_and_a_selfcheck_obey_the_policy_before_anything_is_loaded(
    onnx_bundle: Bundle, vendor: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vae_edge.cli.serve import _opened
    from vae_edge.selfcheck import bundle_check

    write_policy(trusted_keys=["vendor.pub.pem"])
    arguments = {"folder": str(onnx_bundle.folder), "device": "cpu", "minutes": 0.01, "state": "state.npz"}
    monkeypatch.setattr(bundle_check, "build", lambda *arguments: pytest.fail("TensorRT got the file"))
    for step in (bundle_check.check_references, bundle_check.check_start, bundle_check.time_verdicts):
        with pytest.raises(BundleError, match="is not signed"):
            step(arguments)
    with pytest.raises(BundleError, match="is not signed"):
        bundle_check.build_only(arguments)
    with pytest.raises(BundleError, match="is not signed"):
        bundle_check.soak(arguments, lambda result: None)
    with pytest.raises(BundleError, match="is not signed"):
        _opened([onnx_bundle.folder], None)
    sign_by_hand(onnx_bundle.folder, vendor.key)
    assert bundle_check.check_references(arguments).reason is None
    other = make_key(vendor.private.parent, "other")
    with pytest.raises(BundleError, match="was signed by another key"):
        _opened([onnx_bundle.folder], trusted_keys(other.public))


def test_the_bundles_of_the_selfcheck_itself_need_no_signature(tmp_path: Path) -> None:
    from vae_edge.selfcheck.steps import Plan

    variables = Plan([], [], tmp_path, 0.0)._cache("cache")
    assert list(Path(variables["VAE_EDGE_CONFIG"]).iterdir()) == []


def test_a_worker_process_obeys_the_policy(onnx_bundle: Bundle, vendor: KeyPair) -> None:
    sign_by_hand(onnx_bundle.folder, vendor.key)
    with Detector.open(onnx_bundle.folder, hint="latency") as detector:  # Nobody demands anything yet.
        write_policy(trusted_keys=["vendor.pub.pem"])
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            assert pool.submit(judge, detector).result(timeout=60) is False
        (onnx_bundle.folder / "notes.txt").write_text("x")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            refused = pool.submit(judge, detector)
            # A worker ends if what it was sent cannot be opened; why is on its standard error.
            with pytest.raises(BrokenProcessPool):
                refused.result(timeout=60)


def judge(detector: Detector) -> bool:
    return detector.predict(dark_image(0)).is_anomalous


def test_doctor_says_what_is_demanded(vendor: KeyPair) -> None:
    make_key(vendor.public.parent, "technician")
    assert describe_policy() == "demanded of no bundle"
    path = write_policy(trusted_keys=["vendor.pub.pem"], trusted_refit_keys=["technician.pub.pem"])
    assert describe_policy() == (
        f"demanded of every bundle, by vendor.pub.pem ({path}); re-fits of others: technician.pub.pem"
    )
    write_policy(trusted_keys=["vendor.pub.pem"], only_signed=False)
    assert describe_policy() == f"checked where there are any, by vendor.pub.pem ({path})"
    path.write_text("{")
    assert describe_policy().startswith("no bundle can be opened: the policy ")


def test_what_was_made_here_is_published_whatever_the_policy_says(vendor: KeyPair, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_policy(trusted_keys=["vendor.pub.pem"])
    with pytest.raises(BundleError, match="is not signed"):
        make_bundle(tmp_path / "toy")  # It ends with Bundle.open, as a program would.
    assert Bundle.open(tmp_path / "toy", obeys_policy=False).manifest.verified
