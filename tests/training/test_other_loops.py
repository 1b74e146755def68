"""Loops of other people's libraries and fields, each ending in a certificate that is verified."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from admm_lip import Constraint, Lipschitz, verify
from admm_lip.training.config import AdmmConfig

X = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] + X[:, 1] > 0).long()


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def certified(constraint: Constraint, bound: float) -> nn.Module:
    rounds = constraint.state.iteration
    model, certificate = constraint.finish()
    assert rounds > 0
    assert certificate.lip <= bound == certificate.requested
    verify(certificate, model)
    return model


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module() -> None:
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 16, 2)

        def training_step(self, batch: Any, index: int) -> Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
            self.constraint = Constraint(self.net, Lipschitz(2.0)).attach(optimizer)
            return optimizer

    module = Classifier()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        enable_model_summary=False,
        **quiet,
    ).fit(module, loader)
    assert module.constraint.state.iteration == 4  # 8 epochs of 8 batches, two of them a step
    model = certified(module.constraint, 2.0)
    assert float((model(X).argmax(1) == Y).float().mean()) > 0.8


@pytest.mark.filterwarnings("ignore")
def test_a_skorch_estimator() -> None:
    skorch = pytest.importorskip("skorch")

    class Bounded(skorch.callbacks.Callback):
        def on_train_begin(self, net: Any, **more: Any) -> None:
            self.constraint = Constraint(net.module_, Lipschitz(2.0)).attach(net.optimizer_)

    bounded = Bounded()
    clipping = skorch.callbacks.GradientNormClipping(1.0)
    net = skorch.NeuralNetClassifier(
        mlp(4, 16, 2),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.02,
        max_epochs=8,
        batch_size=16,
        train_split=None,
        callbacks=[bounded, clipping],
        verbose=0,
    )
    net.fit(X.numpy(), Y.numpy())
    assert bounded.constraint.state.iteration == 8
    certified(bounded.constraint, 2.0)
    assert net.score(X.numpy(), Y.numpy()) > 0.8


def test_the_critic_of_a_wasserstein_gan() -> None:
    """Critic and generator in turn; the critic's mean difference bounds the distance from below."""
    target = torch.tensor([2.0, -1.0])
    critic, generator = mlp(2, 16, 1), nn.Linear(2, 2)
    with torch.no_grad():
        generator.weight.copy_(torch.eye(2))
        generator.bias.zero_()
    ahead = torch.optim.Adam(critic.parameters(), lr=0.02)
    behind = torch.optim.Adam(generator.parameters(), lr=0.05)
    config = AdmmConfig(start="scratch", round_steps=4)
    constraint = Constraint(critic, Lipschitz(1.0), config).attach(ahead)
    draw = torch.Generator().manual_seed(0)
    began = float((generator.bias.detach() - target).norm())
    for step in range(150):
        real = target + torch.randn(64, 2, generator=draw)
        fake = generator(torch.randn(64, 2, generator=draw))
        ahead.zero_grad()
        (critic(fake.detach()).mean() - critic(real).mean()).backward()
        ahead.step()
        if step % 3 == 2:
            behind.zero_grad()
            (-critic(generator(torch.randn(64, 2, generator=draw))).mean()).backward()
            behind.step()
    assert float((generator.bias.detach() - target).norm()) < 0.5 * began
    certified(constraint, 1.0)


class Point:
    """A point on a line that is to be held at 0: state (place, speed), action in {-1, 1}."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def reset(self) -> np.ndarray:
        self.state = self.random.uniform(-1.0, 1.0, 2)
        return self.state

    def step(self, action: int) -> tuple[np.ndarray, float]:
        place, speed = self.state
        speed = 0.9 * speed + 0.2 * (2 * action - 1)
        self.state = np.array([place + 0.2 * speed, speed])
        return self.state, -float(self.state[0] ** 2)


def rewards(policy: nn.Module, seed: int, episodes: int, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the actions taken, and rewards to go, ``(episodes, steps)``."""
    torch.manual_seed(seed)
    chances, gains = [], []
    for episode in range(episodes):
        world = Point(1000 * seed + episode)
        state, row, gain = world.reset(), [], []
        for _ in range(steps):
            drawn = torch.distributions.Categorical(logits=policy(torch.tensor(state).float()))
            action = drawn.sample()
            state, reward = world.step(int(action))
            row.append(drawn.log_prob(action))
            gain.append(reward)
        chances.append(torch.stack(row))
        gains.append(torch.tensor(gain).flip(0).cumsum(0).flip(0))
    return torch.stack(chances), torch.stack(gains)


def test_a_policy_gradient() -> None:
    """REINFORCE on an environment of a few lines."""
    policy = mlp(2, 16, 2)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    constraint = Constraint(policy, Lipschitz(4.0), AdmmConfig(round_steps=4)).attach(optimizer)
    with torch.no_grad():
        before = float(rewards(policy, 99, 20)[1][:, 0].mean())
    for seed in range(24):
        chances, gains = rewards(policy, seed, 8)
        optimizer.zero_grad()
        advantage = (gains - gains.mean(0)) / gains.std()
        (-(chances * advantage).mean()).backward()
        optimizer.step()
    policy = certified(constraint, 4.0)
    with torch.no_grad():
        after = float(rewards(policy, 99, 20)[1][:, 0].mean())
    assert after > 0.7 * before  # both negative: the cost falls by 30 per cent or more
