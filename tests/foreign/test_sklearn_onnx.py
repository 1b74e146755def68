"""Files that skl2onnx writes of scikit-learn's estimators: the bound is that of the estimator."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime import InferenceSession
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from admm_lip import certify, cli, open_network
from admm_lip.errors import OutputsLeftOut, UnsupportedModule
from admm_lip.networks.built import build_module

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X, Y = load_iris(return_X_y=True)
X = X.astype(np.float32)
SHORT: dict[str, Any] = {"hidden_layer_sizes": (6, 5), "max_iter": 20, "random_state": 0}
WORDS = np.array(["setosa", "versicolor", "virginica"])[Y]

CLASSIFIERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "numbers": (MLPClassifier(**SHORT), Y, {}),
    "words": (MLPClassifier(activation="tanh", **SHORT), WORDS, {}),
    "plain probabilities": (MLPClassifier(**SHORT), Y, {"zipmap": False}),
    "columns": (MLPClassifier(**SHORT), Y, {"zipmap": "columns"}),
    "two classes": (MLPClassifier(activation="logistic", **SHORT), Y > 0, {}),
    "scaled": (make_pipeline(StandardScaler(), MLPClassifier(**SHORT)), Y, {}),
}
REGRESSORS: dict[str, tuple[Any, Any]] = {
    "alone": (MLPRegressor(**SHORT), X[:, 0]),
    "scaled": (make_pipeline(StandardScaler(), MLPRegressor(activation="tanh", **SHORT)), X[:, 0]),
    "linear": (make_pipeline(MinMaxScaler(), LinearRegression()), X[:, :2] @ [1.0, 2.0]),
}


def written(estimator: Any, path: Path, **options: Any) -> Path:
    path.write_bytes(to_onnx(estimator, X[:1], options=options or None).SerializeToString())
    return path


def read(path: Path) -> Callable[[Any], np.ndarray]:
    model = build_module(open_network(path)).eval()
    return lambda x: model(torch.from_numpy(x)).detach().numpy()


@pytest.mark.parametrize("name", [n for n in CLASSIFIERS if n != "columns"])
def test_a_classifier_is_its_scores(name: str, tmp_path: Path) -> None:
    estimator, labels, options = CLASSIFIERS[name]
    path = written(estimator.fit(X, labels), tmp_path / "c.onnx", **options)
    said = r"the outputs \w*label, \w+ are labels or probabilities and are left out; .*add_result"
    with pytest.warns(OutputsLeftOut, match=said):
        assert certify(path).lip == pytest.approx(certify(estimator).lip, rel=1e-5)
    with pytest.warns(OutputsLeftOut):
        scores = read(path)(X)
    picked = scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(int)
    given = InferenceSession(path).run(None, {"X": X})[0]
    classes = np.unique(labels)
    assert (classes[picked].astype(given.dtype) == given).mean() > 0.99  # all but ties


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regressor_is_read_without_a_note(name: str, tmp_path: Path) -> None:
    estimator, targets = REGRESSORS[name]
    path = written(estimator.fit(X, targets), tmp_path / "r.onnx")
    np.testing.assert_allclose(read(path)(X)[:, 0], estimator.predict(X), rtol=1e-4, atol=1e-4)
    assert certify(path).lip == pytest.approx(certify(estimator).lip, rel=1e-5)


def test_several_targets_are_refused_where_the_file_mixes_samples(tmp_path: Path) -> None:
    """What skl2onnx 1.20 writes then gives two rows for each sample."""
    estimator = MLPRegressor(**SHORT).fit(X, X[:, :2])
    with pytest.raises(UnsupportedModule, match=r"does not keep the batch in front"):
        open_network(written(estimator, tmp_path / "r.onnx"))


def test_probabilities_that_are_taken_apart_are_refused_by_name(tmp_path: Path) -> None:
    estimator, labels, options = CLASSIFIERS["columns"]
    path = written(estimator.fit(X, labels), tmp_path / "c.onnx", **options)
    with pytest.raises(UnsupportedModule, match=r"'output_label' .*keep one of them"):
        open_network(path)


def test_the_command_line_says_what_is_certified_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    estimator = CLASSIFIERS["scaled"][0].fit(X, Y)
    path = written(estimator, tmp_path / "c.onnx")
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b,c,d\n" + "".join(",".join(map(str, row)) + "\n" for row in X[::10]))
    words = ["predict", str(path), str(rows), "--task", "classification"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "nothing is proven" in err
    assert out.splitlines()[1].endswith(",")  # no radius
    assert cli.main(["certify", str(path)]) == 0
    note = capsys.readouterr().err
    assert re.match("admm-lip: note: the outputs output_label, output_probability are", note)
    assert cli.main(["verify", str(path)]) == 0
    capsys.readouterr()
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "proven: no row changes its class" in err
    classes = [line.split(",")[0] for line in out.splitlines()[1:]]
    assert (np.array(classes, dtype=int) == estimator.predict(X[::10])).all()


def tampered(edit: Callable[[Any], None], path: Path) -> Path:
    model = onnx.load(written(MLPClassifier(**SHORT).fit(X, Y), path))
    edit(model.graph)
    onnx.save(model, path)
    return path


def _node(graph: Any, op: str) -> Any:
    return next(node for node in graph.node if node.op_type == op)


def label_of_a_hidden_layer(graph: Any) -> None:
    _node(graph, "ArgMax").input[0] = "next_activations1"


def label_of_rounded_scores(graph: Any) -> None:
    node = helper.make_node("Cast", ["add_result2"], ["rounded"], to=TensorProto.INT64)
    back = helper.make_node("Cast", ["rounded"], ["back"], to=TensorProto.FLOAT)
    place = [*graph.node].index(_node(graph, "Softmax"))
    graph.node.insert(place, back)
    graph.node.insert(place, node)
    _node(graph, "ArgMax").input[0] = "back"


def softmax_over_the_batch(graph: Any) -> None:
    _node(graph, "Softmax").attribute.append(helper.make_attribute("axis", 0))
    graph.output.append(helper.make_tensor_value_info("add_result2", TensorProto.FLOAT, [None, 3]))


def a_circle(graph: Any) -> None:
    node = _node(graph, "ArgMax")
    node.input[0] = node.output[0]


@pytest.mark.parametrize(
    "edit", [label_of_a_hidden_layer, label_of_rounded_scores, softmax_over_the_batch, a_circle]
)
def test_outputs_of_different_values_are_refused(
    edit: Callable[[Any], None], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModule, match=r"expected one output, .*keep one of them"):
        open_network(tampered(edit, tmp_path / "c.onnx"))
