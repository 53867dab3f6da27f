"""The learning-rate law: what a model's size says about its peak learning rate."""

import math


def law(parameters: float) -> float:
    """The peak learning rate for `parameters` non-embedding parameters of the language model.

    MM1, section 3.4: eta = exp(-0.4214 ln N - 0.5535), fitted on grid searches at 9M, 85M, 302M and
    1.2B parameters at a batch of 2M places. (30B gives 2.2e-5, 3B 5.8e-5.)
    """
    return math.exp(-0.4214 * math.log(parameters) - 0.5535)
