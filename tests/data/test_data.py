import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from admm_lip.data import DataError, DataSet, TableOptions, check_pair, data_names, load_data
from admm_lip.data.cifar import decode
from admm_lip.data.idx import read_idx

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
IMAGE_SETS = {
    # name: folder, features, mean pixel of the training set as commonly published
    "mnist": ("MNIST", 784, 0.1307),
    "mnist14": ("MNIST", 196, 0.1307),
    "fashion": ("FashionMNIST", 784, 0.2860),
}


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.astype(np.uint8).tobytes()
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as stream:
        stream.write(content)


def write_mnist(root: Path, suffix: str = ".gz", count: int = 6) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28))
    for part in ("train", "t10k"):
        write_idx(root / f"MNIST/raw/{part}-images-idx3-ubyte{suffix}", pixels)
        write_idx(root / f"MNIST/raw/{part}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    return pixels


def labelled(x: torch.Tensor, y: torch.Tensor, n_classes: int = 3) -> DataSet:
    return DataSet((x, y), (x, y), "made", "classification", n_classes, (0.0, 1.0), x.shape[1:])


class TestSmallSets:
    def test_digits_are_all_there_scaled_and_disjoint(self):
        data = load_data("digits")
        rows = torch.cat([data.train[0], data.test[0]])
        assert rows.shape == (1797, 64)
        assert (rows.min().item(), rows.max().item()) == (0.0, 1.0)
        assert len(data.test[1]) == 360
        # Every digit is frequent on both sides: the file's order was shuffled away.
        assert data.train[1].bincount().min() > 120
        assert data.test[1].bincount(minlength=10).min() > 20

    def test_digits_are_scikit_learns(self):
        theirs = pytest.importorskip("sklearn.datasets").load_digits()
        data = load_data("digits")
        x, y = (torch.cat(sides) for sides in zip(data.train, data.test, strict=True))
        ours = torch.column_stack([x * 16, y])
        both = [np.column_stack([theirs.data, theirs.target]), ours.double().numpy()]
        assert np.array_equal(*(rows[np.lexsort(rows.T)] for rows in both))

    def test_digits_are_the_same_at_every_load(self):
        a, b = load_data("digits"), load_data("digits")
        assert torch.equal(a.test[0], b.test[0])
        assert torch.equal(a.train[1], b.train[1])

    def test_toy2d_labels_follow_the_circles(self):
        data = load_data("toy2d")
        for x, y in (data.train, data.test):
            radius = (x.double() - 0.5).norm(dim=1)
            clear = ((radius - 0.2).abs() > 1e-6) & ((radius - 0.4).abs() > 1e-6)
            want = (radius <= 0.4).long() + (radius <= 0.2).long()
            assert torch.equal(y[clear], want[clear])
        assert data.train[0].shape == (50, 2)
        assert data.test[0].shape == (5000, 2)
        # Areas of the test classes: the circles' own, to sampling error.
        areas = data.test[1].bincount() / 5000
        assert areas[2].item() == pytest.approx(np.pi * 0.04, abs=0.02)
        assert areas[1].item() == pytest.approx(np.pi * 0.12, abs=0.02)

    def test_toy2d_draws_first_coordinates_first(self):
        draw = np.random.RandomState(1612111977)
        first = draw.uniform(0, 1, 50).astype(np.float32)
        assert np.array_equal(load_data("toy2d").train[0][:, 0].numpy(), first)

    def test_unknown_name_offers_the_near_one(self):
        with pytest.raises(
            DataError, match=r"digits, toy2d.*csv:FILE or images:FOLDER, got 'minst'.*mean 'mnist'"
        ):
            load_data("minst")

    def test_every_name_has_a_loader(self):
        assert set(data_names()) == {"digits", "toy2d", "mnist14", "mnist", "fashion", "cifar10"}


class TestIdx:
    @pytest.mark.parametrize("suffix", [".gz", ""])
    def test_both_spellings_give_the_pixels(self, tmp_path, suffix):
        pixels = write_mnist(tmp_path, suffix)
        x, y = load_data("mnist", tmp_path).train
        assert np.array_equal((x * 255).round().numpy(), pixels.reshape(6, 784))
        assert y.tolist() == list(range(6))

    def test_mnist14_averages_two_by_two(self, tmp_path):
        pixels = write_mnist(tmp_path)
        data = load_data("mnist14", tmp_path)
        want = pixels.reshape(6, 14, 2, 14, 2).mean(axis=(2, 4)) / 255.0
        assert np.allclose(data.as_images().train[0].squeeze(1).numpy(), want, atol=1e-6)
        assert data.shape == (1, 14, 14)

    def test_the_environment_names_the_folder(self, tmp_path, monkeypatch):
        write_mnist(tmp_path)
        monkeypatch.setenv("ADMM_LIP_DATA", str(tmp_path))
        assert load_data("mnist").n_features == 784

    def test_missing_set_names_folder_and_files(self, tmp_path):
        with pytest.raises(DataError) as error:
            load_data("fashion", tmp_path)
        message = str(error.value)
        assert str(tmp_path / "FashionMNIST/raw") in message
        assert "train-images-idx3-ubyte.gz" in message
        assert "--data-dir or $ADMM_LIP_DATA" in message

    def test_truncated_gzip_says_fetch_again(self, tmp_path):
        write_mnist(tmp_path)
        path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match=r"t10k-images.*cannot be read.*fetch the file again"):
            load_data("mnist", tmp_path)

    def test_short_data_is_counted(self, tmp_path):
        path = tmp_path / "short"
        path.write_bytes(bytes((0, 0, 8, 1)) + struct.pack(">I", 5) + b"abc")
        with pytest.raises(DataError, match=r"expected 5 bytes of data for shape \(5,\), got 3"):
            read_idx(path)

    @pytest.mark.parametrize("content", [b"", b"PNG!", bytes((0, 0, 13, 1)), bytes((0, 0, 8, 3))])
    def test_other_formats_are_refused(self, tmp_path, content):
        path = tmp_path / "other"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"IDX"):
            read_idx(path)

    def test_label_out_of_range_is_named(self, tmp_path):
        write_mnist(tmp_path)
        labels = np.array([0, 1, 2, 12, 4, 5])
        write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte.gz", labels)
        with pytest.raises(
            DataError, match=r"labels: expected integers in 0\.\.9, got 12 in row 3"
        ):
            load_data("mnist", tmp_path)

    @pytest.mark.parametrize("name", IMAGE_SETS)
    def test_the_real_sets(self, name):
        folder, features, mean = IMAGE_SETS[name]
        if not (SHARED / folder).is_dir():
            pytest.skip(f"{SHARED / folder} is not there")
        data = load_data(name, SHARED)
        assert data.train[0].shape == (60000, features)
        assert data.test[0].shape == (10000, features)
        assert data.train[0].mean().item() == pytest.approx(mean, abs=1e-4)
        assert data.test[1].bincount(minlength=10).min() > 800


