"""The numerical core: tiles, sums, heads, gradients.

It knows tensors and losses; it knows nothing of HTTP, queues or files.
"""
