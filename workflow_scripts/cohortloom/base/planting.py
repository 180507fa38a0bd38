"""How many canaries a training needs: asked when the config is checked, and by the training itself."""

LEAST_CANARIES = 10  # fewer say nothing