class TestCifar:
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        out = pixels.copy()
        out[:, 0] -= out[:, 1]
        out[:, 2] -= out[:, 1]
        left = np.diff(out, axis=3, prepend=np.zeros_like(out[:, :, :, :1]))
        return np.diff(left, axis=2, prepend=np.zeros_like(left[:, :, :1]))

    def pixels(self, count: int = 4) -> np.ndarray:
        return np.random.default_rng(1).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)

    def test_decode_undoes_the_differences(self):
        assert np.array_equal(decode(self.encode(self.pixels())), self.pixels())

    def test_npz_and_binary_layouts_agree(self, tmp_path):
        pixels, labels = self.pixels(), np.arange(4, dtype=np.uint8)
        coded = tmp_path / "a" / "CIFAR10"
        plain = tmp_path / "b" / "cifar-10-batches-bin"
        coded.mkdir(parents=True)
        plain.mkdir(parents=True)
        rows = np.concatenate([labels[:, None], pixels.reshape(4, -1)], axis=1)
        for npz, raw in (("train_1", "data_batch_1"), ("test", "test_batch")):
            np.savez(coded / f"{npz}.npz", d=self.encode(pixels), y=labels)
            rows.tofile(plain / f"{raw}.bin")
        a, b = load_data("cifar10", tmp_path / "a"), load_data("cifar10", tmp_path / "b")
        assert torch.equal(a.train[0], b.train[0])
        assert np.array_equal((a.as_images().test[0] * 255).round().numpy(), pixels)

    def test_pickled_batches_are_refused_and_named_pickles(self, tmp_path):
        (tmp_path / "cifar-10-batches-py").mkdir()
        with pytest.raises(DataError, match=r"pickles.*never read.*binary release"):
            load_data("cifar10", tmp_path)

    def test_an_archive_with_objects_is_refused(self, tmp_path):
        (tmp_path / "CIFAR10").mkdir()
        for name in ("train_1", "test"):
            path = tmp_path / "CIFAR10" / f"{name}.npz"
            np.savez(path, x=np.array([{}], dtype=object), y=np.zeros(1, np.uint8))
        with pytest.raises(DataError, match=r"expected a NumPy archive with uint8 arrays"):
            load_data("cifar10", tmp_path)

    def test_the_real_set(self):
        if not (SHARED / "CIFAR10").is_dir():
            pytest.skip(f"{SHARED / 'CIFAR10'} is not there")
        data = load_data("cifar10", SHARED).as_images()
        assert data.test[0].shape == (10000, 3, 32, 32)
        assert data.test[1].bincount().tolist() == [1000] * 10
        means = data.train[0].mean(dim=(0, 2, 3))
        assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-3)


