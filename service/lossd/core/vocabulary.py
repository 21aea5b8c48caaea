"""The sums every loss of the tiles is made of, and their order in the kernels' tensors.

Such a loss is a small function of sums over a sample's valid pixels, one row of sums per class.
With `p` the probability of a class, `q = 1 - p` its complement (computed from the other classes'
exponentials, never as `1 - p`, so that a good mask keeps its digits), `y` the target in [0, 1],
`m = (p + y) / 2` and `w` the weight map:

    region sums, per class
        target                    Σ y
        false_negative            Σ y·q
        false_positive            Σ (1 - y)·p
        squared_error_inside      Σ y·(p - y)²
        squared_error_outside     Σ (1 - y)·(p - y)²
        target_squared            Σ y²
      rich
        soft_false_negative       Σ max(y - p, 0)
        soft_false_positive       Σ max(p - y, 0)
    pixel sums, per label
        weight                    Σ w·y
        cross_entropy             Σ w·y·(-ln p)
        focal                     Σ w·y·q^gamma·(-ln p)
        negative_log_likelihood   Σ w·(-ln p)
      rich
        miss                      Σ w·y·q
        powered_cross_entropy     Σ w·y·(-ln p)^gamma
        kullback_leibler          Σ w·y·ln(y/p)
        jensen_shannon            Σ w·(y·ln(y/m) + p·ln(p/m)) / 2
        complement_cross_entropy  Σ w·(1 - y)·(-ln(1 - p))

For softmax the labels are the classes. For sigmoid every channel has two labels, 0 = off and
1 = on, with probabilities `1 - p` and `p`; its kernels make no complement, which is the other
label's cross entropy.

The rich sums cost more than all others together and few losses read them. Kernels come lean and
rich, a request's losses say which it takes, and the lean ones never pay for the rest.
"""

TARGET, FALSE_NEGATIVE, FALSE_POSITIVE = 0, 1, 2
SQUARED_ERROR_INSIDE, SQUARED_ERROR_OUTSIDE, TARGET_SQUARED = 3, 4, 5
SOFT_FALSE_NEGATIVE, SOFT_FALSE_POSITIVE = 6, 7
REGION_SUMS, RICH_REGION_SUMS = 6, 8

WEIGHT, CROSS_ENTROPY, FOCAL, NEGATIVE_LOG_LIKELIHOOD = 0, 1, 2, 3
MISS, POWERED_CROSS_ENTROPY, KULLBACK_LEIBLER, JENSEN_SHANNON = 4, 5, 6, 7
COMPLEMENT_CROSS_ENTROPY = 8
PIXEL_SUMS, RICH_PIXEL_SUMS, RICH_SIGMOID_PIXEL_SUMS = 4, 9, 8

POWER_FLOOR = 1e-7
"""Base of a fractional power; below it the power is constant instead of infinitely steep."""
