"""The inequality as an operator of the multiplier: factors, closed forms, steps, costs."""
