"""The least number of canaries of a training, for the check of the config and for the training."""

MIN_CANARIES = 10  # with fewer, figures have no meaning