class TestTable:
    def write(self, tmp_path: Path, text: str) -> str:
        path = tmp_path / "table.csv"
        path.write_text(text, encoding="utf-8")
        return f"csv:{path}"

    def test_columns_are_standardised_on_training_rows(self, tmp_path):
        rng = np.random.default_rng(0)
        rows = rng.normal(3.0, 5.0, (40, 3))
        text = "a,b,c\n" + "\n".join(",".join(map(repr, map(float, row))) for row in rows)
        data = load_data(self.write(tmp_path, text))
        x = data.train[0]
        assert data.task == "regression"
        assert data.n_outputs == 1
        assert x.shape == (32, 2)
        assert torch.allclose(x.mean(dim=0), torch.zeros(2), atol=1e-5)
        assert torch.allclose(x.std(dim=0, correction=0), torch.ones(2), atol=1e-4)
        assert data.units.input_names == ("a", "b")
        assert data.units.output_names == ("c",)
        raw = data.units.from_model(torch.cat([data.train[1], data.test[1]]))
        assert np.allclose(np.sort(raw.flatten()), np.sort(rows[:, 2]), atol=1e-4)

    def test_several_targets_and_a_dropped_index(self, tmp_path):
        rng = np.random.default_rng(0)
        rows = rng.normal(3.0, 5.0, (40, 4)) * (1.0, 1.0, 1e5, 1e-5)
        lines = [",".join([str(i), *map(repr, map(float, row))]) for i, row in enumerate(rows)]
        name = self.write(tmp_path, "id,a,b,t1,t2\n" + "\n".join(lines))
        for target in ("t1,t2", ("t1", "t2"), (3, "t2"), "3, 4", [3, -1]):
            data = load_data(name, table=TableOptions(target=target, drop="id"))
            assert data.n_outputs == 2
            assert (data.units.input_names, data.units.output_names) == (("a", "b"), ("t1", "t2"))
            assert data.dropped == ("id",)
            raw = data.units.from_model(torch.cat([data.train[1], data.test[1]]))
            assert np.allclose(np.sort(raw, axis=0), np.sort(rows[:, 2:], axis=0), rtol=1e-4)

    def test_a_name_with_a_comma_is_one_column(self, tmp_path):
        text = '"price, net",b\n' + "".join(f"{i},{-i}\n" for i in range(10))
        data = load_data(self.write(tmp_path, text), table=TableOptions(target="price, net"))
        assert data.units.input_names == ("b",)

    def test_a_large_offset_costs_no_digits(self, tmp_path):
        text = "a,b\n" + "".join(f"{1e9 + i},{i}\n" for i in range(10))
        data = load_data(self.write(tmp_path, text))
        x = torch.cat([data.train[0], data.test[0]])
        assert np.allclose(
            np.sort(data.units.input_scale[0] * x.flatten().numpy()),
            np.sort([1e9 + i - data.units.input_shift[0] for i in range(10)]),
            atol=1e-5,
        )

    def test_targets_by_name_and_by_number(self, tmp_path):
        name = self.write(tmp_path, "t,u,v\n" + "".join(f"{i},{i * i},{-i}\n" for i in range(10)))
        by_name = load_data(name, table=TableOptions(target="t"))
        by_number = load_data(name, table=TableOptions(target=0))
        assert torch.equal(by_name.train[1], by_number.train[1])

    def test_words_become_sorted_classes(self, tmp_path):
        lines = [f"{i}.5;{'cat' if i % 2 else 'ant'}" for i in range(10)]
        data = load_data(
            self.write(tmp_path, "\n".join(lines)), table=TableOptions(task="classification")
        )
        assert data.n_classes == 2
        x = data.train[0].double() * data.units.input_scale[0] + data.units.input_shift[0]
        assert torch.equal((x[:, 0] - 0.5).round().long() % 2, data.train[1])
        assert data.units.classes == ("ant", "cat")

    def test_a_constant_column_becomes_zero(self, tmp_path):
        text = "a,b,c\n" + "".join(f"0.1,{i},{i}\n" for i in range(10))
        assert load_data(self.write(tmp_path, text)).train[0][:, 0].abs().max() < 1e-12

    @pytest.mark.parametrize(
        ("text", "options", "message"),
        [
            ("", {}, "is empty"),
            ("a,b\n1,2\n3\n", {}, r"line 3: expected 2 fields as in the first line, got 1"),
            ("a,b\n1,2\n,4\n", {}, r"line 3, column 'a': expected a finite number, got ''"),
            ("a,b\n1,2\nnan,4\n", {}, r"line 3, column 'a': expected a finite number, got 'nan'"),
            ("a,b\n1,2\n3,inf\n", {}, r"line 3, column 'b': expected a finite number, got 'inf'"),
            ("a,b\n1,2\n3,4\n", {"target": "z"}, r"target: expected one of the columns.*got 'z'"),
            ("a,b\n1,2\n3,4\n", {"target": 2}, r"target: expected one of the columns.*got '2'"),
            ("a\n1\n2\n", {}, r"expected a feature column"),
            ("a,b\n1,2\n3,4\n", {"target": "a,b"}, r"expected a feature column"),
            ("a,b\n1,2\n3,4\n", {"target": "b", "drop": "b"}, r"drop: 'b' is the target"),
            ("a,b\n1,2\n3,4\n", {"drop": "c"}, r"drop: expected one of the columns.*got 'c'"),
            ("a,a\n1,2\n3,4\n", {}, r"expected different column names, got 'a' twice"),
            (
                "a,b,c\n1,2,3\n3,4,5\n",
                {"target": "b,c", "task": "classification"},
                r"target: expected one column of classes, got b, c",
            ),
            ("a,b\n1,2\n", {}, r"expected at least 2 rows of data, got 1"),
            ("a,b\n", {}, r"expected at least 2 rows of data, got 0"),
            ("1,x\n2,x\n3,x\n", {"task": "classification"}, r"at least 2 classes.*got 1"),
            (
                "".join(f"{i},{i}\n" for i in range(9)),
                {"task": "classification"},
                r"9 different values in 9 rows.*use task regression",
            ),
        ],
    )
    def test_bad_tables_are_named(self, tmp_path, text, options, message):
        with pytest.raises(DataError, match=message):
            load_data(self.write(tmp_path, text), table=TableOptions(**options))

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"none\.csv cannot be read"):
            load_data(f"csv:{tmp_path / 'none.csv'}")

    def test_fraction_is_checked(self):
        with pytest.raises(DataError, match=r"test_fraction: expected a number in \(0, 1\), got 1"):
            TableOptions(test_fraction=1.0)


