import pytest
import torch
from gradient_nets import batch, residual, tanh_net
from torch import nn

from admm_lip.research.input_gradients import jacobian_norms


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_norms_of_the_jacobian_by_its_entries(output):
    model, (x, _) = tanh_net(), batch(1, 6, 5)

    def values(v):
        z = model(v[None])[0]
        return z.softmax(dim=0) if output == "probabilities" else z

    whole = torch.stack([torch.autograd.functional.jacobian(values, v) for v in x])
    found = jacobian_norms(model, x, "2_inf", output, batch_size=4)
    torch.testing.assert_close(found, whole.norm(dim=2).amax(dim=1))
    found = jacobian_norms(model, x, "frobenius", output)
    torch.testing.assert_close(found, whole.flatten(1).norm(dim=1))


def test_the_model_is_measured_in_evaluation_mode_and_left_as_it_was():
    model, (x, _) = residual(dropout=0.5).train(), batch(2, 6, 1, 8, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = jacobian_norms(model, x), jacobian_norms(model, x)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(jacobian_norms(model, x[:1]), first[:1])
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_model_without_derivative_is_refused():
    x, _ = batch(3, 6, 5)
    flat = nn.Sequential(tanh_net(), nn.Threshold(1e9, 0.0))
    with pytest.raises(ValueError, match="every Jacobian is 0: expected outputs that are diff"):
        jacobian_norms(flat, x)

    class Cut(nn.Module):
        def forward(self, v):
            return tanh_net()(v).detach()

    with pytest.raises(ValueError, match=r"got none that depend on them; look for detach\(\)"):
        jacobian_norms(Cut(), x)


def test_norms_and_outputs_are_named():
    model, (x, _) = tanh_net(), batch(4, 6, 5)
    with pytest.raises(ValueError, match="kind: expected one of 2_inf, frobenius, got 'nuclear'"):
        jacobian_norms(model, x, "nuclear")
    with pytest.raises(ValueError, match=r"output: expected one of logits, prob.*, got 'classes'"):
        jacobian_norms(model, x, output="classes")
