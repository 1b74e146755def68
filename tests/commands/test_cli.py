import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from admm_lip import cli, verify
from admm_lip.certificates.certificate import Certificate
from admm_lip.data import load_data
from admm_lip.networks.built import build_module
from admm_lip.networks.storage import load_network

FILES = {
    "architecture.json",
    "certificate.json",
    "checkpoint.safetensors",
    "config.yaml",
    "metrics.jsonl",
    "plots",
    "summary.json",
    "weights.safetensors",
}
QUICK = ["--epochs", "3", "--evaluate.steps", "5", "--evaluate.samples", "50", "--quiet"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADMM_LIP_DATA", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the command line that several tests only read."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert cli.main(["train", "--run-dir", str(folder), *QUICK]) == 0
    return folder


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "admm_lip", *arguments]


def records(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestTrain:
    def test_a_run_leaves_everything_and_its_proof_holds(self, trained):
        # A slow run keeps the checkpoint before the last one, too.
        found = {p.name for p in trained.iterdir()}
        assert found - {"checkpoint.previous.safetensors"} == FILES
        plots = {p.name for p in (trained / "plots").iterdir()}
        assert plots == {"bounds.png", "certified_accuracy.png", "training.png"}
        certificate = Certificate.load(trained / "certificate.json")
        assert json.loads((trained / "certificate.json").read_text())["lip"] <= 1.0
        verify(certificate, trained)
        summary = records(trained)
        assert summary["bounds"]["lip"] == certificate.lip
        assert summary["network"] == "64-32-32-10 relu"
        rows = rows_of(trained / "metrics.jsonl")
        assert len(rows) == summary["rounds"]
        assert all(row["lip"] <= 1.0 for row in rows)

    def test_the_summary_tells_the_truth_of_the_weights_on_disk(self, trained):
        model = build_module(load_network(trained)).eval()
        x, y = load_data("digits").test
        share = (model(x).argmax(dim=1) == y).double().mean().item()
        assert records(trained)["evaluation"]["clean_accuracy"] == pytest.approx(share)

    def test_its_settings_give_the_same_network_again(self, trained):
        again = ["train", "--config", str(trained / "config.yaml"), "--run-dir", "again", "--quiet"]
        assert cli.main(again) == 0
        first, second = load_network(trained), load_network("again")
        assert first.digest() == second.digest()
        assert yaml.safe_load(Path("again/config.yaml").read_text()) == yaml.safe_load(
            (trained / "config.yaml").read_text()
        )

    def test_the_default_folder_and_the_words_for_a_newcomer(self, capsys):
        assert cli.main(["train", *QUICK]) == 0
        (folder,) = Path("runs").iterdir()
        assert folder.name.startswith("digits-2")
        text = capsys.readouterr().out
        for words in (
            "proven Lipschitz constant",
            "(asked for 1)",
            "clean accuracy",
            "certified accuracy",
            "at l2 radius 0.1",
            f"everything is in runs/{folder.name}/",
            f"admm-lip verify runs/{folder.name}",
        ):
            assert words in text

    def test_a_penalty_instead_of_a_bound(self):
        options = ["--mu", "0.1", "--model.hidden", "[8]", "--model.activation", "tanh"]
        assert cli.main(["train", "--run-dir", "run", *options, *QUICK]) == 0
        settings = yaml.safe_load(Path("run/config.yaml").read_text())
        assert settings["bound"] is None
        assert settings["loss"] == "cross_entropy"
        assert records(Path("run"))["bounds"]["requested"] is None
        assert records(Path("run"))["network"] == "64-8-10 tanh"
        verify(Certificate.load("run/certificate.json"), "run")

    def test_two_inputs_are_drawn_as_regions(self):
        assert cli.main(["train", "--data", "toy2d", "--run-dir", "run", *QUICK]) == 0
        assert (Path("run") / "plots" / "regions.png").is_file()

    @pytest.mark.parametrize("task", ["regression", "classification"])
    def test_a_table(self, task):
        lines = "".join(f"{i % 7},{i % 3},{i % 2}\n" for i in range(60))
        Path("t.csv").write_text("a,b,c\n" + lines)
        options = ["--data", "csv:t.csv", "--table.task", task, "--model.hidden", "[]"]
        assert cli.main(["train", "--run-dir", "run", *options, *QUICK]) == 0
        evaluation = records(Path("run"))["evaluation"]
        assert evaluation["task"] == task
        assert ("rmse" in evaluation) == (task == "regression")

    def test_settings_files_and_underscores(self):
        Path("c.yaml").write_text("epochs: 2\nbatch_size: 100\nmodel:\n  hidden: [5]\n")
        options = ["--config", "c.yaml", "--batch_size", "200", "--evaluate.samples=20"]
        assert cli.main(["train", "--run-dir", "run", *options, "--quiet"]) == 0
        settings = yaml.safe_load(Path("run/config.yaml").read_text())
        assert (settings["epochs"], settings["batch_size"]) == (2, 200)
        assert settings["model"]["hidden"] == [5]


class TestOtherMethods:
    def test_another_method_is_trained_proven_and_measured(self, capsys):
        settings = ["--method", "gradient", "--method-settings", '{"total_variation": 0.3}']
        assert cli.main(["train", "--run-dir", "run", *settings, *QUICK]) == 0
        folder = Path("run")
        verify(Certificate.load(folder / "certificate.json"), folder)
        summary = records(folder)
        assert summary["method_settings"]["total_variation"] == 0.3
        assert len(summary["losses"]) == 3
        assert "for 3 epochs by gradient" in capsys.readouterr().out
        again = ["train", "--config", "run/config.yaml", "--run-dir", "again", "--quiet"]
        assert cli.main(again) == 0
        assert records(Path("again"))["losses"] == summary["losses"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--method", "sandwch"], "got 'sandwch'; did you mean 'sandwich'?"),
            (
                ["--method", "sandwich", "--method-settings", '{"bond": 1}'],
                "method-settings: sandwich takes bound, got 'bond'; did you mean 'bound'?",
            ),
            (["--recipe", "mnits"], "recipe: expected one of cifar10_36_255, "),
            (["--method", "local", "--eps", "-1"], "eps: expected a finite number >= 0, got -1"),
            (["--convnet.name", "9C"], "convnet.name: expected one of 2C2F, 4C3F, 6C2F, 8C2F"),
            (["--convnet.name", "2C2F", "--data", "toy2d"], "2C2F takes pictures"),
            (["--method", "local", "--model.activation", "tanh"], "1 (Tanh): these bounds handle"),
        ],
    )
    def test_bad_methods_are_named(self, arguments, message, capsys):
        assert cli.main(["train", *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not list(Path().glob("runs/*"))


class TestInterruption:
    OPTIONS = ("--data", "toy2d", *QUICK, "--epochs", "1000")

    def test_ctrl_c_keeps_the_last_round_and_resume_ends_the_same(self):
        assert cli.main(["train", "--run-dir", "whole", *self.OPTIONS]) == 0
        often = ("--checkpoint-seconds", "0")
        command = program("train", "--run-dir", "cut", *self.OPTIONS, *often)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while not Path("cut/checkpoint.safetensors").exists() and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "continue with: admm-lip train --resume cut" in output
        done = records(Path("cut"))["rounds"]
        assert 0 < done < records(Path("whole"))["rounds"]
        verify(Certificate.load("cut/certificate.json"), "cut")
        assert cli.main(["train", "--resume", "cut", "--quiet"]) == 0
        assert load_network("cut").digest() == load_network("whole").digest()
        assert records(Path("cut"))["evaluation"] == records(Path("whole"))["evaluation"]

    def test_resume_refuses_other_settings(self, trained, capsys):
        assert cli.main(["train", "--resume", str(trained), "--lr", "0.5"]) == 2
        assert "resume with the same settings" in capsys.readouterr().err

    def test_resume_stays_in_its_folder(self, trained, capsys):
        assert cli.main(["train", "--resume", str(trained), "--run-dir", "x"]) == 2
        assert "resume: the run continues in its own folder" in capsys.readouterr().err


class TestOtherCommands:
    def test_verify_imports_no_torch_and_no_solver(self, trained):
        code = (
            "import sys; from admm_lip.cli import main\n"
            f"assert main(['verify', {str(trained)!r}]) == 0\n"
            "loaded = {'torch', 'cvxpy', 'mosek', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
            "assert not loaded, loaded"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        claim, _, noted = result.stdout.partition("not proven, only noted by its maker: ")
        assert "verified: the network in" in claim
        assert "lower_lip" in noted

    def test_help_is_immediate(self):
        code = (
            "import sys; from admm_lip.cli import main\n"
            "assert main(['--help']) == 0\n"
            "assert not {'torch', 'numpy', 'jsonargparse'} & set(sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        for name in cli._COMMANDS:
            assert f"\n  {name} " in result.stdout

    @pytest.mark.parametrize("name", cli._COMMANDS)
    def test_every_command_explains_itself_by_example(self, name, capsys):
        assert cli.main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"usage: admm-lip {name}" in text
        assert f"\n  admm-lip {name}" in text
        assert "example" in text

    def test_train_help_says_what_each_option_means(self, capsys):
        assert cli.main(["train", "--help"]) == 0
        words = capsys.readouterr().out.split()
        assert [w for w in words if w.startswith("--") and w.endswith("bound")]
        text = " ".join(words)
        assert "Passes over the data (not given: chosen for the data set)." in text
        assert "Relative accuracy: of a certification the gap in L^2" in text

    def test_an_onnx_file_is_certified_verified_and_projected(self, trained, capsys):
        pytest.importorskip("onnx", reason="reading ONNX needs the extra admm-lip[onnx]")
        from admm_lip import export_onnx

        export_onnx(
            load_network(trained), "net.onnx", Certificate.load(trained / "certificate.json")
        )
        assert cli.main(["verify", "net.onnx"]) == 0
        assert cli.main(["certify", "net.onnx"]) == 0
        noted = json.loads(Path("net.certificate.json").read_text())
        Path("net.certificate.json").write_text(json.dumps(noted | {"lip": noted["lip"] / 2}))
        assert cli.main(["verify", "net.onnx"]) != 0  # the one beside it is meant
        Path("net.certificate.json").write_text(json.dumps(noted))
        assert cli.main(["verify", "net.onnx"]) == 0
        assert cli.main(["project", "net.onnx", "--bound", "0.5"]) == 0
        projected = Certificate.load(Path("net-bound0.5") / "certificate.json")
        assert projected.lip <= 0.5
        assert capsys.readouterr().out.count("verified: the network in net.onnx") == 2

    def test_pairwise_bounds_are_proven_and_verified(self, trained, capsys):
        assert cli.main(["certify", str(trained), "--kind", "pairwise", "--output", "p.json"]) == 0
        assert cli.main(["verify", str(trained), "--certificate", "p.json"]) == 0
        assert "verified: 45 pairwise bounds (l2)" in capsys.readouterr().out

    def test_exact_arithmetic_agrees(self, trained, capsys):
        assert cli.main(["verify", str(trained), "--exact"]) == 0
        assert "verified (also in exact arithmetic)" in capsys.readouterr().out

    def test_verify_rejects_a_changed_weight(self, trained, tmp_path, capsys):
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("architecture.json", "certificate.json", "weights.safetensors"):
            content = bytearray((trained / name).read_bytes())
            if name == "weights.safetensors":
                content[-2] ^= 1
            (copy / name).write_bytes(content)
        assert cli.main(["verify", str(copy)]) == 2
        assert "digest: the certificate is of another network" in capsys.readouterr().err

    def test_project_meets_the_bound_and_measures(self, trained, capsys):
        assert cli.main(["project", str(trained), "--bound", "0.5", "--run-dir", "half"]) == 0
        certificate = Certificate.load("half/certificate.json")
        assert certificate.lip <= 0.5
        verify(certificate, "half")
        summary = records(Path("half"))
        assert summary["distance"] > 0
        assert summary["bounds"]["requested"] == 0.5
        assert "clean_accuracy" in summary["evaluation"]
        assert "moved by" in capsys.readouterr().out

    def test_project_of_a_bare_network(self, trained):
        Path("bare").mkdir()
        for name in ("architecture.json", "weights.safetensors"):
            (Path("bare") / name).write_bytes((trained / name).read_bytes())
        assert cli.main(["project", "bare", "--bound", "0.5"]) == 0
        assert Certificate.load("bare-bound0.5/certificate.json").lip <= 0.5
        assert "evaluation" not in records(Path("bare-bound0.5"))

    def test_plot_draws_the_same_pictures_from_records_alone(self, trained, tmp_path):
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("config.yaml", "metrics.jsonl", "summary.json"):
            (copy / name).write_bytes((trained / name).read_bytes())
        assert cli.main(["plot", str(copy)]) == 0
        for path in (trained / "plots").iterdir():
            assert (copy / "plots" / path.name).read_bytes() == path.read_bytes()

    def test_compare_meets_the_penalty_at_equal_bounds(self, capsys):
        options = ["--mus", "[0.01,1]", "--data", "toy2d", "--run-dir", "cmp", "--epochs", "30"]
        assert cli.main(["compare", *options, "--evaluate.samples", "50"]) == 0
        rows = rows_of(Path("cmp/front.jsonl"))
        assert [row["mode"] for row in rows] == ["penalty", "penalty", "bound", "bound"]
        for penalty, bound in zip(rows[:2], rows[2:], strict=True):
            assert bound["value"] == penalty["lip"]
            assert bound["lip"] <= bound["value"]
        assert rows[0]["lip"] > rows[1]["lip"]
        assert Path("cmp/plots/front.png").is_file()
        before = Path("cmp/plots/front.png").read_bytes()
        assert cli.main(["plot", "cmp"]) == 0
        assert Path("cmp/plots/front.png").read_bytes() == before
        assert "certified" in capsys.readouterr().out

    def test_solvers_names_each_backend_with_its_reason(self, capsys):
        assert cli.main(["solvers"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["native", "mosek", "clarabel", "scs"]
        assert lines[0].split()[1] == "usable"
        assert all(len(line.split()) > 3 for line in lines)

    def test_the_version(self, capsys):
        assert cli.main(["--version"]) == 0
        assert capsys.readouterr().out.startswith("admm-lip 0.")


BAD = {
    "unknown command": (["trian"], r"no command 'trian'; did you mean 'train'?"),
    "unknown option": (["train", "--bond", "3"], "did you mean --bound?"),
    "not a number": (["train", "--bound", "abc"], "bound: expected a number or null, got 'abc'"),
    "not whole": (["train", "--epochs", "2.5"], "epochs: expected a whole number or null, got '2."),
    "bound 0": (["train", "--bound", "0"], "expected a number from 1e-30 to 1e+30 or None, got 0"),
    "bound nan": (
        ["train", "--bound", ".nan"],
        "bound: expected a number from 1e-30 to 1e+30 or None, got nan",
    ),
    "both": (["train", "--bound", "1", "--mu", "1"], "bound, mu: expected exactly one of the two"),
    "backend": (["train", "--solver.name", "mosk"], "did you mean 'mosek'?"),
    "activation": (["train", "--model.activation", "rleu"], "activation: expected one of relu"),
    "loss": (["train", "--loss", "hinge"], "loss: expected one of auto, cross_entropy"),
    "data": (["train", "--data", "minst"], "did you mean 'mnist'?"),
    "missing data": (["train", "--data", "fashion"], "looked in data/FashionMNIST/raw for"),
    "missing csv": (["train", "--data", "csv:no.csv"], "no.csv cannot be read"),
    "taken": (["train", "--run-dir", "full"], "full exists and is not a run; it is left as it is"),
    "unwritable": (["train", "--run-dir", "full/file/run"], "run_dir: cannot write full/file/run"),
    "config": (["train", "--config", "no.yaml"], "config: File does not exist"),
    "bad key": (["train", "--config", "bad.yaml"], "Option 'bond' is not accepted; did you mean"),
    "no run": (["train", "--resume", "no"], "expected a run folder, but no does not exist"),
    "verify": (["verify", "no"], "expected the file or folder of a network, found none"),
    "certify": (["certify", "full"], "expected a file architecture.json in full, found none"),
    "project": (["project", "full"], "bound: expected --bound L, a number > 0, got none"),
    "plot": (["plot", "full"], "full is not a run folder: it has no config.yaml"),
    "empty grid": (["compare", "--mus", "[]"], "expected at least one seed, and one mu or bound"),
    "half a table": (["train", "--data", "csv:hole.csv"], "line 3, column 'b': expected a finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_message_and_nothing_is_written(name, capsys):
    Path("full").mkdir()
    Path("full/file").write_text("")
    Path("bad.yaml").write_text("bond: 3\n")
    Path("hole.csv").write_text("a,b,c\n1,2,3\n4,,6\n7,8,9\n")
    before = sorted(Path().rglob("*"))
    arguments, message = BAD[name]
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("admm-lip: error: ")
    assert output.err.count("\n") == 1
    assert message in output.err
    assert [p for p in sorted(Path().rglob("*")) if p.name != "runs"] == before


def test_debug_shows_where_an_error_came_from(capsys):
    assert cli.main(["train", "--bound", "0", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_error_is_named_by_its_type(monkeypatch, capsys):
    def broken(words):
        raise KeyError("t7")

    monkeypatch.setattr(cli, "_dispatch", broken)
    assert cli.main(["train"]) == 2
    assert "KeyError: 't7' (use --debug for the details)" in capsys.readouterr().err


def test_ctrl_c_outside_training_is_no_traceback(monkeypatch, capsys):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "admm-lip: interrupted\n"


def test_a_run_is_the_same_from_the_shell(tmp_path):
    """The installed entry point, in an environment of its own, on the embedded data."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = program("train", "--run-dir", "run", *QUICK)
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert {p.name for p in Path("run").iterdir()} == FILES
    assert torch.isfinite(build_module(load_network("run"))(torch.zeros(1, 64))).all()


def test_threads_are_limited_inside_and_restored(monkeypatch, capsys):
    module = importlib.import_module(
        "admm_lip.training.train"
    )  # the package's name is the function
    before, seen = torch.get_num_threads(), []
    real = module.train

    def watched(*arguments, **keywords):
        seen.append(torch.get_num_threads())
        return real(*arguments, **keywords)

    monkeypatch.setattr(module, "train", watched)
    assert cli.main(["train", "--run-dir", "run", *QUICK]) == 0
    assert seen == [1]
    assert torch.get_num_threads() == before
    assert cli.main(["train", "--run-dir", "b", "--threads", "0"]) == 2
    assert "threads: expected at least 1, got 0" in capsys.readouterr().err
