"""The sums every pixel loss is made of, and their order in the kernels' tensors.

A loss of the pixel kind is a small function of sums over a sample's valid pixels, one row of sums
per class. With `p` the probability of a class, `q = 1 - p` its complement (computed from the other
classes' exponentials, never as `1 - p`, so that a good mask keeps its digits), `y` the target in
[0, 1] and `w` the weight map:

    region sums, per class
        target                  Σ y
        false_negative          Σ y·q
        false_positive          Σ (1 - y)·p
        squared_error_inside    Σ y·(p - y)²
        squared_error_outside   Σ (1 - y)·(p - y)²
        target_squared          Σ y²
    pixel sums, per label
        weight                  Σ w·y
        cross_entropy           Σ w·y·(-ln p)
        focal                   Σ w·y·q^gamma·(-ln p)
        negative_log_likelihood Σ w·(-ln p)

For softmax the labels are the classes. For sigmoid every channel has two labels, 0 = off and
1 = on, with probabilities `1 - p` and `p`.
"""

TARGET, FALSE_NEGATIVE, FALSE_POSITIVE = 0, 1, 2
SQUARED_ERROR_INSIDE, SQUARED_ERROR_OUTSIDE, TARGET_SQUARED = 3, 4, 5
REGION_SUMS = 6

WEIGHT, CROSS_ENTROPY, FOCAL, NEGATIVE_LOG_LIKELIHOOD = 0, 1, 2, 3
PIXEL_SUMS = 4
