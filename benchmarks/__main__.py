"""``python -m benchmarks NAME``: run one benchmark and write its record.

Without a name, the list of them.
"""

from __future__ import annotations

import importlib
import sys

# name -> what it shows; the module of that name has a function main(argv).
BENCHMARKS = {
    "rounds": "the bound holds in every round: the paper's cases, both modes",
    "solver_times": "seconds and proven gaps of the solvers, against plain descent, SCS, Clarabel",
    "solver_pairs": "processor seconds of the native solver against another version, in pairs",
    "warm_projection": "seconds of the projection on the anchors of consecutive training rounds",
    "solver_sweep": "seconds against width and depth: native, descent, Clarabel, SCS, two pictures",
    "mnist_bound": "MNIST 784-64-64-10 under bound 1: accuracy, certified accuracy, cost",
    "toy2d": "the paper's 2D toy: decision regions and confidence, five methods",
    "mnist_noise": "the paper's MNIST networks: proven L, noise, attack, five methods",
    "front": "accuracy against proven L: penalty, enforced bound, six others",
    "images_tuning": "step sizes of images, on validation rows; run before it",
    "images": "MNIST and Fashion-MNIST, 784-64-64-10: clean and certified accuracy",
    "images_cost": "seconds of every method over plain training",
    "square_wave": "a square wave under slope bounds 1, 5 and 10: tightness and error",
    "tabular": "regression tables, published splits: error against L",
    "backends": "one run with every solver backend: same answer, seconds",
    "ablation": "one setting of the ADMM trainer changed at a time",
    "report": "one HTML page of all tables and plots, from the records alone",
    "gradient_study": "input-gradient penalties on a small convolutional network",
    "gradient_detection": "attacks told from clean inputs by the norm of the Jacobian",
    "gradient_theory": "the theory of gradient penalties in three pictures, and their cost",
    "certificates": "what each kind of certificate proves of networks trained without a bound",
    "image_bounds": "bounds of convolutional and residual networks, frequency by frequency",
    "image_training": "plain convolutions trained under a bound, beside a dense network",
    "local_bounds": "local certificates and radii against pairwise ones and an attack",
    "local_table": "local certificates on networks and pictures of a published comparison",
    "balls_paired": "bounds on balls and their seconds, against an older checkout, case by case",
    "finetune": "a trained network as the start under a bound, against training from scratch",
    "forgeries": "ten thousand forged certificates of every kind, none of them believed",
    "falsification": "attacks on thousands of certified radii of every kind of certificate",
    "attacked_balls": "a million attacked balls: every kind of certificate, small networks",
    "local_training": "training with local against global Lipschitz bounds",
    "kills": "runs of the command line killed a hundred times, against untouched ones",
    "class_distances": "Lipschitz constants of MNIST, Fashion-MNIST and CIFAR-10, exactly",
}


def main(argv: list[str]) -> int:
    """Dispatch to the named benchmark."""
    if not argv or argv[0] not in BENCHMARKS:
        print("usage: python -m benchmarks NAME [options]\n")
        for name, shows in BENCHMARKS.items():
            print(f"  {name:18} {shows}")
        return 0 if not argv or argv[0] in ("-h", "--help") else 2
    module = importlib.import_module(f"benchmarks.{argv[0]}")
    module.main(argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
