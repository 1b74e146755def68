"""Data as people have them: any container, any dtype, any form of label, any entry point.

There is one reading, and the result is that of plain float32 inputs and int64 labels, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_data import CLASSES, CONFIG, FEATURES, ROWS, WORDS, Rows, X, Y, network
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from admm_lip import TrainConfig, certified_radii, certify, falsify, project, train
from admm_lip.evaluation.attacks import AttackConfig, gradient_free, pgd
from admm_lip.local import LocalConfig, certify_local, local_radii
from admm_lip.research.comparators import METHODS
from admm_lip.training.finetune import FinetuneConfig

NET = network()
PROOF = certify(NET)
INPUTS: dict[str, Callable[[Any], Any]] = {
    "float64 array": lambda x: x.astype(np.float64),
    "float16 array": lambda x: x.astype(np.float16),
    "big-endian array": lambda x: x.astype(">f8"),
    "read-only, reversed array": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "bfloat16 tensor": lambda x: torch.tensor(x).bfloat16(),
    "float64 tensor": lambda x: torch.tensor(x).double(),
    "tensor with a gradient": lambda x: torch.tensor(x).requires_grad_(),
    "data frame": lambda x: pd.DataFrame(x, columns=list("abcd")),
    "nested list": lambda x: x.tolist(),
    "list of tensors": lambda x: list(torch.tensor(x)),
    "list of arrays": list,
}


LABELS: dict[str, Callable[[Any], Any]] = {
    "int32": lambda y: y.astype(np.int32),
    "uint8": lambda y: y.astype(np.uint8),
    "uint16": lambda y: y.astype(np.uint16),
    "column": lambda y: y[:, None],
    "integer one-hot": lambda y: np.eye(CLASSES, dtype=int)[y],
    "boolean one-hot": lambda y: np.eye(CLASSES, dtype=bool)[y],
    "tensor": torch.tensor,
    "series": lambda y: pd.Series(y, index=np.arange(ROWS)[::-1]),
    "nullable series": lambda y: pd.Series(y, dtype="Int64"),
    "frame": lambda y: pd.DataFrame({"class": y}),
    "list": lambda y: y.tolist(),
}


NAMED: dict[str, Callable[[Any], Any]] = {
    "words": lambda y: WORDS[y],
    "list of words": lambda y: WORDS[y].tolist(),
    "series of words": lambda y: pd.Series(WORDS[y]),
    "categories": lambda y: pd.Series(WORDS[y]).astype("category"),
    "column of words": lambda y: WORDS[y][:, None],
}


GAPS = np.array([0, 2, 5])


def numbers_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(x: Any, y: Any, **more: Any) -> Tensor:
    return numbers_of(train(network(), (x, y), CONFIG, progress=False, **more).model)


def fitted(x: Any, y: Any, **more: Any) -> Tensor:
    config = TrainConfig(epochs=1, batch_size=8)
    data, method = (x, y), METHODS["nominal"]()
    return numbers_of(train(network(), data, config, method=method, progress=False, **more).model)


def radii(x: Any, y: Any, **more: Any) -> Tensor:
    return certified_radii(NET, x, y, certificate=PROOF, **more)


def margins(x: Any, y: Any, **more: Any) -> Tensor:
    return certify_local(NET, x, 0.1, y=y, **more).margin


def nearest(x: Any, y: Any, **more: Any) -> Tensor:
    found = torch.full((ROWS,), 1e-6)
    config = AttackConfig(steps=3, restarts=1, directions=2)
    return falsify(NET, found, x, y, config=config, factors=(1e6,), **more).distance


ENTRIES: dict[str, Callable[..., Tensor]] = {
    "train": trained,
    "fit": fitted,
    "certified_radii": radii,
    "certify_local": margins,
    "local_radii": lambda x, y, **more: local_radii(NET, x, y, certificate=PROOF, **more).radius,
    "certify_local, masked": lambda x, y, **more: (
        certify_local(NET, x, 0.1, y, config=LocalConfig("masked"), **more).margin
    ),
    "falsify": nearest,
    "pgd": lambda x, y: attack(pgd, x, y),
    "gradient_free": lambda x, y: attack(gradient_free, x, y),
}


PLAIN: dict[str, Tensor] = {}


def attack(run: Callable[..., Tensor], x: Any, y: Any) -> Tensor:
    return run(NET, x, y, 0.3, AttackConfig(steps=3, restarts=1, directions=2)).float()


def plain(entry: str) -> Tensor:
    """What float32 and int64 tensors give; labels that the network predicts, so all are right."""
    if entry not in PLAIN:
        PLAIN[entry] = ENTRIES[entry](torch.tensor(X), torch.tensor(labels_for(entry)))
    return PLAIN[entry]


def labels_for(entry: str) -> Any:
    with torch.no_grad():
        predicted = NET(torch.tensor(X)).argmax(1).numpy()
    return Y if entry in ("train", "fit") else predicted


@pytest.mark.parametrize("form", INPUTS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_inputs_of_any_kind_are_read_as_their_numbers(entry: str, form: str) -> None:
    found = ENTRIES[entry](INPUTS[form](X), torch.tensor(labels_for(entry)))
    assert torch.equal(found, plain(entry))


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_labels_of_any_kind_are_read_as_class_numbers(entry: str, form: str) -> None:
    assert torch.equal(ENTRIES[entry](X, LABELS[form](labels_for(entry))), plain(entry))


@pytest.mark.parametrize("form", NAMED)
@pytest.mark.parametrize("entry", sorted(ENTRIES.keys() - {"pgd", "gradient_free"}))
def test_words_are_read_by_the_classes(entry: str, form: str) -> None:
    labels = NAMED[form](labels_for(entry))
    assert torch.equal(ENTRIES[entry](X, labels, classes=WORDS.tolist()), plain(entry))


@pytest.mark.parametrize("labels", [WORDS[Y], GAPS[Y], Y + 1, Y - 1], ids=str)
def test_classes_are_kept_in_sorted_order_and_read_again(labels: Any) -> None:
    result = train(network(), (X, labels), CONFIG, progress=False)
    assert result.classes == tuple(np.unique(labels).tolist())
    assert torch.equal(numbers_of(result.model), plain("train"))
    x, proof = torch.tensor(X), result.certificate
    again = certified_radii(result.model, x, labels, certificate=proof, classes=result.classes)
    assert torch.equal(again, certified_radii(result.model, x, Y, certificate=proof))
    with pytest.raises(ValueError, match=r"y: expected labels among the classes .* got 7"):
        certified_radii(result.model, x[:1], [7], certificate=proof, classes=result.classes)


def test_class_numbers_and_regressions_have_their_classes_too() -> None:
    assert train(network(), (X, Y), CONFIG, progress=False).classes == (0, 1, 2)
    result = train(network(1), (X, X[:, 0]), CONFIG, progress=False)
    assert result.classes is None


DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int16, np.int64, np.uint8, np.bool_]


@settings(max_examples=40)
@given(
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(sorted(LABELS)),
    shape=st.sampled_from([(4,), (2, 2), (1, 2, 2), (4, 1)]),
    order=st.sampled_from("CF"),
    seed=st.integers(0, 2**16),
)
def test_any_dtype_shape_and_memory_order_give_the_same_radii(
    dtype: Any, form: str, shape: tuple[int, ...], order: Any, seed: int
) -> None:
    drawn = np.random.default_rng(seed).integers(0, 2, (ROWS, FEATURES))
    x = np.asarray(drawn.astype(dtype).reshape(ROWS, *shape), order=order)
    labels = labels_for("certified_radii")
    expected = radii(torch.tensor(drawn, dtype=torch.float32), torch.tensor(labels))
    assert torch.equal(radii(x, LABELS[form](labels)), expected)


class Stream(IterableDataset[Any]):
    def __init__(self, rows: int = ROWS) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter([(X[i % ROWS], int(Y[i % ROWS])) for i in range(self.rows)])


def test_a_stream_without_a_length_trains_for_the_steps_given() -> None:
    result = train(network(), Stream(), CONFIG, steps=3, progress=False)
    assert result.history[-1]["step"] == 3
    with pytest.raises(ValueError, match=r"data: expected 5 batches in an epoch, got 3; give"):
        train(network(), Stream(), CONFIG, steps=5, progress=False)
    with pytest.raises(ValueError, match=r"steps: expected the number of batches .* give steps="):
        train(network(), Stream(), CONFIG, progress=False)


@pytest.mark.parametrize(
    ("item", "batch"),
    [
        (lambda i: {"x": X[i], "y": Y[i]}, lambda b: (b["x"], b["y"])),
        (lambda i: (i, X[i], Y[i]), lambda b: b[1:]),
        (lambda i: (X[i].astype(float), str(WORDS[Y[i]])), lambda b: b),
    ],
)
def test_batches_of_ones_own_kind_are_read_by_a_function(item: Any, batch: Any) -> None:
    data = DataLoader(Rows(item), batch_size=8)
    expected = DataLoader(TensorDataset(torch.tensor(X), torch.tensor(Y)), batch_size=8)
    classes = WORDS.tolist() if isinstance(item(0), tuple) and len(item(0)) == 2 else None
    found = train(network(), data, CONFIG, batch=batch, classes=classes, progress=False)
    plainly = train(network(), expected, CONFIG, progress=False)
    assert torch.equal(numbers_of(found.model), numbers_of(plainly.model))


def test_a_tensor_dataset_that_changes_its_rows_is_asked_for_them() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, row: int) -> Any:
            x, y = super().__getitem__(row)
            return 2.0 * x, y

    x, y = torch.tensor(X), torch.tensor(Y)
    doubled = train(network(), Doubled(x, y), CONFIG, progress=False)
    twice = DataLoader(TensorDataset(2.0 * x, y), batch_size=8, shuffle=True)
    assert torch.equal(
        numbers_of(doubled.model), numbers_of(train(network(), twice, CONFIG, progress=False).model)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains_in_float32_and_is_certified_as_stored(dtype: torch.dtype) -> None:
    config = TrainConfig(bound=0.5, epochs=4, batch_size=4)
    result = train(network().to(dtype), (X, Y), config, progress=False)
    assert all(p.dtype == dtype for p in result.model.parameters())
    assert result.certificate.lip <= 0.5
    assert certify(result.model).lip == pytest.approx(result.certificate.lip, rel=1e-3)
    taught = project(
        network().to(dtype),
        0.3,
        finetune=(X, Y),
        epochs=1,
        config=FinetuneConfig(batch_size=8, ridges=()),
        progress=False,
    )
    assert taught.certificate.lip <= 0.3
    assert taught.model[0].weight.dtype == dtype


def test_a_named_loss_gives_the_reading() -> None:
    counts = train(network(1), (X, Y), CONFIG, "squared_error", progress=False)
    floats = train(network(1), (X, Y.astype(np.float32)), CONFIG, progress=False)
    assert torch.equal(numbers_of(counts.model), numbers_of(floats.model))
    assert torch.equal(trained(X, np.eye(CLASSES)[Y], loss="cross_entropy"), plain("train"))


def test_a_wrapped_model_is_trained_as_what_it_wraps() -> None:
    wrapped = nn.DataParallel(network())
    result = train(wrapped, (X, Y), CONFIG, progress=False)
    assert type(result.model) is nn.Sequential
    assert torch.equal(numbers_of(result.model), plain("train"))
    method, config = METHODS["nominal"](), TrainConfig(epochs=1, batch_size=8)
    found = train(wrapped, (X, Y), config, method=method, progress=False)
    assert torch.equal(numbers_of(found.model), plain("fit"))


@pytest.mark.parametrize("labels", [Y % 2, Y % 2 == 1, 2 * (Y % 2) - 1, (Y % 2)[:, None]], ids=str)
def test_a_classifier_of_one_output_is_certified_and_attacked_alike(labels: Any) -> None:
    model = network(1)
    proof = certify(model)
    found = certified_radii(model, X, labels, certificate=proof)
    expected = certified_radii(model, torch.tensor(X), torch.tensor(Y % 2), certificate=proof)
    assert torch.equal(found, expected)
    assert float(found.max()) > 0.0
    config = AttackConfig(steps=5, restarts=1, directions=2)
    assert falsify(model, found, X, labels, certificate=proof, config=config).smallest_ratio >= 1.0


def test_inputs_that_the_model_s_dtype_cannot_hold_are_attacked_where_they_are() -> None:
    x = X.astype(np.float64) + 1e-9
    found = certified_radii(NET, x, labels_for("falsify"), certificate=PROOF)
    config = AttackConfig(steps=5, restarts=1, directions=2)
    attacked = falsify(NET, found, x, labels_for("falsify"), certificate=PROOF, config=config)
    assert attacked.smallest_ratio >= 1.0
