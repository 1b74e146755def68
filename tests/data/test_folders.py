"""Folders of pictures: every layout, and every picture that is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from admm_lip.data import DataError, load_data
from admm_lip.data.dataset import DataSet

RANDOM = np.random.default_rng(0)


def picture(path: Path, shape: tuple[int, ...] = (5, 4, 3)) -> np.ndarray:
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def load(folder: Path) -> DataSet:
    return load_data(f"images:{folder}")


def filled(root: Path, per_class: int = 5) -> dict[str, np.ndarray]:
    """A folder per class; what was written, by the files' names."""
    return {
        f"{label}{k}.png": picture(root / label / f"{label}{k}.png")
        for label in ("cat", "ant")
        for k in range(per_class)
    }


def test_pixels_classes_and_shape_come_back(tmp_path: Path) -> None:
    want = filled(tmp_path / "train")
    test = filled(tmp_path / "val", 2)
    data = load(tmp_path)
    assert (data.shape, data.n_classes, data.input_range) == ((3, 5, 4), 2, (0.0, 1.0))
    assert data.train[1].tolist() == [0] * 5 + [1] * 5
    ordered = [want[name] for name in sorted(want)]
    pixels = (data.as_images().train[0] * 255.0).round().byte().permute(0, 2, 3, 1)
    assert np.array_equal(pixels.numpy(), np.stack(ordered))
    assert np.allclose(data.as_images().test[0][0, 1], test["ant0.png"][:, :, 1] / 255.0)


def test_a_fifth_is_held_out_where_nothing_is(tmp_path: Path) -> None:
    filled(tmp_path)
    data = load(tmp_path)
    assert (len(data.train[1]), len(data.test[1])) == (8, 2)
    rows = torch.cat([data.train[0], data.test[0]])
    assert len(rows.unique(dim=0)) == 10
    assert torch.equal(load(tmp_path).test[0], data.test[0])


def test_the_layout_of_tinyimagenet(tmp_path: Path) -> None:
    for label in ("n01", "n02"):
        for k in range(2):
            picture(tmp_path / "train" / label / "images" / f"{label}_{k}.JPEG")
        (tmp_path / "train" / label / f"{label}_boxes.txt").write_text("0\t0\t3\t3\n")
    picture(tmp_path / "test" / "images" / "test_0.JPEG")  # handed out without labels
    values = [picture(tmp_path / "val" / "images" / f"val_{k}.png", (5, 4, 3)) for k in range(2)]
    lines = ["val_0.png\tn02\t0\t0\t3\t3", "val_1.png\tn01\t0\t0\t3\t3"]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    data = load(tmp_path)
    assert data.train[1].tolist() == [0, 0, 1, 1]
    assert data.test[1].tolist() == [1, 0]
    assert np.allclose(data.as_images().test[0][0, 0], values[0][:, :, 0] / 255.0)


def test_grey_pictures_stay_grey_and_join_coloured_ones(tmp_path: Path) -> None:
    for label in "ab":
        for k in range(3):
            picture(tmp_path / label / f"{k}.png", (5, 4))
    assert load(tmp_path).shape == (1, 5, 4)
    picture(tmp_path / "b" / "9.png")
    data = load(tmp_path).as_images()
    assert data.shape == (3, 5, 4)
    pictures = torch.cat([data.train[0], data.test[0]])
    equal = (pictures[:, 0] == pictures[:, 1]).flatten(1).all(dim=1)
    assert int(equal.sum()) == 6


def spoil(root: Path) -> dict[str, tuple[str, object]]:
    """What is done to a good folder, and what is said of it."""
    path = root / "train" / "ant" / "zz.png"
    wide = np.zeros((5, 4), np.uint16)
    return {
        "size": (
            "expected 5 x 4 pixels like ant0.png, got 6 x 4",
            lambda: picture(path, (6, 4, 3)),
        ),
        "deep": ("zz.png: expected grey .* of 8 bits", lambda: Image.fromarray(wide).save(path)),
        "clear": ("zz.png: expected grey .* got mode 'RGBA'", lambda: picture(path, (5, 4, 4))),
        "large": ("at most 1024 pixels a side, got 1100 x 4", lambda: picture(path, (4, 1100, 3))),
        "damaged": (
            "zz.png: cannot be read as a picture",
            lambda: path.write_bytes((root / "train/ant/ant0.png").read_bytes()[:60]),
        ),
        "no picture": ("zz.png: cannot be read", lambda: path.write_text("<svg/>")),
        "stranger": (
            "class 'bee', which has no training",
            lambda: picture(root / "val" / "bee" / "1.png"),
        ),
        "list": (
            "val_annotations.txt, line 1: expected a file name and a class, got '../x.png ant'",
            lambda: (root / "val" / "val_annotations.txt").write_text("../x.png ant\n"),
        ),
        "listed": (
            "no.png: there is no such file, though it is listed",
            lambda: (root / "val" / "val_annotations.txt").write_text("no.png ant\n"),
        ),
    }


@pytest.mark.parametrize("name", spoil(Path()))
def test_what_cannot_be_used_is_named(name: str, tmp_path: Path) -> None:
    filled(tmp_path / "train")
    filled(tmp_path / "val", 1)
    message, act = spoil(tmp_path)[name]
    act()  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_folders_without_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none does not exist"):
        load(tmp_path / "none")
    with pytest.raises(DataError, match="at least 2 classes, found none"):
        load(tmp_path)
    filled(tmp_path / "train")
    with pytest.raises(DataError, match=r"expected pictures to test on in test/<class>/"):
        load(tmp_path)


def test_pixels_outside_the_stated_range_are_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    data = load(tmp_path)
    x, y = data.train
    with pytest.raises(DataError, match=r"train: expected pixels in \[0, 1\], got values from"):
        replace(data, train=(x * 255.0, y))
