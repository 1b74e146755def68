"""The multiplier by a primal-dual interior point with its N x N matrix."""
