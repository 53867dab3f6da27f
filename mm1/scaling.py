"""The learning-rate law: the peak learning rate from the size of a model."""

import math


def law(parameters: float) -> float:
    """The peak learning rate for `parameters` non-embedding parameters of the language model.

    MM1, section 3.4: eta = exp(-0.4214 ln N - 0.5535), fitted on grid searches at 9M, 85M, 302M and
    1.2B parameters with batches of 2M tokens. (30B gives 2.2e-5, 3B 5.8e-5.)
    """
    return math.exp(-0.4214 * math.log(parameters) - 0.5535)
