"""Every loss once more, by its textbook formula, in float64, one sample at a time.

Nothing here is shared with the service: no complement, no tiles, no cache; the gradient is
autograd's. A loss without an oracle fails the tests.
"""