class TestDataSet:
    def test_split_keeps_every_row_once_and_drops_the_test_set(self):
        x = torch.arange(20.0).reshape(20, 1)
        data = replace(labelled(x, torch.arange(20) // 7), test=(x[:1] - 1, torch.tensor([0])))
        part = data.split(0.25, seed=3)
        rows = torch.cat([part.train[0], part.test[0]]).flatten()
        assert sorted(rows.tolist()) == list(range(20))
        assert len(part.test[1]) == 5
        assert torch.equal(part.test[0].flatten().long() // 7, part.test[1])

    @given(seed=st.integers(0, 2**31), count=st.integers(2, 40), share=st.floats(0.05, 0.95))
    @settings(max_examples=30, deadline=None)
    def test_split_is_a_seeded_partition(self, seed, count, share):
        x = torch.arange(float(count)).reshape(-1, 1)
        data = labelled(x, torch.zeros(count, dtype=torch.int64))
        try:
            part = data.split(share, seed)
        except DataError:
            assert round(count * share) in (0, count)
            return
        rows = torch.cat([part.train[0], part.test[0]]).flatten()
        assert sorted(rows.tolist()) == list(range(count))
        assert torch.equal(part.test[0], data.split(share, seed).test[0])

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan"), 1e-9])
    def test_split_refuses_an_empty_side(self, share):
        with pytest.raises(DataError, match=r"validation: expected a fraction in \(0, 1\)"):
            labelled(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)).split(share)

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            (
                torch.zeros(0, 2),
                torch.zeros(0).long(),
                r"train: expected at least one row, got none",
            ),
            (torch.zeros(3, 2), torch.zeros(2).long(), r"as many targets as inputs, got 2 and 3"),
            (torch.zeros(3, 2).double(), torch.zeros(3).long(), r"expected float32 inputs"),
            (torch.full((3, 2), torch.nan), torch.zeros(3).long(), r"got NaN or infinity in row 0"),
            (
                torch.tensor([[0.0], [torch.inf]]),
                torch.zeros(2).long(),
                r"infinity in row 1 \(1 su",
            ),
            (torch.zeros(3, 2), torch.zeros(3), r"expected int64 class labels"),
            (torch.zeros(3, 2), torch.tensor([0, 3, 1]), r"in 0\.\.2, got 3 in row 1"),
            (torch.zeros(3, 2), torch.tensor([0, 1, -1]), r"in 0\.\.2, got -1 in row 2"),
        ],
    )
    def test_bad_pairs_are_named(self, x, y, message):
        with pytest.raises(DataError, match=message):
            labelled(x, y)

    def test_regression_targets_are_checked(self):
        x = torch.zeros(2, 1)
        with pytest.raises(DataError, match=r"targets: expected finite numbers, got NaN.* row 1"):
            check_pair("here", (x, torch.tensor([[0.0], [torch.nan]])), "regression", 0)
        with pytest.raises(DataError, match=r"float32 regression targets of shape \(n, m\)"):
            check_pair("here", (x, torch.zeros(2)), "regression", 0)

    def test_shape_must_fit(self):
        pair = (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
        with pytest.raises(DataError, match=r"expected inputs of shape \(2, 2\), got \(3,\)"):
            DataSet(pair, pair, "made", "classification", 2, (0.0, 1.0), (2, 2))
